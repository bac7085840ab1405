package token

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// possession is what a proof of possession of a new signing key says: for which code it is, and with what else. One kind of
// proof has only the members of its kind.
type possession struct {
	typ      string          // [TypEnrollment] or [TypLogin]
	codeHash string          // base64url SHA-256 of the code
	seal     watchword.KeyID // of an enrollment: the encryption key; empty for none
	pins     []string        // of a login: the pins of the root keys, of which the proof names one; nil for an enrollment
}

type enrollmentClaims struct {
	aud      audience
	codeHash string
	sealJKT  watchword.KeyID
	pin      string
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
	case "pin":
		return readString(&c.pin, v)
	case "jti":
		return readString(&c.jti, v)
	}
	return c.validity.member(name, v)
}

// SignEnrollment signs the proof that an unenrolled device holds the new signing key, for one code (as its base64url
// SHA-256), one encryption key (empty: none, for an operator or a service) and one issuer. Codes: bad_request if the server would refuse it; unavailable.
func SignEnrollment(s *jose.Signer, issuer, codeHash string, seal watchword.KeyID, now time.Time) (string, error) {
	return signPossession(s, issuer, possession{typ: TypEnrollment, codeHash: codeHash, seal: seal}, now)
}

func signPossession(s *jose.Signer, issuer string, p possession, now time.Time) (string, error) {
	claims := map[string]any{
		"aud": issuer, "code_hash": p.codeHash, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(ProofLifetime).Unix(),
	}
	if p.seal != "" {
		claims["seal_jkt"] = p.seal
	}
	if len(p.pins) > 0 {
		claims["pin"] = p.pins[0]
	}
	b, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return signTyped(s, p.typ, watchword.MaxToken, b, func(payload []byte) error {
		_, err := readPossession(payload, issuer, p, now)
		return err
	})
}

// VerifyEnrollment verifies the proof with the new key itself, the signature last. Codes: as [VerifyAccess], and
// proof_invalid if it is for another code or encryption key.
func VerifyEnrollment(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) error {
	_, err := verifyPossession(raw, key, issuer, possession{typ: TypEnrollment, codeHash: codeHash, seal: seal}, now)
	return err
}

func verifyPossession(raw string, key *jose.PublicKey, issuer string, p possession, now time.Time) (enrollmentClaims, error) {
	var c enrollmentClaims
	u, key, err := parseTyped(raw, watchword.MaxToken, p.typ, NewKeySet(key))
	if err != nil {
		return c, err
	}
	if c, err = readPossession(u.UnverifiedPayload(), issuer, p, now); err != nil {
		return c, err
	}
	_, err = u.Verify(key)
	return c, err
}

func readPossession(payload []byte, issuer string, p possession, now time.Time) (c enrollmentClaims, err error) {
	if err := jose.Walk(payload, c.member); err != nil {
		return c, err
	}
	if err := checkAudience(c.aud, issuer); err != nil {
		return c, err
	}
	if p.pins == nil && c.pin != "" || p.pins != nil && !slices.Contains(p.pins, c.pin) {
		return c, refuse(watchword.ProofInvalid, "pin must be that of a root key of this server: the client saw another server's")
	}
	if c.codeHash != p.codeHash || c.sealJKT != p.seal {
		return c, refuse(watchword.ProofInvalid, "code_hash and seal_jkt must be those of the code and of the sealing key in the request")
	}
	if err := checkJTI(c.jti); err != nil {
		return c, err
	}
	return c, c.check(now, ProofLifetime, Skew, Skew)
}
