package token

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

type enrollmentClaims struct {
	Aud      audience        `json:"aud"`
	CodeHash string          `json:"code_hash"`
	SealJKT  watchword.KeyID `json:"seal_jkt"`
	JTI      string          `json:"jti"`
	IAT      unix            `json:"iat"`
	EXP      unix            `json:"exp"`
}

// SignEnrollment makes the proof by which a stranger shows that it holds the new
// signing key, for one code (as its base64url SHA-256), one sealing key and one issuer.
func SignEnrollment(s *jose.Signer, issuer, codeHash string, seal watchword.KeyID, now time.Time) (string, error) {
	b, err := json.Marshal(map[string]any{
		"aud": issuer, "code_hash": codeHash, "seal_jkt": seal,
		"jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(ProofLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	return s.Sign(TypEnrollment, b)
}

// VerifyEnrollment checks the proof under the new key itself. Codes: as
// [VerifyAccess], and proof_invalid where it is about another code or sealing key.
func VerifyEnrollment(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) error {
	_, err := verifyEnrollment(raw, key, issuer, codeHash, seal, now)
	return err
}

func verifyEnrollment(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) (enrollmentClaims, error) {
	var c enrollmentClaims
	payload, _, err := open(raw, watchword.MaxToken, TypEnrollment, NewKeySet(key))
	if err != nil {
		return c, err
	}
	if err := jose.Decode(payload, &c); err != nil {
		return c, err
	}
	if err := checkAudience(c.Aud, issuer); err != nil {
		return c, err
	}
	if c.CodeHash != codeHash || c.SealJKT != seal {
		return c, watchword.Refuse(watchword.ProofInvalid, "the proof is for another code or sealing key")
	}
	if err := checkJTI(c.JTI); err != nil {
		return c, err
	}
	return c, window{iat: c.IAT, exp: c.EXP}.check(now, ProofLife, Skew, Skew)
}
