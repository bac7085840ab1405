package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Assertion is a verified client assertion (RFC 7523 §3): Subject signed it with Key. JTI is not marked used yet; the code
// that acts on the assertion does that.
type Assertion struct {
	Subject watchword.SubjectID
	Key     watchword.KeyID
	JTI     string
	Issued  time.Time
	Expires time.Time
	// Audience is the issuer that it named; empty where something else authenticated the subject.
	Audience string
}

// SingleUse returns what a store remembers of the assertion.
func (a Assertion) SingleUse() SingleUse {
	return SingleUse{JTI: a.JTI, Issued: a.Issued, Expires: a.Expires.Add(Skew)}
}

type assertionClaims struct {
	iss, sub watchword.SubjectID
	aud      audience
	jti      string
	validity
}

func (c *assertionClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return readExpected(&c.iss, v, c.sub)
	case "sub":
		return readExpected(&c.sub, v, c.iss)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "jti":
		return readString(&c.jti, v)
	}
	return c.validity.member(name, v)
}

// SignAssertion returns an assertion by which sub authenticates to issuer, valid for life, which is at most
// [AssertionLifetime]. Codes: bad_request if the server would refuse it; unavailable.
func SignAssertion(s *jose.Signer, sub watchword.SubjectID, issuer string, now time.Time, lifetime time.Duration) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": sub, "sub": sub, "aud": issuer, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(lifetime).Unix(),
	})
	if err != nil {
		return "", err
	}
	raw, err := s.Sign(TypAssertion, b)
	if err != nil {
		return "", err
	}
	p, err := ParseAssertion(raw, false)
	if err == nil {
		err = p.CheckClaims(issuer, now)
	}
	return raw, signerError(err, TypAssertion)
}

// UnverifiedAssertion is a client assertion whose signature was not verified. It is a separate type, so that it cannot be
// used as an [Assertion].
type UnverifiedAssertion struct {
	jws    *jose.Unverified
	claims assertionClaims
}

// ParseAssertion parses a client assertion. untyped states that a typ that is absent or "JWT" is accepted too: only at
// /oauth/token. Codes: too_large, token_malformed, algorithm_invalid, token_kind.
func ParseAssertion(raw string, untyped bool) (*UnverifiedAssertion, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	if err != nil {
		return nil, err
	}
	if !jose.SameType(u.Typ, TypAssertion) && (!untyped || u.Typ != "" && !jose.SameType(u.Typ, "JWT")) {
		return nil, refuseTyp(u.Typ, TypAssertion)
	}
	p := &UnverifiedAssertion{jws: u}
	if err := jose.Walk(u.UnverifiedPayload(), p.claims.member); err != nil {
		return nil, err
	}
	if p.claims.iss != p.claims.sub || !watchword.ValidName(string(p.claims.sub)) {
		return nil, refuse(watchword.IssuerMismatch, "iss and sub must both be the client's id")
	}
	return p, checkJTI(p.claims.jti)
}

// Subject returns the unverified subject of the assertion.
func (u *UnverifiedAssertion) Subject() watchword.SubjectID { return u.claims.sub }

// CheckClaims makes the checks that need no signature: audience and time. Codes: audience_mismatch, token_malformed,
// token_lifetime, token_expired, token_early.
func (u *UnverifiedAssertion) CheckClaims(issuer string, now time.Time) error {
	if err := checkAudience(u.claims.aud, issuer); err != nil {
		return err
	}
	return u.claims.check(now, AssertionLifetime, Skew, Skew)
}

// Verify verifies the signature with one of keys, the subject's active signing keys. Without a kid each key that fits the
// alg is tried; a subject has only a few. Codes: key_unknown, algorithm_invalid, signature_invalid.
func (u *UnverifiedAssertion) Verify(keys KeySet) (Assertion, error) {
	if kid := watchword.KeyID(u.jws.Kid); kid != "" {
		k, ok := keys[kid]
		if !ok {
			return Assertion{}, refuse(watchword.KeyUnknown, "kid must be the thumbprint of an active signing key of the subject")
		}
		return u.verifyWithKey(k)
	}
	err := refuse(watchword.KeyUnknown, "the subject has no active signing key")
	for _, k := range keys {
		a, keyErr := u.verifyWithKey(k)
		if keyErr == nil {
			return a, nil
		}
		if watchword.CodeOf(err) != watchword.SignatureInvalid { // this code is more specific than that of a key with another alg
			err = keyErr
		}
	}
	return Assertion{}, err
}

func (u *UnverifiedAssertion) verifyWithKey(k *jose.PublicKey) (Assertion, error) {
	if _, err := u.jws.Verify(k); err != nil {
		return Assertion{}, err
	}
	return Assertion{Subject: u.claims.sub, Key: k.ID(), JTI: u.claims.jti, Issued: u.claims.iat.time(), Expires: u.claims.exp.time()}, nil
}
