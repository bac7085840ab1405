package enroll

import (
	"crypto/rand"
	"strings"

	"github.com/watchword-iot/watchword"
)

// userAlphabet has no vowels, so that no code is a word, and no similar-looking characters (RFC 8628 §6.1). Eight of twenty
// are 34 bits: to guess, an attacker needs an operator's permission, and the thumbprint too.
const (
	userCodeAlphabet = "BCDFGHJKLMNPQRSTVWXZ"
	userCodeLength   = 8
)

// newUserCode returns a code that people read to each other.
func newUserCode() string {
	out := make([]byte, 0, userCodeLength)
	for len(out) < userCodeLength {
		var b [2 * userCodeLength]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		for _, c := range b {
			if len(out) < userCodeLength && int(c) < 256-256%len(userCodeAlphabet) { // the rest would favour some
				out = append(out, userCodeAlphabet[int(c)%len(userCodeAlphabet)])
			}
		}
	}
	return string(out)
}

// FormatUserCode returns a code as it is shown: BCDF-GHJK.
func FormatUserCode(code string) string {
	if len(code) != userCodeLength {
		return code
	}
	return code[:userCodeLength/2] + "-" + code[userCodeLength/2:]
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
	if len(code) != userCodeLength || strings.Trim(code, userCodeAlphabet) != "" {
		return "", watchword.RefuseField("user_code", "must be 8 letters of %s, as BCDF-GHJK", userCodeAlphabet)
	}
	return code, nil
}
