package jose

import (
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// header is a JOSE header. It has the members that we issue or must accept, and every other is refused: jwk, jku, x5u, x5c
// name unverified keys; crit, b64 and zip change the meaning of the bytes (RFC 8725 §3).
type header struct {
	alg, enc, typ, cty, kid string
	epk, jwk                jsontext.Value
}

// headerKind is which kind of header is read: each takes members that the others refuse.
type headerKind byte

const (
	jwsHeader   headerKind = iota // a JWS: alg, typ, kid
	jweHeader                     // a JWE: enc, epk and cty beside
	proofHeader                   // a DPoP proof: alg, typ, jwk (RFC 9449 §4.2)
)

func parseHeader(b []byte, f headerKind) (h header, err error) {
	err = Walk(b, func(name string, v jsontext.Value) (err error) {
		switch {
		case name == "alg":
			h.alg, err = nonEmptyString(v)
		case name == "typ":
			h.typ, err = nonEmptyString(v)
		case name == "kid" && f != proofHeader:
			h.kid, err = nonEmptyString(v)
		case name == "cty" && f == jweHeader:
			h.cty, err = nonEmptyString(v)
		case name == "enc" && f == jweHeader:
			h.enc, err = nonEmptyString(v)
		case name == "epk" && f == jweHeader:
			h.epk = v
		case name == "jwk" && f == proofHeader:
			h.jwk = v
		default:
			return malformed(nil, "the header must not have other members than the ones that are defined for its typ")
		}
		return err
	})
	if err == nil && len(h.kid) > 128 {
		err = malformed(nil, "kid must have at most 128 bytes")
	}
	return h, err
}

// appendMember writes a member of a header as [parseHeader] takes it back: nothing for
// an empty value, which a header does not have. Code: bad_request for what is not valid UTF-8.
func appendMember(head []byte, name, value string) ([]byte, error) {
	if value == "" {
		return head, nil
	}
	head, err := jsontext.AppendQuote(append(append(append(head, `,"`...), name...), `":`...), value)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.BadRequest, "%s must be UTF-8", name)
	}
	return head, nil
}

// nonEmptyString is String for a header's values: one that is there says something. An
// empty kid is no absent one.
func nonEmptyString(v jsontext.Value) (string, error) {
	s, err := String(v)
	if err == nil && s == "" {
		err = malformed(nil, "the members of the header must not be empty")
	}
	return s, err
}

// SameType reports whether two typ or cty values name one media type (RFC 7515
// §4.1.9): case does not count, and "application/" may be left out. Case is that
// of ASCII alone: in Unicode a long s is an s too, and "truſt" would be a trust.
func SameType(got, want string) bool {
	return equalFoldASCII(trimApplication(got), trimApplication(want))
}

func trimApplication(s string) string {
	const prefix = "application/"
	if len(s) > len(prefix) && equalFoldASCII(s[:len(prefix)], prefix) && !strings.Contains(s[len(prefix):], "/") {
		return s[len(prefix):]
	}
	return s
}

func equalFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func algorithmInvalid() error {
	return watchword.Refuse(watchword.AlgorithmInvalid, "alg must be that of the key: ES256 for P-256, Ed25519 or EdDSA for Ed25519 (in a JWE alg ECDH-ES and enc A256GCM); see docs/errors.md")
}
