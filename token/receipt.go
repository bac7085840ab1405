package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Receipt is the claims of a device's signed answer to one command.
type Receipt struct {
	Device  watchword.SubjectID // iss
	Issuer  string              // aud
	Epoch   int64
	Seq     int64
	Command watchword.CommandID // cid
	Hash    string              // ch: base64url SHA-256 of the command's inner JWS
	Status  watchword.ReceiptStatus
	Result  json.RawMessage // any JSON, or nil
	At      time.Time
}

type receiptClaims struct {
	Receipt
	aud audience
	jti string
	validity
}

func (c *receiptClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return readString(&c.Device, v)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "jti":
		return readString(&c.jti, v)
	case "epoch":
		return readInt(&c.Epoch, v)
	case "seq":
		return readInt(&c.Seq, v)
	case "cid":
		return readString(&c.Command, v)
	case "ch":
		return readString(&c.Hash, v)
	case "st":
		return readString(&c.Status, v)
	case "result":
		c.Result = json.RawMessage(v)
	}
	return c.validity.member(name, v)
}

// hashLength is the length of a SHA-256 in base64url, in characters.
const hashLength = 43

// SignReceipt signs r with the device's signing key. Codes: too_large for a receipt over 32 KiB; bad_request if the server
// would refuse it: a result that is not strict JSON (UTF-8, no duplicate member, at most 7 deep), a missing claim;
// unavailable.
func SignReceipt(s *jose.Signer, r Receipt) (string, error) {
	m := map[string]any{
		"iss": r.Device, "aud": r.Issuer, "jti": watchword.NewNonce(), "iat": r.At.Unix(),
		"epoch": r.Epoch, "seq": r.Seq, "cid": r.Command, "ch": r.Hash, "st": r.Status,
	}
	if r.Result != nil {
		m["result"] = r.Result
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", watchword.Wrap(err, watchword.BadRequest, "the result must be valid JSON")
	}
	return signTyped(s, TypReceipt, watchword.MaxDocument, b, func(payload []byte) error {
		got, err := readReceipt(payload, r.Device, r.Issuer)
		if err == nil && (got.Command != r.Command || got.Hash != r.Hash || got.Status != r.Status || (got.Result == nil) != (r.Result == nil)) {
			err = invalidUTF8Claim()
		}
		return err
	})
}

// VerifyReceipt verifies a receipt with the device's signing keys. A receipt does not expire, and its iat is not checked,
// since the device may have no clock. The caller must check that its command exists, and that Hash is that of a version
// that was handed over.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown, signature_invalid, issuer_mismatch,
// audience_mismatch.
func VerifyReceipt(raw string, keys KeySet, dev watchword.SubjectID, issuer string) (Receipt, watchword.KeyID, error) {
	payload, key, err := verifyTyped(raw, watchword.MaxDocument, TypReceipt, keys)
	if err != nil {
		return Receipt{}, "", err
	}
	r, err := readReceipt(payload, dev, issuer)
	if err != nil {
		return Receipt{}, "", err
	}
	return r, key.ID(), nil
}

func readReceipt(payload []byte, dev watchword.SubjectID, issuer string) (Receipt, error) {
	var c receiptClaims
	if err := jose.Walk(payload, c.member); err != nil {
		return Receipt{}, err
	}
	if err := checkIssuer(string(c.Device), string(dev)); err != nil {
		return Receipt{}, err
	}
	if err := checkAudience(c.aud, issuer); err != nil {
		return Receipt{}, err
	}
	if err := checkJTI(c.jti); err != nil {
		return Receipt{}, err
	}
	if _, ok := c.Status.State(); !ok || c.Epoch < 1 || c.Seq < 1 || c.Command == "" || len(c.Command) > 128 || len(c.Hash) != hashLength {
		return Receipt{}, refuse(watchword.TokenMalformed, "epoch, seq, cid, ch and st are required")
	}
	r := c.Receipt
	r.Issuer, r.At = issuer, c.iat.time()
	return r, nil
}

// ReadReceipt parses the device's own receipt without verifying its signature. Codes: as [VerifyReceipt], but those of the
// signature.
func ReadReceipt(raw string, dev watchword.SubjectID, issuer string) (Receipt, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxDocument)
	if err != nil {
		return Receipt{}, err
	}
	if !jose.SameType(u.Typ, TypReceipt) {
		return Receipt{}, refuseTyp(u.Typ, TypReceipt)
	}
	return readReceipt(u.UnverifiedPayload(), dev, issuer)
}

// ReceiptResult returns the result of a receipt that was verified before; nil if it has none.
func ReceiptResult(raw string) (json.RawMessage, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxDocument)
	if err != nil {
		return nil, err
	}
	var c receiptClaims
	if err := jose.Walk(u.UnverifiedPayload(), c.member); err != nil {
		return nil, err
	}
	return c.Result, nil
}
