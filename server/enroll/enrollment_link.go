package enroll

import (
	"time"

	"github.com/watchword-iot/watchword/token"
)

// The life of a code: what it is by default, and the longest.
const (
	DefaultCodeLifetime = 24 * time.Hour
	MaxCodeLifetime     = 30 * 24 * time.Hour
)

// Link is what an operator hands to anyone who sets up a device. URL holds the code
// in its fragment, which no client sends.
type Link struct {
	URL     string
	Code    string // 22 characters of base64url: 128 bits
	Pin     string // base64url SHA-256 of the root key's SPKI
	Expires time.Time
}

func newLink(publicURL, code, pin string, expires time.Time) Link {
	return Link{URL: token.EnrollmentLink(publicURL, code, pin), Code: code, Pin: pin, Expires: expires}
}
