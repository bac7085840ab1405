package enroll

import (
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// The life of a code: what it is by default, and the longest; and the longest life of a key that has an end.
const (
	DefaultCodeLifetime = 24 * time.Hour
	MaxCodeLifetime     = 30 * 24 * time.Hour
	MaxKeyLifetime      = 10 * 365 * 24 * time.Hour
)

// Link is what an operator hands to anyone who sets up a device. URL holds the code
// in its fragment, which no client sends.
type Link struct {
	URL     string
	Code    string // 22 characters of base64url: 128 bits
	Pin     string // base64url SHA-256 of the root key's SPKI
	Expires time.Time
	KeyEnds time.Time // end of the key that enrolls with it; zero for none
}

func newLink(publicURL, code, pin string, expires, keyEnds time.Time) Link {
	return Link{URL: token.EnrollmentLink(publicURL, code, pin), Code: code, Pin: pin, Expires: expires, KeyEnds: keyEnds}
}

// Lifetimes are those of a link and of the key that enrolls with it.
type Lifetimes struct {
	Link time.Duration // 0 means [DefaultCodeLifetime]
	Key  time.Duration // from the making of the link; 0 means that the key has no end
	// KeyEnds is the latest end that the key may have; zero for none.
	KeyEnds time.Time
}

// ends returns when a link that is made now expires, and the end of its key. A link does not outlive its key. Code: bad_request.
func (l Lifetimes) ends(now time.Time) (link, key time.Time, err error) {
	if l.Link == 0 {
		l.Link = DefaultCodeLifetime
	}
	if l.Link < time.Second || l.Link > MaxCodeLifetime {
		return link, key, watchword.RefuseField("ttl", "must be from 1 second to 30 days")
	}
	if key, err = l.keyEnd(now); err != nil {
		return link, key, err
	}
	link = now.Add(l.Link)
	if !key.IsZero() && key.Before(link) {
		link = key
	}
	return link, key, nil
}

// keyEnd returns the end of a key that is given now; zero for none. Code: bad_request.
func (l Lifetimes) keyEnd(now time.Time) (time.Time, error) {
	if l.Key == 0 {
		return l.KeyEnds, nil
	}
	if l.Key < time.Second || l.Key > MaxKeyLifetime {
		return time.Time{}, watchword.RefuseField("key_ttl", "must be from 1 second to 10 years")
	}
	return watchword.EarlierEnd(now.Add(l.Key).Truncate(time.Second), l.KeyEnds), nil
}
