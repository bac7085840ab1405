// Package admin is the typed client of the management API. In come an operator's
// key and the server's address, out come devices, policies, commands and the
// log. It trusts the authority that it is given and nobody else, and signs what
// it orders.
package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Options says whom to ask, and as whom.
type Options struct {
	URL     string // https://host:port, no slash at the end
	Dial    string // host:port to connect to instead of URL's, whose name the certificate must still have; empty means URL's
	Issuer  string // the issuer identifier; empty means URL
	CA      []byte // PEM of the authority to trust; nil means the system's
	Subject watchword.SubjectID
	Key     *jose.PrivateKey // Subject's signing key
	Now     func() time.Time // nil means time.Now
}

// Client asks the management API. It is safe for concurrent use.
type Client struct {
	o      Options
	signer *jose.Signer
	rest   *rest.Client
	tokens *rest.Tokens
}

// New returns a client. It asks nothing yet. Code: bad_request.
func New(o Options) (*Client, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Issuer == "" {
		o.Issuer = o.URL
	}
	s, err := o.Key.Signer()
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Time: o.Now}
	if o.CA != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(o.CA) {
			return nil, watchword.RefuseField("ca", "holds no certificate")
		}
	}
	tr := &http.Transport{
		TLSClientConfig: conf, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 90 * time.Second,
	}
	if o.Dial != "" {
		if !strings.HasPrefix(o.URL, "https://") { // its host is what decides whether a token may go in clear
			return nil, watchword.RefuseField("url", "must be https:// where another address is dialled")
		}
		var d net.Dialer
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, o.Dial)
		}
	}
	hc := &http.Client{CheckRedirect: rest.NoRedirects, Transport: tr}
	c := &Client{o: o, signer: s}
	c.tokens = &rest.Tokens{
		Client: &rest.Client{Base: o.URL, HTTP: hc}, Path: "/oauth/token", Now: o.Now,
		Sign: func() (string, error) {
			return token.SignAssertion(s, o.Subject, o.Issuer, o.Now(), time.Minute)
		},
		Prover: &rest.Prover{Sign: func(method, uri, nonce, access string) (string, error) {
			return token.SignDPoP(s, method, uri, nonce, access, o.Now())
		}},
	}
	c.rest = &rest.Client{Base: o.URL, HTTP: hc, Tokens: c.tokens}
	return c, nil
}

// Local returns the client of the server that runs on a data folder of this
// machine, as its first operator. Codes: not_found where no server was started
// on it, key_exposed.
func Local(dir string) (*Client, error) {
	b, err := os.ReadFile(filepath.Join(dir, "server.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, watchword.Refuse(watchword.NotFound, "no server was ever started on %s", dir)
	}
	if err != nil {
		return nil, err
	}
	var place struct {
		URL      string              `json:"url"`
		HTTPS    string              `json:"https"`
		Issuer   string              `json:"issuer"`
		CA       string              `json:"ca"`
		Operator watchword.SubjectID `json:"operator"`
	}
	if err := json.Unmarshal(b, &place); err != nil {
		return nil, watchword.Because(err, watchword.ConfigInvalid, "%s is damaged", filepath.Join(dir, "server.json"))
	}
	o := Options{URL: place.URL, Issuer: place.Issuer, Subject: place.Operator, Dial: local(place.HTTPS)}
	if place.CA != "" {
		if o.CA, err = os.ReadFile(place.CA); err != nil {
			return nil, watchword.Because(err, watchword.ConfigInvalid, "the authority's certificate %s cannot be read", place.CA)
		}
	}
	jwk, err := durable.ReadPrivate(filepath.Join(dir, "operator.jwk"))
	if err != nil {
		return nil, watchword.Because(err, watchword.CodeOf(err), "the operator's key cannot be read: %s", err)
	}
	if o.Key, err = jose.ParsePrivateJWK(jwk, jose.ForSigning); err != nil {
		return nil, err
	}
	return New(o)
}

// local is how an address that a server listens on is reached from its own
// machine: the name that it has for the others may mean nothing here.
func local(listens string) string {
	a, err := netip.ParseAddrPort(listens)
	if err != nil || !a.Addr().IsUnspecified() {
		return listens
	}
	return net.JoinHostPort("localhost", strconv.Itoa(int(a.Port())))
}

// URL returns the server's address.
func (c *Client) URL() string { return c.o.URL }

// Issuer returns the issuer identifier, which assertions must name.
func (c *Client) Issuer() string { return c.o.Issuer }

// Subject returns as whom the client asks.
func (c *Client) Subject() watchword.SubjectID { return c.o.Subject }

// Tokens returns where the client has its tokens from.
func (c *Client) Tokens() *rest.Tokens { return c.tokens }

// Rest returns the client beneath: for requests that have no method here.
func (c *Client) Rest() *rest.Client { return c.rest }

// list asks for the pages of a list, whose items are in the member of that name, and calls f with each item. It ends with
// f's error.
func list[T any](ctx context.Context, c *Client, path, member string, q url.Values, f func(T) error) error {
	q.Set("page_size", "500")
	for {
		var page map[string]json.RawMessage
		if err := c.call(ctx, http.MethodGet, path, q, nil, &page); err != nil {
			return err
		}
		var items []T
		var next string
		for name, to := range map[string]any{member: &items, "next_page_token": &next} {
			if raw, ok := page[name]; ok {
				if err := json.Unmarshal(raw, to); err != nil {
					return watchword.Because(err, watchword.Internal, "the server's answer is not what was asked for")
				}
			}
		}
		for _, item := range items {
			if err := f(item); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		q.Set("page_token", next)
	}
}
