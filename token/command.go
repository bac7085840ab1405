package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Command is the claims of a command. Args is one JSON object, byte for byte as it was ordered.
type Command struct {
	Issuer   string
	Device   watchword.SubjectID // aud
	ID       watchword.CommandID // jti
	Epoch    int64
	Seq      int64
	Function string
	Args     []byte
	By       watchword.SubjectID // act.sub, RFC 8693 §4.1: the orderer, as the server states it
	Nonce    string              // of the device, or empty
	Order    string              // the orderer's signed order, or empty
	Issued   time.Time
	Expires  time.Time
}

// CommandExpiry returns when a command that is ordered now for ttl expires. Tokens have whole seconds, so it is rounded up,
// but never beyond [CommandLifetime].
func CommandExpiry(now time.Time, ttl time.Duration) time.Time {
	issuedAt := now.Truncate(time.Second)
	end := now.Add(ttl).Truncate(time.Second)
	if end.Before(now.Add(ttl)) {
		end = end.Add(time.Second)
	}
	if end.Sub(issuedAt) > CommandLifetime {
		end = issuedAt.Add(CommandLifetime)
	}
	return end
}

type commandClaims struct {
	Command
	iss  string
	aud  audience
	args jsontext.Value
	validity
}

func (c *commandClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return readString(&c.iss, v)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "jti":
		return readString(&c.ID, v)
	case "epoch":
		return readInt(&c.Epoch, v)
	case "seq":
		return readInt(&c.Seq, v)
	case "cmd":
		return readString(&c.Function, v)
	case "args":
		c.args = v
	case "act":
		return jose.Walk(v, func(name string, v jsontext.Value) error {
			if name == "sub" {
				return readString(&c.By, v)
			}
			return nil
		})
	case "nonce":
		return readString(&c.Nonce, v)
	case "order":
		return readString(&c.Order, v)
	}
	return c.validity.member(name, v)
}

// SignCommand signs c with the command key. Args must be one compact JSON object. Codes: bad_request, too_large if devices
// would refuse it; unavailable.
func SignCommand(s *jose.Signer, c Command) (string, error) {
	m := map[string]any{
		"iss": c.Issuer, "aud": c.Device, "jti": c.ID, "iat": c.Issued.Unix(), "exp": c.Expires.Unix(),
		"epoch": c.Epoch, "seq": c.Seq, "cmd": c.Function, "act": map[string]any{"sub": c.By},
	}
	if c.Nonce != "" {
		m["nonce"] = c.Nonce
	}
	if c.Order != "" {
		m["order"] = c.Order
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	// Args is inserted unchanged: an encoder would rewrite it, and the order has its hash.
	b = append(b[:len(b)-1], `,"args":`...)
	b = append(append(b, c.Args...), '}')
	return signTyped(s, TypCommand, watchword.MaxDocument, b, func(payload []byte) error {
		got, err := readCommand(payload, c.Issuer, c.Device, c.Issued, c.Nonce)
		if err == nil && (got.ID != c.ID || got.Function != c.Function || got.By != c.By || got.Order != c.Order || string(got.Args) != string(c.Args)) {
			err = invalidUTF8Claim()
		}
		return err
	})
}

// VerifyCommand verifies the JWS of a command that was encrypted to device, with the command keys of the trust bundle. A
// device without a clock passes the zero time and its nonce: then no time is checked and the nonce must match.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown, signature_invalid, issuer_mismatch,
// audience_mismatch, command_expired, token_early, nonce_mismatch.
func VerifyCommand(raw string, keys KeySet, issuer string, dev watchword.SubjectID, now time.Time, nonce string) (Command, error) {
	payload, _, err := verifyTyped(raw, watchword.MaxDocument, TypCommand, keys)
	if err != nil {
		return Command{}, err
	}
	return readCommand(payload, issuer, dev, now, nonce)
}

func readCommand(payload []byte, issuer string, dev watchword.SubjectID, now time.Time, nonce string) (Command, error) {
	var c commandClaims
	if err := jose.Walk(payload, c.member); err != nil {
		return Command{}, err
	}
	if err := checkIssuer(c.iss, issuer); err != nil {
		return Command{}, err
	}
	if err := checkAudience(c.aud, string(dev)); err != nil {
		return Command{}, err
	}
	if err := checkJTI(string(c.ID)); err != nil {
		return Command{}, err
	}
	if c.Epoch < 1 || c.Seq < 1 || !watchword.ValidName(c.Function) || len(c.args) > watchword.MaxArgs || c.args.Kind() != '{' {
		return Command{}, refuse(watchword.TokenMalformed, "epoch, seq, cmd and args are required")
	}
	if nonce != "" && c.Nonce != nonce {
		return Command{}, refuse(watchword.NonceMismatch, "nonce must be the one that this device announced")
	}
	if err := commandTimes(c.validity, now, nonce); err != nil {
		return Command{}, err
	}
	out := c.Command
	out.Issuer, out.Device, out.Args, out.Issued, out.Expires = issuer, dev, c.args, c.iat.time(), c.exp.time()
	return out, nil
}

func commandTimes(w validity, now time.Time, nonce string) error {
	if now.IsZero() {
		if nonce == "" {
			return refuse(watchword.NonceMismatch, "nonce is required for a device that does not know the time")
		}
		now = w.iat.time() // only the consistency of its own times is checked
	}
	err := w.check(now, CommandLifetime, Skew, Skew)
	if watchword.CodeOf(err) == watchword.TokenExpired {
		return refuse(watchword.CommandExpired, "exp of the command has passed")
	}
	return err
}
