package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

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
	iss, sub watchword.SubjectID
	aud      audience
	jti      string
	window
}

func (c *assertionClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return same(&c.iss, v, c.sub)
	case "sub":
		return same(&c.sub, v, c.iss)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "jti":
		return text(&c.jti, v)
	}
	return c.window.member(name, v)
}

// SignAssertion makes an assertion by which sub proves itself to issuer, good
// for life, which is at most [AssertionLife]. Codes: bad_request where the server
// would refuse it; unavailable.
func SignAssertion(s *jose.Signer, sub watchword.SubjectID, issuer string, now time.Time, life time.Duration) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": sub, "sub": sub, "aud": issuer, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(life).Unix(),
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
		err = p.Precheck(issuer, now)
	}
	return raw, unreadable(err, TypAssertion)
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
	if err := jose.Walk(u.UnverifiedPayload(), p.claims.member); err != nil {
		return nil, err
	}
	if p.claims.iss != p.claims.sub || !watchword.ValidName(string(p.claims.sub)) {
		return nil, watchword.Refuse(watchword.IssuerMismatch, "iss and sub must both be the client's id")
	}
	return p, checkJTI(p.claims.jti)
}

// Subject says who the assertion claims to come from.
func (p *Presented) Subject() watchword.SubjectID { return p.claims.sub }

// Precheck does what costs no signature: audience and time. Codes:
// audience_mismatch, token_malformed, token_lifetime, token_expired, token_early.
func (p *Presented) Precheck(issuer string, now time.Time) error {
	if err := checkAudience(p.claims.aud, issuer); err != nil {
		return err
	}
	return p.claims.check(now, AssertionLife, Skew, Skew)
}

// Check verifies the signature under one of keys, the subject's active signing
// keys. Without a kid each that fits the alg is tried; a subject has at most a
// few. Codes: key_unknown, algorithm_invalid, signature_invalid.
func (p *Presented) Check(keys KeySet) (Assertion, error) {
	if kid := watchword.KeyID(p.jws.Kid); kid != "" {
		k, ok := keys[kid]
		if !ok {
			return Assertion{}, watchword.Refuse(watchword.KeyUnknown, "kid names no active key of this subject")
		}
		return p.under(k)
	}
	err := watchword.Refuse(watchword.KeyUnknown, "the subject has no active key")
	for _, k := range keys {
		a, kerr := p.under(k)
		if kerr == nil {
			return a, nil
		}
		if watchword.CodeOf(err) != watchword.SignatureInvalid { // which says more than that another key has another alg
			err = kerr
		}
	}
	return Assertion{}, err
}

func (p *Presented) under(k *jose.PublicKey) (Assertion, error) {
	if _, err := p.jws.Verify(k); err != nil {
		return Assertion{}, err
	}
	return Assertion{Subject: p.claims.sub, Key: k.ID(), JTI: p.claims.jti, Expires: p.claims.exp.time()}, nil
}
