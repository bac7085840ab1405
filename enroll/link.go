package enroll

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
)

// The life of a code: what it is unless told otherwise, and the longest.
const (
	CodeLife    = 24 * time.Hour
	CodeLifeMax = 30 * 24 * time.Hour
)

// Link is what an operator hands to whoever sets up a device. URL holds the code
// in its fragment, which no client sends.
type Link struct {
	URL     string
	Code    string // 22 characters of base64url: 128 bits
	Pin     string // base64url SHA-256 of the root key's SPKI
	Expires time.Time
}

func newLink(publicURL, code, pin string, expires time.Time) Link {
	return Link{URL: publicURL + "/e#code=" + code + "&pin=" + pin, Code: code, Pin: pin, Expires: expires}
}

// ParseLink reads what newLink wrote: the server's URL, the code and the pin.
// Code: bad_request, never repeating the link.
func ParseLink(link string) (server, code, pin string, err error) {
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil {
		return "", "", "", watchword.RefuseField("link", "is no URL")
	}
	q, err := url.ParseQuery(u.Fragment)
	base, ok := strings.CutSuffix(u.Path, "/e")
	if err != nil || !ok || u.Scheme != "https" || u.Host == "" || len(q.Get("pin")) != 43 || !wellFormed(q.Get("code")) {
		return "", "", "", watchword.RefuseField("link", "must look like https://HOST/e#code=…&pin=…")
	}
	return "https://" + u.Host + base, q.Get("code"), q.Get("pin"), nil
}

// HashCode returns the SHA-256 of a code's characters, as the store and the
// enrollment proof know it.
func HashCode(code string) [32]byte { return sha256.Sum256([]byte(code)) }

// wellFormed reports whether s is 128 bits in strict base64url.
func wellFormed(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 16 && len(s) == 22
}
