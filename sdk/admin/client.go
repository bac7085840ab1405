// Package admin is a typed client of the management API. It is created with the server's address and an operator's key, and
// manages devices, policies, commands and the audit log. It trusts only the certificate authority that it is given, and signs
// the commands that it orders.
package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Options states which server to use, and as which subject.
type Options struct {
	URL     string // https://host:port, without a trailing slash
	Dial    string // host:port to connect to instead of URL's; the certificate must still be for URL's host; empty means URL's
	Issuer  string // the issuer identifier; empty means URL
	CA      []byte // PEM of the trusted authority; nil means the system's, or those of Bundle
	Subject watchword.SubjectID
	Key     *jose.PrivateKey // Subject's signing key
	Now     func() time.Time // nil means time.Now

	// Bundle is the server's trust bundle, in place of CA and Dial: the client trusts the authorities that it names, and follows
	// the server to later ones. Pin is the pin of a root that it names, and BundleAt when the server sent it. SaveServer, if not
	// nil, is called with each bundle that the server sent since, the pin of its newest root, and the server's address and issuer
	// as of then; it reports its own errors.
	Bundle     string
	Pin        string
	BundleAt   time.Time
	SaveServer func(Server)

	// TokenCache, if not nil, keeps the access token between processes. Tokens are then bound to the key (RFC 9449).
	TokenCache TokenCache

	// Notice, if not nil, is called for each notice in an answer, also for one that was in an earlier answer. ExpiresAt is not set.
	// It may be called concurrently.
	Notice func(api.Notice)

	// StreamLost, if not nil, is called when a stream of events or log entries that was open is lost, or cannot be opened again,
	// with the cause and the pause after which it is requested again. It may be called concurrently.
	StreamLost func(err error, pause time.Duration)

	serverName string // name that the certificate must be for, in place of URL's host; empty: URL's host
	folder     string // data folder of the server; empty: it is another machine's
}

// TokenCache keeps access tokens between processes.
type TokenCache = rest.TokenCache

// Client is a client of the management API. It is safe for concurrent use.
type Client struct {
	opts   Options
	signer *jose.Signer
	rest   *rest.Client
	tokens *rest.Tokens
}

// New returns a client. It sends no request. Code: bad_request.
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
	tr, err := transport(o)
	if err != nil {
		return nil, err
	}
	issuer := func() string { return o.Issuer }
	trusted, _ := tr.(*trustedTransport)
	if trusted != nil {
		issuer = trusted.issuer
	}
	c := &Client{opts: o, signer: s}
	c.tokens = &rest.Tokens{
		Client: rest.New(o.URL, tr, nil), Path: "/oauth/token", Now: o.Now, Cache: o.TokenCache,
		Sign: func() (string, error) {
			return token.SignAssertion(s, o.Subject, issuer(), o.Now(), time.Minute)
		},
		Prover: &rest.Prover{Sign: func(method, uri, nonce, access string) (string, error) {
			return token.SignDPoP(s, method, uri, nonce, access, o.Now())
		}},
	}
	if trusted != nil {
		c.tokens.WithLock = trusted.withRefresh
	}
	if o.TokenCache != nil {
		c.tokens.BindTokens()
	}
	if o.Notice != nil {
		tr = noticeReader{tr, o.Notice}
	}
	c.rest = rest.New(o.URL, tr, c.tokens)
	return c, nil
}

// transport returns the transport that authenticates the server of o: by its trust bundle, or by o.CA. Code: bad_request, and
// those of a bundle that is not valid.
func transport(o Options) (http.RoundTripper, error) {
	if o.Bundle != "" {
		return newTrustedTransport(o)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Time: o.Now, ServerName: o.serverName}
	if o.CA != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(o.CA) {
			return nil, watchword.RefuseField("ca", "must contain at least one certificate in PEM")
		}
	}
	var dial rest.Dial
	if o.Dial != "" {
		if !strings.HasPrefix(o.URL, "https://") { // its host decides whether a token may be sent without TLS
			return nil, watchword.RefuseField("url", "must be https:// if another address is dialed")
		}
		dial = (&localDialer{folder: o.folder, address: o.Dial}).dial
	}
	return rest.Transport(conf, dial), nil
}

// Local returns a client of the server that uses a data folder of this machine, as its first operator. Codes: not_found if
// no server was started with the folder, key_exposed, file_untrusted.
func Local(dir string) (*Client, error) {
	o, err := LocalOptions(dir)
	if err != nil {
		return nil, err
	}
	return New(o)
}

// LocalOptions returns the options of [Local]. Codes: as there.
func LocalOptions(dir string) (o Options, err error) {
	const mostCA = 1 << 20
	place, err := readServerFile(dir)
	if err != nil {
		return o, err
	}
	o = Options{URL: place.URL, Issuer: place.Issuer, Subject: place.Operator, Dial: localAddress(place.HTTPS), folder: dir}
	if place.CA != "" {
		if o.CA, err = durable.ReadTrusted(place.CA, mostCA); err != nil {
			if watchword.CodeOf(err) == watchword.FileUntrusted {
				return o, err
			}
			return o, watchword.Wrap(err, watchword.ConfigInvalid, "the CA certificate %s cannot be read", place.CA)
		}
		o.serverName = "localhost" // of the own authority's certificate; for URL's host the server may have one of a public authority
	}
	jwk, err := durable.ReadPrivate(filepath.Join(dir, "operator.jwk"))
	if errors.Is(err, fs.ErrNotExist) {
		return o, watchword.Wrap(err, watchword.NotFound, "%s does not exist: log in with a link, or make an owner with watchword operator recover NAME", filepath.Join(dir, "operator.jwk"))
	}
	if err != nil {
		return o, watchword.Wrap(err, watchword.CodeOf(err), "the operator's key cannot be read: %s", err)
	}
	if o.Key, err = jose.ParsePrivateJWK(jwk, jose.ForSigning); err != nil {
		return o, err
	}
	return o, nil
}

// URL returns the server's address.
func (c *Client) URL() string { return c.opts.URL }

// Issuer returns the issuer identifier, which assertions must name.
func (c *Client) Issuer() string { return c.opts.Issuer }

// Subject returns the subject as which the client authenticates.
func (c *Client) Subject() watchword.SubjectID { return c.opts.Subject }

// Tokens returns the client's source of access tokens.
func (c *Client) Tokens() *rest.Tokens { return c.tokens }

// Rest returns the underlying client, for requests without a method here.
func (c *Client) Rest() *rest.Client { return c.rest }

// list requests the pages of a list and calls f with each item. items returns the items of a page P and its
// next_page_token. It ends with f's error.
func list[P, T any](ctx context.Context, c *Client, path string, q url.Values, items func(P) ([]T, string), f func(T) error) error {
	q.Set("page_size", "500")
	for pages := newPages(); ; {
		var page P
		if err := c.call(ctx, http.MethodGet, path, q, nil, &page); err != nil {
			return err
		}
		items, next := items(page)
		for _, item := range items {
			if err := f(item); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		if err := pages.next(ctx, next, len(items)); err != nil {
			return err
		}
		q.Set("page_token", next)
	}
}

// pages paces the requests for the pages of a list: a page may be empty and have a next one.
type pages struct {
	pace rest.PollPace
	last string
}

func newPages() *pages {
	return &pages{pace: rest.PollPace{Least: 10 * time.Millisecond, Most: time.Second}}
}

// next waits until the page of a token may be requested: no time after a page with items. Code: internal if it is the page
// that was just read.
func (p *pages) next(ctx context.Context, token string, items int) error {
	if token == p.last {
		return watchword.Refuse(watchword.Internal, "the server's list does not end: next_page_token of a page is the token of that page")
	}
	p.last = token
	return p.pace.Wait(ctx, items > 0)
}
