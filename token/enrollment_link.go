package token

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
)

// EnrollmentLink returns the enrollment link of a code. The secret part is in the fragment, which HTTP clients do not send.
func EnrollmentLink(publicURL, code, pin string) string {
	return publicURL + "/e#code=" + code + "&pin=" + pin
}

// ParseEnrollmentLink parses a link of exactly the form that [EnrollmentLink] returns: the server's URL, the code of 22 and the pin of 43
// characters. Code: bad_request, whose detail never contains the link.
func ParseEnrollmentLink(link string) (server, code, pin string, err error) {
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil {
		return "", "", "", watchword.RefuseField("link", "must be a URL")
	}
	q, err := url.ParseQuery(u.Fragment)
	base, ok := strings.CutSuffix(u.EscapedPath(), "/e")
	bare := u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && !u.ForceQuery
	if err != nil || !ok || !bare || len(q) != 2 || len(q["code"]) != 1 || len(q["pin"]) != 1 || !isBase64URL(q.Get("pin"), 32) || !WellFormedCode(q.Get("code")) {
		return "", "", "", watchword.RefuseField("link", "must be https://HOST/e#code=…&pin=…")
	}
	return "https://" + u.Host + base, q.Get("code"), q.Get("pin"), nil
}

// CodeDigest returns the SHA-256 of a code's characters, which the store and the enrollment proof have.
func CodeDigest(code string) [32]byte { return sha256.Sum256([]byte(code)) }

// WellFormedCode reports whether s is 128 bits in strict base64url.
func WellFormedCode(s string) bool { return isBase64URL(s, 16) }

func isBase64URL(s string, bytes int) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == bytes && len(s) == base64.RawURLEncoding.EncodedLen(bytes)
}
