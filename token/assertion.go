package token

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Assertion is a checked client assertion (RFC 7523 §3): Subject signed it with
// Key. JTI is not yet spent; whoever acts on it spends it.
type Assertion struct {
	Subject watchword.SubjectID
	Key     watchword.KeyID
	JTI     string
	Expires time.Time
}

type assertionClaims struct {
	Iss watchword.SubjectID `json:"iss"`
	Sub watchword.SubjectID `json:"sub"`
	Aud audience            `json:"aud"`
	JTI string              `json:"jti"`
	IAT unix                `json:"iat"`
	EXP unix                `json:"exp"`
	NBF unix                `json:"nbf"`
}

// SignAssertion makes an assertion by which sub proves itself to issuer, good
// for life, which is at most [AssertionLife].
func SignAssertion(s *jose.Signer, sub watchword.SubjectID, issuer string, now time.Time, life time.Duration) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": sub, "sub": sub, "aud": issuer, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(life).Unix(),
	})
	if err != nil {
		return "", err
	}
	return s.Sign(TypAssertion, b)
}

// Presented is a client assertion whose signature nobody has checked. It is
// another type than [Assertion] so that neither passes for the other.
type Presented struct {
	jws    *jose.Unverified
	claims assertionClaims
}

// ParseAssertion reads the shape of a client assertion. untyped says whether a
// typ that is absent or "JWT" is taken too: at /oauth/token only. Codes:
// too_large, token_malformed, algorithm_invalid, token_kind.
func ParseAssertion(raw string, untyped bool) (*Presented, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	if err != nil {
		return nil, err
	}
	if !jose.SameType(u.Typ, TypAssertion) && (!untyped || u.Typ != "" && !jose.SameType(u.Typ, "JWT")) {
		return nil, watchword.Refuse(watchword.TokenKind, "this is no client assertion")
	}
	p := &Presented{jws: u}
	if err := jose.Decode(u.UnverifiedPayload(), &p.claims); err != nil {
		return nil, err
	}
	if p.claims.Sub == "" || p.claims.Iss != p.claims.Sub || !watchword.ValidName(string(p.claims.Sub)) {
		return nil, watchword.Refuse(watchword.IssuerMismatch, "iss and sub must both be the client's id")
	}
	return p, checkJTI(p.claims.JTI)
}

// Subject says who the assertion claims to come from.
func (p *Presented) Subject() watchword.SubjectID { return p.claims.Sub }

// Precheck does what costs no signature: audience and time. Codes:
// audience_mismatch, token_malformed, token_lifetime, token_expired, token_early.
func (p *Presented) Precheck(issuer string, now time.Time) error {
	if err := checkAudience(p.claims.Aud, issuer); err != nil {
		return err
	}
	return window{p.claims.IAT, p.claims.EXP, p.claims.NBF}.check(now, AssertionLife, Skew, Skew)
}

// Check verifies the signature under one of keys, the subject's active signing
// keys. Without a kid each is tried; a subject has at most a few. Codes:
// key_unknown, algorithm_invalid, signature_invalid.
func (p *Presented) Check(keys KeySet) (Assertion, error) {
	a := Assertion{Subject: p.claims.Sub, JTI: p.claims.JTI, Expires: p.claims.EXP.time()}
	if p.jws.Kid != "" {
		k, ok := keys[watchword.KeyID(p.jws.Kid)]
		if !ok {
			return Assertion{}, watchword.Refuse(watchword.KeyUnknown, "kid names no active key of this subject")
		}
		keys = KeySet{k.ID(): k}
	}
	err := watchword.Refuse(watchword.KeyUnknown, "the subject has no active key")
	for id, k := range keys {
		if _, err = p.jws.Verify(k); err == nil {
			a.Key = id
			return a, nil
		}
	}
	return Assertion{}, err
}
