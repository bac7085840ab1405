package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

type enrollmentClaims struct {
	aud      audience
	codeHash string
	sealJKT  watchword.KeyID
	jti      string
	validity
}

func (c *enrollmentClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "code_hash":
		return readString(&c.codeHash, v)
	case "seal_jkt":
		return readString(&c.sealJKT, v)
	case "jti":
		return readString(&c.jti, v)
	}
	return c.validity.member(name, v)
}

// SignEnrollment signs the proof that an unenrolled device holds the new signing key, for one code (as its base64url
// SHA-256), one encryption key (empty: none, for an operator or a service) and one issuer. Codes: bad_request if the server would refuse it; unavailable.
func SignEnrollment(s *jose.Signer, issuer, codeHash string, seal watchword.KeyID, now time.Time) (string, error) {
	claims := map[string]any{
		"aud": issuer, "code_hash": codeHash, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(ProofLifetime).Unix(),
	}
	if seal != "" {
		claims["seal_jkt"] = seal
	}
	b, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return signTyped(s, TypEnrollment, watchword.MaxToken, b, func(payload []byte) error {
		_, err := readEnrollment(payload, issuer, codeHash, seal, now)
		return err
	})
}

// VerifyEnrollment verifies the proof with the new key itself, the signature last. Codes: as [VerifyAccess], and
// proof_invalid if it is for another code or encryption key.
func VerifyEnrollment(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) error {
	_, err := verifyEnrollment(raw, key, issuer, codeHash, seal, now)
	return err
}

func verifyEnrollment(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) (enrollmentClaims, error) {
	var c enrollmentClaims
	u, key, err := parseTyped(raw, watchword.MaxToken, TypEnrollment, NewKeySet(key))
	if err != nil {
		return c, err
	}
	if c, err = readEnrollment(u.UnverifiedPayload(), issuer, codeHash, seal, now); err != nil {
		return c, err
	}
	_, err = u.Verify(key)
	return c, err
}

func readEnrollment(payload []byte, issuer, codeHash string, seal watchword.KeyID, now time.Time) (c enrollmentClaims, err error) {
	if err := jose.Walk(payload, c.member); err != nil {
		return c, err
	}
	if err := checkAudience(c.aud, issuer); err != nil {
		return c, err
	}
	if c.codeHash != codeHash || c.sealJKT != seal {
		return c, refuse(watchword.ProofInvalid, "code_hash and seal_jkt must be those of the code and of the sealing key in the request")
	}
	if err := checkJTI(c.jti); err != nil {
		return c, err
	}
	return c, c.check(now, ProofLifetime, Skew, Skew)
}
