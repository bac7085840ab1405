package jose

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"

	"github.com/watchword-iot/watchword"
)

// b64 is strict base64url: no padding, no line breaks, no stray trailing bits
// (RFC 7515 §2), so that one value has one encoding.
var b64 = base64.RawURLEncoding.Strict()

func decode(s []byte) ([]byte, error) {
	out := make([]byte, b64.DecodedLen(len(s)))
	return out, decodeInto(out, s)
}

// decodeInto decodes s into out, which must have just the length that s gives.
func decodeInto(out, s []byte) error {
	if bytes.IndexByte(s, '\n') >= 0 || bytes.IndexByte(s, '\r') >= 0 { // which the standard library passes over
		return malformed(nil, "each part must be base64url without padding")
	}
	if n, err := b64.Decode(out, s); err != nil || n != len(out) {
		return malformed(err, "each part must be base64url without padding")
	}
	return nil
}

// Hash returns the base64url SHA-256 of b, 43 characters, as in claims.
func Hash(b []byte) string {
	sum := sha256.Sum256(b)
	return b64.EncodeToString(sum[:])
}

// HashString returns the base64url SHA-256 of a compact token's bytes.
func HashString(raw string) string { return Hash([]byte(raw)) }

func tooLarge(what string, max int) error {
	return watchword.Refuse(watchword.TooLarge, "%s must have at most %d bytes", what, max)
}
