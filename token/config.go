package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Config is the claims of a device's desired configuration. Document is one JSON object.
type Config struct {
	Issuer   string
	Device   watchword.SubjectID
	Epoch    int64 // as of commands; 0 if the server's version has no epochs of configurations
	Version  int64 // grows within the epoch, from 1 to 2^53-1
	Document json.RawMessage
	Issued   time.Time
}

type configClaims struct {
	iss    string
	aud    audience
	jti    string
	epoch  int64
	ver    int64
	config jsontext.Value
	validity
}

func (c *configClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return readString(&c.iss, v)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "jti":
		return readString(&c.jti, v)
	case "epoch":
		return readInt(&c.epoch, v)
	case "ver":
		return readInt(&c.ver, v)
	case "config":
		c.config = v
	}
	return c.validity.member(name, v)
}

// SignConfig signs c with the command key, valid for [ConfigLifetime]. Document must be one compact JSON object, at most 7
// deep. Codes: bad_request, too_large if devices would refuse it; unavailable.
func SignConfig(s *jose.Signer, c Config) (string, error) {
	m := map[string]any{
		"iss": c.Issuer, "aud": c.Device, "jti": watchword.NewNonce(), "iat": c.Issued.Unix(), "exp": c.Issued.Add(ConfigLifetime).Unix(), "ver": c.Version,
	}
	if c.Epoch != 0 {
		m["epoch"] = c.Epoch
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	// Document is inserted unchanged: an encoder would escape it to up to six times its length.
	b = append(b[:len(b)-1], `,"config":`...)
	b = append(append(b, c.Document...), '}')
	return signTyped(s, TypConfig, 2*watchword.MaxDocument, b, func(payload []byte) error {
		got, err := readConfig(payload, c.Issuer, c.Device, c.Issued)
		if err == nil && (got.Epoch != c.Epoch || got.Version != c.Version || string(got.Document) != string(c.Document)) {
			err = invalidUTF8Claim()
		}
		return err
	})
}

// VerifyConfig verifies a configuration for device with the command keys. now is zero for a device without a clock. Codes:
// as [VerifyCommand], but token_expired.
func VerifyConfig(raw string, keys KeySet, issuer string, dev watchword.SubjectID, now time.Time) (Config, error) {
	payload, _, err := verifyTyped(raw, 2*watchword.MaxDocument, TypConfig, keys)
	if err != nil {
		return Config{}, err
	}
	return readConfig(payload, issuer, dev, now)
}

// ReadConfig parses a configuration that was verified before, without verifying signature, recipient and time. Codes:
// too_large, token_malformed, algorithm_invalid, token_kind.
func ReadConfig(raw string) (Config, error) {
	u, err := jose.ParseJWS(raw, 2*watchword.MaxDocument)
	if err != nil {
		return Config{}, err
	}
	if !jose.SameType(u.Typ, TypConfig) {
		return Config{}, refuseTyp(u.Typ, TypConfig)
	}
	return configOf(u.UnverifiedPayload())
}

func readConfig(payload []byte, issuer string, dev watchword.SubjectID, now time.Time) (Config, error) {
	var c configClaims
	if err := jose.Walk(payload, c.member); err != nil {
		return Config{}, err
	}
	if err := checkIssuer(c.iss, issuer); err != nil {
		return Config{}, err
	}
	if err := checkAudience(c.aud, string(dev)); err != nil {
		return Config{}, err
	}
	if err := checkJTI(c.jti); err != nil {
		return Config{}, err
	}
	out, err := configOf(payload)
	if err != nil {
		return Config{}, err
	}
	if now.IsZero() {
		now = c.iat.time()
	}
	if err := c.check(now, ConfigLifetime, Skew, Skew); err != nil {
		return Config{}, err
	}
	out.Issuer, out.Device = issuer, dev
	return out, nil
}

// configOf parses the claims of a configuration.
func configOf(payload []byte) (Config, error) {
	c := configClaims{epoch: -1}
	if err := jose.Walk(payload, c.member); err != nil {
		return Config{}, err
	}
	if c.epoch == -1 {
		c.epoch = 0
	} else if c.epoch < 1 {
		return Config{}, refuse(watchword.TokenMalformed, "epoch must be at least 1")
	}
	if c.ver < 1 || c.config.Kind() != '{' {
		return Config{}, refuse(watchword.TokenMalformed, "ver and config are required")
	}
	return Config{Epoch: c.epoch, Version: c.ver, Document: json.RawMessage(c.config), Issued: c.iat.time()}, nil
}
