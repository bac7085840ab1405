package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Rekey is the claims of a key change: Sign and Seal are the thumbprints of the keys that are valid after it, whether or
// not they change. JTI is not marked used yet; the caller must do that.
type Rekey struct {
	Sign    watchword.KeyID
	Seal    watchword.KeyID
	JTI     string
	Issued  time.Time
	Expires time.Time
}

type rekeyClaims struct {
	Iss  watchword.SubjectID `json:"iss"`
	Sub  watchword.SubjectID `json:"sub"`
	Aud  audience            `json:"aud"`
	JTI  string              `json:"jti"`
	IAT  numericDate         `json:"iat"`
	EXP  numericDate         `json:"exp"`
	Sign watchword.KeyID     `json:"sign_jkt"`
	Seal watchword.KeyID     `json:"seal_jkt"`
}

// SignRekey signs the proof with which sub changes its signing key, and its encryption key to seal: a JSON array of two
// compact JWSs over one payload, by the old key and by the new one. If the signing key does not change it is signed once:
// pass the same signer twice. Codes: bad_request if the server would refuse it; unavailable.
func SignRekey(from, to *jose.Signer, sub watchword.SubjectID, issuer string, seal watchword.KeyID, now time.Time) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": sub, "sub": sub, "aud": issuer, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(RekeyLifetime).Unix(),
		"sign_jkt": to.Public().ID(), "seal_jkt": seal,
	})
	if err != nil {
		return "", err
	}
	read := func(payload []byte) error {
		_, err := readRekey(payload, sub, issuer, now)
		return err
	}
	if from.Public().ID() == to.Public().ID() {
		one, err := signTyped(to, TypRekey, watchword.MaxToken-len(`[""]`), b, read)
		return `["` + one + `"]`, err
	}
	raw, err := jose.SignDual(from, to, TypRekey, b)
	if err != nil {
		return "", err
	}
	p, err := jose.ParseDual(raw, watchword.MaxToken)
	if err == nil {
		err = read(p.UnverifiedPayload())
	}
	return raw, signerError(err, TypRekey)
}

// VerifyRekey verifies a key change of sub: the first signature with from, the current key, the second with to, the new
// key. If to is from there is one signature. The caller must compare the thumbprints.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown, signature_invalid, issuer_mismatch,
// audience_mismatch, token_lifetime, token_expired, token_early.
func VerifyRekey(raw string, from, to *jose.PublicKey, sub watchword.SubjectID, issuer string, now time.Time) (Rekey, error) {
	payload, err := openRekey(raw, from, to)
	if err != nil {
		return Rekey{}, err
	}
	return readRekey(payload, sub, issuer, now)
}

func readRekey(payload []byte, sub watchword.SubjectID, issuer string, now time.Time) (Rekey, error) {
	var c rekeyClaims
	if err := jose.Decode(payload, &c); err != nil {
		return Rekey{}, err
	}
	if c.Iss != sub || c.Sub != sub {
		return Rekey{}, refuse(watchword.IssuerMismatch, "iss and sub must both be %q", sub)
	}
	if err := checkAudience(c.Aud, issuer); err != nil {
		return Rekey{}, err
	}
	if err := checkJTI(c.JTI); err != nil {
		return Rekey{}, err
	}
	if err := (validity{iat: c.IAT, exp: c.EXP}).check(now, RekeyLifetime, Skew, Skew); err != nil {
		return Rekey{}, err
	}
	return Rekey{Sign: c.Sign, Seal: c.Seal, JTI: c.JTI, Issued: c.IAT.time(), Expires: c.EXP.time()}, nil
}

// openRekey verifies one signature or two and returns the payload. A kid is mandatory, as everywhere.
func openRekey(raw string, from, to *jose.PublicKey) ([]byte, error) {
	if from.ID() == to.ID() {
		if len(raw) > watchword.MaxToken {
			return nil, watchword.Refuse(watchword.TooLarge, "a key change must have at most %d bytes", watchword.MaxToken)
		}
		list, err := jose.Strings(jsontext.Value(raw))
		if err != nil {
			return nil, err
		}
		if len(list) != 1 {
			return nil, refuse(watchword.TokenMalformed, "a key change that keeps the signing key must be one compact JWS, not two")
		}
		payload, _, err := verifyTyped(list[0], watchword.MaxToken, TypRekey, NewKeySet(from))
		return payload, err
	}
	p, err := jose.ParseDual(raw, watchword.MaxToken)
	if err != nil {
		return nil, err
	}
	if !jose.SameType(p.Typ(), TypRekey) {
		return nil, refuse(watchword.TokenKind, "typ must be %q", TypRekey)
	}
	if p.First.Kid == "" || p.Second.Kid == "" {
		return nil, refuse(watchword.KeyUnknown, "kid must be the thumbprint of the signing key in use, or of the new one")
	}
	return p.Verify(from, to)
}
