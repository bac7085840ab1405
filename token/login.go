package token

import (
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// loginContext replaces the login code in the first proof of a login, when the client has no code yet.
const loginContext = "watchword-login"

// LoginHashClaim returns the code_hash of the proof with which a client requests a login.
func LoginHashClaim() string { return CodeHashClaim(loginContext) }

// SignLogin signs the proof that the client of a person without a link holds the signing key that an operator is to approve:
// for one code (as its base64url SHA-256), one issuer, and the root whose pin the client saw. Its typ differs from that of an
// enrollment proof, so the proof of a device never brings in an operator, nor the reverse. Codes: bad_request if the server
// would refuse it; unavailable.
func SignLogin(s *jose.Signer, issuer, codeHash, pin string, now time.Time) (string, error) {
	return signPossession(s, issuer, possession{typ: TypLogin, codeHash: codeHash, pins: []string{pin}}, now)
}

// VerifyLogin verifies the proof with the new key itself, the signature last. pins are those of the server's roots: two while
// a new one is introduced. Codes: as [VerifyEnrollment]; proof_invalid also if the client saw another root: then its connection was
// not to this server.
func VerifyLogin(raw string, key *jose.PublicKey, issuer, codeHash string, pins []string, now time.Time) error {
	_, err := verifyPossession(raw, key, issuer, possession{typ: TypLogin, codeHash: codeHash, pins: pins}, now)
	return err
}

// LoginRequest is what the screen of a person without a link shows, and what the approver compares.
type LoginRequest struct {
	Server   string // URL, without a slash at its end
	UserCode string // XXXX-XXXX
	Key      watchword.KeyID
	Pin      string // of the root key that the client saw
}

// Link returns the request as a link. What identifies the key is in the fragment, which HTTP clients do not send.
func (r LoginRequest) Link() string {
	return r.Server + "/login#code=" + r.UserCode + "&key=" + string(r.Key) + "&pin=" + r.Pin
}

// ParseLoginLink parses a link of exactly the form that [LoginRequest.Link] returns. Code: bad_request.
func ParseLoginLink(link string) (LoginRequest, error) {
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil {
		return LoginRequest{}, watchword.RefuseField("link", "must be a URL")
	}
	q, err := url.ParseQuery(u.Fragment)
	base, ok := strings.CutSuffix(u.EscapedPath(), "/login")
	bare := u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && !u.ForceQuery
	if err != nil || !ok || !bare || len(q) != 3 || len(q["code"]) != 1 || len(q["key"]) != 1 || len(q["pin"]) != 1 || !isUserCode(q.Get("code")) || !isBase64URL(q.Get("key"), 32) || !isBase64URL(q.Get("pin"), 32) {
		return LoginRequest{}, watchword.RefuseField("link", "must be https://HOST/login#code=…&key=…&pin=…")
	}
	return LoginRequest{Server: "https://" + u.Host + base, UserCode: q.Get("code"), Key: watchword.KeyID(q.Get("key")), Pin: q.Get("pin")}, nil
}

// isUserCode reports whether s has the form of a user code: XXXX-XXXX in capitals.
func isUserCode(s string) bool {
	return len(s) == 9 && s[4] == '-' && strings.Trim(s[:4]+s[5:], "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}
