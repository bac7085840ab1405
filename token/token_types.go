package token

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// The typ header of each kind (RFC 8725 §3.11). No two kinds have the same.
const (
	TypAssertion  = "client-authentication+jwt"
	TypAccess     = "at+jwt"
	TypEnrollment = "vnd.watchword.enrollment+jwt"
	TypLogin      = "vnd.watchword.login+jwt"
	TypCommand    = "vnd.watchword.command+jwt"
	TypConfig     = "vnd.watchword.config+jwt"
	TypReceipt    = "vnd.watchword.receipt+jwt"
	TypOrder      = "vnd.watchword.order+jwt"
	TypTrust      = "vnd.watchword.trust+jwt"
	TypDPoP       = "dpop+jwt"
	TypTime       = "vnd.watchword.time+jwt"
	TypRekey      = "vnd.watchword.rekey+jwt"
	TypBackup     = "vnd.watchword.backup+jwt" // the manifest of a backup: package server/backup
)

// The maximum lifetime of each kind, from iat to exp.
const (
	AssertionLifetime = 300 * time.Second
	ProofLifetime     = 300 * time.Second
	CommandLifetime   = 24 * time.Hour // the default is 120 s; a request may state up to this
	ConfigLifetime    = 30 * 24 * time.Hour
	TrustLifetime     = 90 * 24 * time.Hour
	DPoPLifetime      = 60 * time.Second // from iat: a proof has no exp
	TimeLifetime      = 60 * time.Second
	RekeyLifetime     = 300 * time.Second
)

// Skew is the accepted difference between the clocks of two parties.
const Skew = 60 * time.Second

// KeySet is the valid public keys for one kind, by key ID. It must not be modified.
type KeySet map[watchword.KeyID]*jose.PublicKey

// NewKeySet returns the set of ks.
func NewKeySet(ks ...*jose.PublicKey) KeySet {
	s := make(KeySet, len(ks))
	for _, k := range ks {
		s[k.ID()] = k
	}
	return s
}

// parseTyped parses raw, which must be of kind typ, and finds the key of keys that its kid names. The signature is not
// verified. Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown.
func parseTyped(raw string, max int, typ string, keys KeySet) (*jose.Unverified, *jose.PublicKey, error) {
	u, err := jose.ParseJWS(raw, max)
	if err != nil {
		return nil, nil, err
	}
	if !jose.SameType(u.Typ, typ) {
		return nil, nil, refuseTyp(u.Typ, typ)
	}
	k, ok := keys[watchword.KeyID(u.Kid)]
	if !ok {
		return nil, nil, refuse(watchword.KeyUnknown, "kid names no key that is accepted for a %s", typ)
	}
	return u, k, nil
}

// verifyTyped is [parseTyped], and verifies the signature. Codes: those of parseTyped, signature_invalid.
func verifyTyped(raw string, max int, typ string, keys KeySet) ([]byte, *jose.PublicKey, error) {
	u, k, err := parseTyped(raw, max, typ, keys)
	if err != nil {
		return nil, nil, err
	}
	payload, err := u.Verify(k)
	return payload, k, err
}

// signTyped signs a token of type typ and makes the verifier's checks on it, except the signature, so that a token that
// verifiers would refuse is never issued. max is the verifiers' limit in bytes. Codes: too_large, bad_request if read
// refuses, unavailable if the key does not sign.
func signTyped(s *jose.Signer, typ string, max int, payload []byte, read func(payload []byte) error) (string, error) {
	raw, err := s.Sign(typ, payload)
	if err != nil {
		return "", err
	}
	return raw, checkSigned(raw, typ, max, read)
}

// checkSigned makes the verifiers' checks of form and claims on a token that was just signed.
func checkSigned(raw, typ string, max int, read func(payload []byte) error) error {
	u, err := jose.ParseJWS(raw, max)
	if err == nil && !jose.SameType(u.Typ, typ) {
		err = refuseTyp(u.Typ, typ)
	}
	if err == nil {
		err = read(u.UnverifiedPayload())
	}
	return signerError(err, typ)
}

// signerError converts the refusal of a verifier into the error of a signer, whose input is invalid. Codes: too_large,
// bad_request.
func signerError(err error, typ string) error {
	switch code := watchword.CodeOf(err); code {
	case "":
		return nil
	case watchword.TooLarge:
		return watchword.Wrap(err, watchword.TooLarge, "the %s is larger than its verifiers accept", typ)
	default:
		return watchword.Wrap(err, watchword.BadRequest, "the %s must be one that its verifiers accept: %s: %s", typ, code, err)
	}
}

// invalidUTF8Claim is the error of a claim that is not valid UTF-8: encoding/json would replace its bytes.
func invalidUTF8Claim() error {
	return refuse(watchword.TokenMalformed, "a claim is not valid UTF-8")
}

// numericDate is a NumericDate without fraction (RFC 7519 §2): seconds since 1970.
type numericDate int64

// UnmarshalJSON accepts only JSON integers: no fraction, no exponent.
func (u *numericDate) UnmarshalJSON(b []byte) error {
	n, err := jose.Int(b)
	*u = numericDate(n)
	return err
}

func (u numericDate) time() time.Time { return time.Unix(int64(u), 0) }

func toNumericDate(t time.Time) numericDate { return numericDate(t.Unix()) }

// validity is the time claims of a token: iat, exp and nbf (RFC 7519 §4.1). nbf is 0 where absent.
type validity struct {
	iat, exp, nbf numericDate
}

// member parses the claim called name, if it is iat, exp or nbf.
func (w *validity) member(name string, v jsontext.Value) error {
	switch name {
	case "iat":
		return readInt(&w.iat, v)
	case "exp":
		return readInt(&w.exp, v)
	case "nbf":
		return readInt(&w.nbf, v)
	default:
		return nil // unknown claims are ignored (RFC 7519 §4)
	}
}

// readString and readInt parse one claim. A claim that is present must have its type; null is refused.
func readString[T ~string](into *T, v jsontext.Value) error {
	s, err := jose.String(v)
	*into = T(s)
	return err
}

func readInt[T ~int64](into *T, v jsontext.Value) error {
	n, err := jose.Int(v)
	*into = T(n)
	return err
}

// readExpected is readString for a claim that usually has the value expected: then nothing is allocated.
func readExpected[T ~string](into *T, v jsontext.Value, expected T) error {
	if len(v) == len(expected)+2 && v[0] == '"' && string(v[1:len(v)-1]) == string(expected) {
		*into = expected
		return nil
	}
	return readString(into, v)
}

// check compares the time claims with now. iat and exp are required; exp is after iat by at most lifetime (0: any); exp plus
// leeway is in the future; iat and nbf are at most earlyLeeway in the future. Codes: token_malformed, token_lifetime,
// token_expired, token_early.
func (w validity) check(now time.Time, lifetime, leeway, earlyLeeway time.Duration) error {
	switch {
	case w.iat <= 0 || w.exp <= 0:
		return refuse(watchword.TokenMalformed, "iat and exp are required, as integers of seconds since 1970")
	case w.exp <= w.iat || lifetime > 0 && w.exp-w.iat > numericDate(lifetime/time.Second): // compared in seconds: as a Duration, centuries overflow to negative values
		if lifetime <= 0 {
			return refuse(watchword.TokenLifetime, "exp must be after iat")
		}
		return refuse(watchword.TokenLifetime, "exp must be after iat, by at most %d seconds", lifetime/time.Second)
	case !now.Before(w.exp.time().Add(leeway)):
		return refuse(watchword.TokenExpired, "exp has passed, with a leeway of %d seconds", leeway/time.Second)
	case w.iat.time().After(now.Add(earlyLeeway)) || w.nbf.time().After(now.Add(earlyLeeway)):
		return refuse(watchword.TokenEarly, "iat or nbf is more than %d seconds in the future", earlyLeeway/time.Second)
	}
	return nil
}

// checkJTI refuses a jti that is absent or over 128 bytes.
func checkJTI(jti string) error {
	if jti == "" || len(jti) > 128 {
		return refuse(watchword.TokenMalformed, "jti is required, with at most 128 bytes")
	}
	return nil
}

// refuse returns a refusal of a token. Its detail ends with the page that explains the code.
func refuse(c watchword.Code, format string, a ...any) error {
	return watchword.Refuse(c, "%s; see docs/errors.md", fmt.Sprintf(format, a...))
}

// refuseTyp returns the refusal of a token of another type than expected. Code: token_kind.
func refuseTyp(got, want string) error {
	if got == "" || len(got) > 64 {
		return refuse(watchword.TokenKind, "typ must be %q", want)
	}
	return refuse(watchword.TokenKind, "typ must be %q, not %q", want, got)
}

func checkIssuer(got, want string) error {
	if got != want {
		return refuse(watchword.IssuerMismatch, "iss must be exactly %q", want)
	}
	return nil
}

func checkAudience(got audience, want string) error {
	if len(got) != 1 || got[0] != want {
		return refuse(watchword.AudienceMismatch, "aud must be exactly %q", want)
	}
	return nil
}

// audience is the aud claim: a string, or an array of strings (RFC 7519 §4.1.3).
type audience []string

// UnmarshalJSON accepts both forms.
func (a *audience) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		ss, err := jose.Strings(b)
		*a = ss
		return err
	}
	s, err := jose.String(b)
	*a = audience{s}
	return err
}

// LooksLikeAssertion reports whether the typ of raw is that of a client assertion. It checks nothing else: for endpoints
// that accept both access tokens and assertions.
func LooksLikeAssertion(raw string) bool {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	return err == nil && jose.SameType(u.Typ, TypAssertion)
}

// UnverifiedIssuer returns the issuer that an access token (iss) or a client assertion (aud) names; empty where it cannot be
// read. Nothing is verified: it may choose the keys that the token is verified with, and nothing else.
func UnverifiedIssuer(raw string) (issuer string) {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	if err != nil {
		return ""
	}
	claim := "iss"
	if jose.SameType(u.Typ, TypAssertion) {
		claim = "aud"
	}
	err = jose.Walk(u.UnverifiedPayload(), func(name string, v jsontext.Value) (err error) {
		if name == claim && v.Kind() == '"' {
			issuer, err = jose.String(v)
		}
		return err
	})
	if err != nil {
		return ""
	}
	return issuer
}
