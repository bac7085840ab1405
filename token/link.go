package token

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Link returns the enrollment link of a code: what must stay secret stands in
// the fragment, which no client sends.
func Link(publicURL, code, pin string) string {
	return publicURL + "/e#code=" + code + "&pin=" + pin
}

// ParseLink reads what [Link] wrote: the server's URL, the code of 22 and the
// pin of 43 characters. Code: bad_request, never repeating the link.
func ParseLink(link string) (server, code, pin string, err error) {
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil {
		return "", "", "", watchword.RefuseField("link", "is no URL")
	}
	q, err := url.ParseQuery(u.Fragment)
	base, ok := strings.CutSuffix(u.Path, "/e")
	if err != nil || !ok || u.Scheme != "https" || u.Host == "" || len(q.Get("pin")) != 43 || !WellFormedCode(q.Get("code")) {
		return "", "", "", watchword.RefuseField("link", "must look like https://HOST/e#code=…&pin=…")
	}
	return "https://" + u.Host + base, q.Get("code"), q.Get("pin"), nil
}

// HashCode returns the SHA-256 of a code's characters, as the store and the
// enrollment proof know it.
func HashCode(code string) [32]byte { return sha256.Sum256([]byte(code)) }

// WellFormedCode reports whether s is 128 bits in strict base64url.
func WellFormedCode(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 16 && len(s) == 22
}
