package verify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// fetchTimeout is the maximum duration of one fetch, metadata and keys together.
const fetchTimeout = 10 * time.Second

// keySource fetches the keys that an issuer publishes. It is not safe for concurrent use.
type keySource struct {
	issuer   string
	base     *url.URL
	loopback bool // http is accepted at loopback addresses
	http     http.RoundTripper
	next     *keySource // another identifier of the same server, which is asked if this one does not answer; nil: none
	jwksPath string     // path of the keys; empty before the metadata was read, and after a failed fetch
}

// newSource checks the issuer identifier (RFC 8414 §2): https, no query, no fragment.
func newSource(issuer string, loopback bool, c http.RoundTripper) (*keySource, error) {
	s := &keySource{issuer: issuer, loopback: loopback, http: c}
	u, err := url.Parse(issuer)
	if err != nil || !s.allows(u) || u.RawQuery != "" || u.ForceQuery || strings.Contains(issuer, "#") {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "issuer must be a URL with https, without query and fragment")
	}
	s.base = u
	return s, nil
}

// allows reports whether a URL may be requested.
func (s *keySource) allows(u *url.URL) bool {
	if u.Host == "" || u.User != nil || u.Opaque != "" {
		return false
	}
	return u.Scheme == "https" || u.Scheme == "http" && s.loopback && rest.IsLoopback(u.Hostname())
}

// fetch returns the keys that the issuer publishes now, under the first of its identifiers that answers. The error is that of the
// first one. Codes: unavailable, issuer_mismatch, key_damaged.
func (s *keySource) fetch(ctx context.Context) (token.KeySet, error) {
	set, err := s.fetchOne(ctx)
	for other := s.next; err != nil && other != nil; other = other.next {
		if set, otherErr := other.fetchOne(ctx); otherErr == nil {
			return set, nil
		}
	}
	return set, err
}

func (s *keySource) fetchOne(ctx context.Context) (_ token.KeySet, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	defer func() {
		if err != nil {
			s.jwksPath = "" // the path may have changed
		}
	}()
	if s.jwksPath == "" {
		if s.jwksPath, err = s.discover(ctx); err != nil {
			return nil, err
		}
	}
	b, err := s.get(ctx, s.jwksPath)
	if err != nil {
		return nil, err
	}
	return parseJWKS(b)
}

// discover reads the metadata (RFC 8414 §3), at the well-known path followed by the issuer's path, and returns the path of
// the keys.
func (s *keySource) discover(ctx context.Context) (string, error) {
	b, err := s.get(ctx, "/.well-known/oauth-authorization-server"+strings.TrimSuffix(s.base.EscapedPath(), "/"))
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := jose.Decode(b, &doc); err != nil {
		return "", watchword.Wrap(err, watchword.Unavailable, "the issuer's metadata must be a JSON object")
	}
	if doc.Issuer != s.issuer { // RFC 8414 §3.3
		return "", watchword.Refuse(watchword.IssuerMismatch, "issuer in the metadata must be exactly %q", s.issuer)
	}
	u, err := url.Parse(doc.Keys)
	if err != nil || !s.allows(u) || u.Fragment != "" || origin(u) != origin(s.base) {
		return "", watchword.Wrap(err, watchword.IssuerMismatch, "jwks_uri must have the issuer's scheme, host and port")
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path, nil
}

func (s *keySource) get(ctx context.Context, path string) ([]byte, error) {
	c := rest.NewUnauthenticated(s.base.Scheme+"://"+s.base.Host, s.http) // the transport authenticates the server, if it does at all
	a, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: path, Max: maxJWKS, Header: map[string]string{"Accept": "application/json, application/jwk-set+json"}})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, watchword.Wrap(err, watchword.Unavailable, "the issuer did not answer in time")
	case err != nil:
		return nil, err
	case !strings.Contains(strings.ToLower(a.Header.Get("Content-Type")), "json"): // usually the page of a captive portal
		return nil, watchword.Refuse(watchword.Unavailable, "the issuer's answer must have the content type application/json")
	}
	return a.Body, nil
}

func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

// newTransport returns the transport to the issuer: c's if c is given, else one that trusts pool (nil: the system's
// authorities) and requires at least TLS version.
func newTransport(c *http.Client, pool *x509.CertPool, version uint16) http.RoundTripper {
	if c != nil {
		return rest.WithHeaderLimit(c.Transport)
	}
	t := rest.Transport(&tls.Config{RootCAs: pool, MinVersion: version}, nil)
	t.Proxy, t.DialContext = http.ProxyFromEnvironment, rest.DialDirect // SOCKS too
	t.DisableKeepAlives = true                                          // fetches are minutes apart
	return t
}
