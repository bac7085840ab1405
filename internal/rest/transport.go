package rest

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// maxHeader limits the bytes of an answer's header.
const maxHeader = 64 << 10

// Dial opens a connection, like [net.Dialer.DialContext].
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Transport returns a transport with limits on the handshake, on response headers (64 KiB), and, over HTTP/2, on the time
// until a broken connection is detected. dial nil means [DialFromEnvironment].
func Transport(c *tls.Config, dial Dial) *http.Transport {
	t := &http.Transport{
		TLSClientConfig: c, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
		ResponseHeaderTimeout: exchangeTimeout + maxWait, MaxResponseHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
	if dial == nil {
		t.DialContext = DialFromEnvironment
		return t
	}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			err = dialError{err}
		}
		return c, err
	}
	return t
}

// dialError is an error of a dial function, whose text the peer did not choose.
type dialError struct{ error }

// Unwrap returns the error of the dial function.
func (d dialError) Unwrap() error { return d.error }

// WithoutKeepAlive makes t use each connection for one HTTP/1.1 exchange, and returns t.
func WithoutKeepAlive(t *http.Transport) *http.Transport {
	t.DisableKeepAlives, t.ForceAttemptHTTP2 = true, false
	return t
}

// WithHeaderLimit returns rt (nil: the default transport) with a limit on response headers, if it
// has none.
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

// WithoutRedirects returns an HTTP client over rt that follows no redirect, so that no token is
// sent to another address.
func WithoutRedirects(rt http.RoundTripper) *http.Client {
	return &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
