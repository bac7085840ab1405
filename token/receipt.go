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
	Iss    watchword.SubjectID     `json:"iss"`
	Aud    audience                `json:"aud"`
	JTI    string                  `json:"jti"`
	IAT    unix                    `json:"iat"`
	Epoch  unix                    `json:"epoch"`
	Seq    unix                    `json:"seq"`
	CID    watchword.CommandID     `json:"cid"`
	CH     string                  `json:"ch"`
	St     watchword.ReceiptStatus `json:"st"`
	Result jsontext.Value          `json:"result"`
}

// SignReceipt signs r with the device's signing key. Code: too_large for a
// receipt over 32 KiB.
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
		return "", watchword.Because(err, watchword.BadRequest, "the result is no JSON")
	}
	raw, err := s.Sign(TypReceipt, b)
	if err == nil && len(raw) > watchword.MaxDocument {
		return "", watchword.Refuse(watchword.TooLarge, "a receipt may have 32 KiB")
	}
	return raw, err
}

// VerifyReceipt checks a receipt under the device's signing keys. A receipt has
// no end, and its iat is not held against a clock that the device may not have.
// That its command exists, and that Hash is one of the versions handed over, is
// for the caller to see.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown,
// signature_invalid, issuer_mismatch, audience_mismatch.
func VerifyReceipt(raw string, keys KeySet, dev watchword.SubjectID, issuer string) (Receipt, watchword.KeyID, error) {
	payload, key, err := open(raw, watchword.MaxDocument, TypReceipt, keys)
	if err != nil {
		return Receipt{}, "", err
	}
	var c receiptClaims
	if err := jose.Decode(payload, &c); err != nil {
		return Receipt{}, "", err
	}
	if err := checkIssuer(string(c.Iss), string(dev)); err != nil {
		return Receipt{}, "", err
	}
	if err := checkAudience(c.Aud, issuer); err != nil {
		return Receipt{}, "", err
	}
	if err := checkJTI(c.JTI); err != nil {
		return Receipt{}, "", err
	}
	if _, ok := c.St.State(); !ok || c.Epoch < 1 || c.Seq < 1 || c.CID == "" || len(c.CID) > 128 || c.CH == "" {
		return Receipt{}, "", watchword.Refuse(watchword.TokenMalformed, "epoch, seq, cid, ch and st are mandatory")
	}
	return Receipt{
		Device: dev, Issuer: issuer, Epoch: int64(c.Epoch), Seq: int64(c.Seq), Command: c.CID, Hash: c.CH, Status: c.St,
		Result: json.RawMessage(c.Result), At: c.IAT.time(),
	}, key.ID(), nil
}

// ResultOf reads the result of a receipt that was verified before; nil if it has none.
func ResultOf(raw string) (json.RawMessage, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxDocument)
	if err != nil {
		return nil, err
	}
	var c receiptClaims
	if err := jose.Decode(u.UnverifiedPayload(), &c); err != nil {
		return nil, err
	}
	return json.RawMessage(c.Result), nil
}
