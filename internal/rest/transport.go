package rest

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// maxHeader is the most bytes that are read of the headers of an answer.
const maxHeader = 64 << 10

// Dial makes a connection, as [net.Dialer.DialContext] does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Transport returns a transport with bounds: of the handshake, of response headers
// (64 KiB), and, over HTTP/2, of how long a connection that broke silently is taken for
// a good one. dial nil means the network's.
func Transport(c *tls.Config, dial Dial) *http.Transport {
	t := &http.Transport{
		TLSClientConfig: c, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
		ResponseHeaderTimeout: exchangeTimeout + maxWait, MaxResponseHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
	if dial != nil {
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				err = dialError{err}
			}
			return c, err
		}
	}
	return t
}

// dialError is an error of a dial function, whose words are not the peer's.
type dialError struct{ error }

// Unwrap returns what the dialer returned.
func (d dialError) Unwrap() error { return d.error }

// WithoutKeepAlive makes t use each connection for one exchange over HTTP/1.1, and returns it: for
// peers that are asked once.
func WithoutKeepAlive(t *http.Transport) *http.Transport {
	t.DisableKeepAlives, t.ForceAttemptHTTP2 = true, false
	return t
}

// WithHeaderLimit returns a round tripper that others made, nil for the default one, with the
// bound of response headers where it has none.
func WithHeaderLimit(rt http.RoundTripper) http.RoundTripper {
	if rt == nil {
		rt = http.DefaultTransport
	}
	t, ok := rt.(*http.Transport)
	if !ok || t.MaxResponseHeaderBytes > 0 {
		return rt
	}
	t = t.Clone()
	t.MaxResponseHeaderBytes = maxHeader
	return t
}

// WithoutRedirects returns an HTTP client over rt that follows no redirect, which keeps it from
// carrying a token to another address.
func WithoutRedirects(rt http.RoundTripper) *http.Client {
	return &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
