package token

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// DPoP is a verified proof of possession (RFC 9449 §4.2). JTI is not marked used yet, and Nonce is not compared; the caller
// must do both.
type DPoP struct {
	Key    watchword.KeyID // the RFC 7638 thumbprint of the key in its header
	JTI    string
	Nonce  string // empty if it has none
	Issued time.Time
}

type dpopClaims struct {
	jti, htm, htu, ath, nonce string
	validity
}

func (c *dpopClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "jti":
		return readString(&c.jti, v)
	case "htm":
		return readString(&c.htm, v)
	case "htu":
		return readString(&c.htu, v)
	case "ath":
		return readString(&c.ath, v)
	case "nonce":
		return readString(&c.nonce, v)
	}
	return c.validity.member(name, v)
}

// SignDPoP signs a proof for one request. uri is the target; query and fragment are removed. nonce is the server's, or
// empty; accessToken is the token of the request, or empty at the token endpoint. Codes: bad_request if the server would
// refuse it; unavailable.
func SignDPoP(s *jose.Signer, method, uri, nonce, accessToken string, now time.Time) (string, error) {
	uri, _, _ = strings.Cut(uri, "#")
	uri, _, _ = strings.Cut(uri, "?")
	m := map[string]any{"jti": watchword.NewNonce(), "htm": method, "htu": uri, "iat": now.Unix()}
	if nonce != "" {
		m["nonce"] = nonce
	}
	if accessToken != "" {
		m["ath"] = jose.HashString(accessToken)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	raw, err := s.SignProof(TypDPoP, b)
	if err != nil {
		return "", err
	}
	_, _, _, err = readDPoP(raw, method, func(htu string) bool { return sameURI(htu, uri) }, accessToken, now)
	return raw, signerError(err, TypDPoP)
}

// VerifyDPoP verifies a proof for one request (RFC 9449 §4.3): typ, the signature with the key that it contains, method,
// target URI, the hash of the request's access token (empty at the token endpoint), and that it was signed at most
// [DPoPLifetime] ago, plus or minus [Skew]. The caller must check that the jti is new, that the nonce is the server's, and
// that the key is the expected one.
//
// Code: dpop_invalid, with the reason in words.
func VerifyDPoP(raw, method, uri, accessToken string, now time.Time) (DPoP, error) {
	return verifyDPoP(raw, method, func(htu string) bool { return sameURI(htu, uri) }, accessToken, now)
}

// Origins is the set of a server's addresses, each https://host:port: a proof may name any of them. The Host header of a
// request is not used.
type Origins map[string]struct{}

// NewOrigins returns the origins of those urls that have one; paths are ignored.
func NewOrigins(urls ...string) Origins {
	o := Origins{}
	for _, u := range urls {
		if at, _, ok := splitURI(u); ok {
			o[at] = struct{}{}
		}
	}
	return o
}

// VerifyDPoP is the function of that name for a server with several addresses: htu must be path at one of them.
func (o Origins) VerifyDPoP(raw, method, path, accessToken string, now time.Time) (DPoP, error) {
	return verifyDPoP(raw, method, func(htu string) bool {
		at, p, ok := splitURI(htu)
		_, isOurs := o[at]
		return ok && isOurs && p == path
	}, accessToken, now)
}

func verifyDPoP(raw, method string, same func(htu string) bool, accessToken string, now time.Time) (DPoP, error) {
	u, k, c, err := readDPoP(raw, method, same, accessToken, now)
	if err != nil {
		return DPoP{}, err
	}
	if _, err := u.Verify(k); err != nil {
		return DPoP{}, dpopInvalid(err, "the signature does not verify with the key in jwk")
	}
	return DPoP{Key: k.ID(), JTI: c.jti, Nonce: c.nonce, Issued: c.iat.time()}, nil
}

// readDPoP makes all checks except the signature.
func readDPoP(raw, method string, same func(htu string) bool, accessToken string, now time.Time) (u *jose.Unverified, k *jose.PublicKey, c dpopClaims, err error) {
	no := func(err error, why string) (*jose.Unverified, *jose.PublicKey, dpopClaims, error) {
		return nil, nil, dpopClaims{}, dpopInvalid(err, why)
	}
	if u, k, err = jose.ParseProof(raw, watchword.MaxToken); err != nil {
		return no(err, "it must be a compact JWS whose header has exactly typ, alg and jwk, a public key")
	}
	if !jose.SameType(u.Typ, TypDPoP) {
		return no(nil, "typ must be \"dpop+jwt\"")
	}
	if err := jose.Walk(u.UnverifiedPayload(), c.member); err != nil {
		return no(err, "the claims must be jti, htm, htu and iat, and ath and nonce where required")
	}
	age := now.Sub(c.iat.time())
	switch {
	case checkJTI(c.jti) != nil:
		return no(nil, "jti is required, with at most 128 bytes")
	case len(c.nonce) > 128:
		return no(nil, "nonce must have at most 128 bytes")
	case c.iat <= 0:
		return no(nil, "iat is required")
	case age > DPoPLifetime+Skew:
		return no(nil, fmt.Sprintf("iat must be at most %d seconds ago", (DPoPLifetime+Skew)/time.Second))
	case age < -Skew:
		return no(nil, fmt.Sprintf("iat must be at most %d seconds in the future", Skew/time.Second))
	case c.htm != method:
		return no(nil, fmt.Sprintf("htm must be %q", method))
	case !same(c.htu):
		return no(nil, "htu must be the URL of the request without query, at an address of this server")
	case accessToken != "" && subtle.ConstantTimeCompare([]byte(c.ath), []byte(jose.HashString(accessToken))) != 1:
		return no(nil, "ath must be the base64url SHA-256 of the access token")
	}
	return u, k, c, nil
}

func dpopInvalid(err error, why string) error {
	return watchword.Wrap(err, watchword.DPoPInvalid, "the DPoP proof is not valid: %s; see docs/errors.md", why)
}

// sameURI compares two URIs without query and fragment, after the normalization of RFC 3986 §6.2.2 and §6.2.3 as far as
// http needs it: case of scheme and host, default port, empty path.
func sameURI(a, b string) bool {
	x, xpath, okx := splitURI(a)
	y, ypath, oky := splitURI(b)
	return okx && oky && x == y && xpath == ypath
}

func splitURI(s string) (origin, path string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", "", false
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname())
	port := u.Port()
	if scheme == "https" && port == "443" || scheme == "http" && port == "80" {
		port = ""
	}
	path = u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return scheme + "://" + host + ":" + port, path, true
}
