package enroll

import (
	"crypto/rand"
	"strings"

	"github.com/watchword-iot/watchword"
)

// userAlphabet has no vowels, so that no code is a word, and nothing that looks
// like something else (RFC 8628 §6.1). Eight of twenty are 34 bits: who guesses
// needs an operator's permission to try, and the thumbprint besides.
const (
	userAlphabet = "BCDFGHJKLMNPQRSTVWXZ"
	userLength   = 8
)

// newUserCode returns a code that people read to each other.
func newUserCode() string {
	out := make([]byte, 0, userLength)
	for len(out) < userLength {
		var b [2 * userLength]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		for _, c := range b {
			if len(out) < userLength && int(c) < 256-256%len(userAlphabet) { // the rest would favour some
				out = append(out, userAlphabet[int(c)%len(userAlphabet)])
			}
		}
	}
	return string(out)
}

// FormatUserCode returns a code as it is shown: BCDF-GHJK.
func FormatUserCode(code string) string {
	if len(code) != userLength {
		return code
	}
	return code[:userLength/2] + "-" + code[userLength/2:]
}

// ParseUserCode reads what a person typed: in any case, with or without the dash.
// Code: bad_request.
func ParseUserCode(typed string) (string, error) {
	code := strings.Map(func(r rune) rune {
		switch {
		case r == '-':
			return -1
		case 'a' <= r && r <= 'z': // these alone: other letters become some of ours too
			return r - 'a' + 'A'
		}
		return r
	}, typed)
	if len(code) != userLength || strings.Trim(code, userAlphabet) != "" {
		return "", watchword.RefuseField("user_code", "must be 8 letters of %s, as BCDF-GHJK", userAlphabet)
	}
	return code, nil
}
