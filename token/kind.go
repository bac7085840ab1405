package token

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// The typ header of each kind (RFC 8725 §3.11). No two kinds share one.
const (
	TypAssertion  = "client-authentication+jwt"
	TypAccess     = "at+jwt"
	TypEnrollment = "vnd.watchword.enrollment+jwt"
	TypCommand    = "vnd.watchword.command+jwt"
	TypConfig     = "vnd.watchword.config+jwt"
	TypReceipt    = "vnd.watchword.receipt+jwt"
	TypOrder      = "vnd.watchword.order+jwt"
	TypTrust      = "vnd.watchword.trust+jwt"
	TypDPoP       = "dpop+jwt"
	TypTime       = "vnd.watchword.time+jwt"
	TypRekey      = "vnd.watchword.rekey+jwt"
)

// The longest life of each kind, from iat to exp.
const (
	AssertionLifetime = 300 * time.Second
	ProofLifetime     = 300 * time.Second
	CommandLifetime   = 24 * time.Hour // the default is 120 s; a caller may ask for up to this
	ConfigLifetime    = 30 * 24 * time.Hour
	TrustLifetime     = 90 * 24 * time.Hour
	DPoPLifetime      = 60 * time.Second // from iat: a proof has no exp
	TimeLifetime      = 60 * time.Second
	RekeyLifetime     = 300 * time.Second
)

// Skew is how far another's clock may be from ours.
const Skew = 60 * time.Second

// KeySet is the public keys that count for one kind, by key id. It is read only.
type KeySet map[watchword.KeyID]*jose.PublicKey

// NewKeySet returns the set of ks.
func NewKeySet(ks ...*jose.PublicKey) KeySet {
	s := make(KeySet, len(ks))
	for _, k := range ks {
		s[k.ID()] = k
	}
	return s
}

// parseTyped reads raw, which must be of kind typ, and finds the key of keys that its
// kid names. Its signature is not checked. Codes: too_large, token_malformed,
// algorithm_invalid, token_kind, key_unknown.
func parseTyped(raw string, max int, typ string, keys KeySet) (*jose.Unverified, *jose.PublicKey, error) {
	u, err := jose.ParseJWS(raw, max)
	if err != nil {
		return nil, nil, err
	}
	if !jose.SameType(u.Typ, typ) {
		return nil, nil, watchword.Refuse(watchword.TokenKind, "this is no %s", typ)
	}
	k, ok := keys[watchword.KeyID(u.Kid)]
	if !ok {
		return nil, nil, watchword.Refuse(watchword.KeyUnknown, "kid names no key that counts here")
	}
	return u, k, nil
}

// verifyTyped is [parseTyped], and verifies the signature. Codes: those of parse, signature_invalid.
func verifyTyped(raw string, max int, typ string, keys KeySet) ([]byte, *jose.PublicKey, error) {
	u, k, err := parseTyped(raw, max, typ, keys)
	if err != nil {
		return nil, nil, err
	}
	payload, err := u.Verify(k)
	return payload, k, err
}

// signTyped makes a token of kind typ, and runs on its finished bytes the check that its
// readers run, all but the signature: what they would refuse is never given away.
// max is the readers' bound in bytes. Codes: too_large, bad_request where read
// refuses, unavailable where the key does not sign.
func signTyped(s *jose.Signer, typ string, max int, payload []byte, read func(payload []byte) error) (string, error) {
	raw, err := s.Sign(typ, payload)
	if err != nil {
		return "", err
	}
	return raw, checkSigned(raw, typ, max, read)
}

// checkSigned runs the readers' check of shape and claims on a token that was just signed.
func checkSigned(raw, typ string, max int, read func(payload []byte) error) error {
	u, err := jose.ParseJWS(raw, max)
	if err == nil && !jose.SameType(u.Typ, typ) {
		err = watchword.Refuse(watchword.TokenKind, "this is no %s", typ)
	}
	if err == nil {
		err = read(u.UnverifiedPayload())
	}
	return signerError(err, typ)
}

// signerError is the error of who signs where the reader refuses: for the signer it is
// its own input that is wrong, not a token. Codes: too_large, bad_request.
func signerError(err error, typ string) error {
	switch code := watchword.CodeOf(err); code {
	case "":
		return nil
	case watchword.TooLarge:
		return watchword.Wrap(err, watchword.TooLarge, "the %s is too large for its readers", typ)
	default:
		return watchword.Wrap(err, watchword.BadRequest, "the readers of this %s would refuse it: %s: %s", typ, code, err)
	}
}

// invalidUTF8Claim is the error of a claim that JSON cannot hold as it is: encoding/json
// replaces what is no UTF-8.
func invalidUTF8Claim() error {
	return watchword.Refuse(watchword.TokenMalformed, "a claim is no UTF-8")
}

// numericDate is a NumericDate without fraction (RFC 7519 §2), as every kind of ours has.
type numericDate int64

// UnmarshalJSON takes JSON integers alone: no fraction, no exponent.
func (u *numericDate) UnmarshalJSON(b []byte) error {
	n, err := jose.Int(b)
	*u = numericDate(n)
	return err
}

func (u numericDate) time() time.Time { return time.Unix(int64(u), 0) }

func toNumericDate(t time.Time) numericDate { return numericDate(t.Unix()) }

// validity is the times of a paper. nbf is 0 where absent.
type validity struct {
	iat, exp, nbf numericDate
}

// member reads the claim called name, if it is one of the window's.
func (w *validity) member(name string, v jsontext.Value) error {
	switch name {
	case "iat":
		return readInt(&w.iat, v)
	case "exp":
		return readInt(&w.exp, v)
	case "nbf":
		return readInt(&w.nbf, v)
	default:
		return nil // claims that we do not know are passed over (RFC 7519 §4)
	}
}

// readString and number read one claim. A claim that is there has its type: null is none.
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

// readExpected is text for a claim that nearly always says likely: then it costs nothing.
func readExpected[T ~string](into *T, v jsontext.Value, expected T) error {
	if len(v) == len(expected)+2 && v[0] == '"' && string(v[1:len(v)-1]) == string(expected) {
		*into = expected
		return nil
	}
	return readString(into, v)
}

// check holds the window against now: iat and exp must be there, exp after iat
// and no more than life after it (0: any), exp in the future but for late, iat
// and nbf not in the future but for early. Codes: token_malformed,
// token_lifetime, token_expired, token_early.
func (w validity) check(now time.Time, lifetime, leeway, earlyLeeway time.Duration) error {
	switch {
	case w.iat <= 0 || w.exp <= 0:
		return watchword.Refuse(watchword.TokenMalformed, "iat and exp are mandatory")
	case w.exp <= w.iat || lifetime > 0 && w.exp-w.iat > numericDate(lifetime/time.Second): // in seconds: as a Duration, centuries turn negative
		return watchword.Refuse(watchword.TokenLifetime, "exp must lie after iat, by no more than the kind allows")
	case !now.Before(w.exp.time().Add(leeway)):
		return watchword.Refuse(watchword.TokenExpired, "exp has passed")
	case w.iat.time().After(now.Add(earlyLeeway)) || w.nbf.time().After(now.Add(earlyLeeway)):
		return watchword.Refuse(watchword.TokenEarly, "iat or nbf lies in the future")
	}
	return nil
}

// checkJTI refuses a jti that is absent or over 128 bytes.
func checkJTI(jti string) error {
	if jti == "" || len(jti) > 128 {
		return watchword.Refuse(watchword.TokenMalformed, "jti must have 1 to 128 bytes")
	}
	return nil
}

func checkIssuer(got, want string) error {
	if got != want {
		return watchword.Refuse(watchword.IssuerMismatch, "iss is not the expected one")
	}
	return nil
}

func checkAudience(got audience, want string) error {
	if len(got) != 1 || got[0] != want {
		return watchword.Refuse(watchword.AudienceMismatch, "aud must be the one who reads this, and nobody else")
	}
	return nil
}

// audience is the aud claim: a string, or an array of strings (RFC 7519 §4.1.3).
type audience []string

// UnmarshalJSON takes both forms.
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

// LooksLikeAssertion reports whether raw says of itself that it is a client
// assertion: for a door that takes both kinds, and before any check.
func LooksLikeAssertion(raw string) bool {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	return err == nil && jose.SameType(u.Typ, TypAssertion)
}
