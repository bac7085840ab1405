package rest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// connectProxy is a proxy that answers CONNECT by answer, and passes bytes on if that begins with 200 in its status line.
func connectProxy(t *testing.T, answer func(r *http.Request) string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				a := answer(r)
				if _, err := io.WriteString(c, a); err != nil || !strings.HasPrefix(a, "HTTP/1.1 200") {
					_, _ = io.Copy(io.Discard, in) // until the client closes
					return
				}
				to, err := net.Dial("tcp", strings.Replace(r.Host, "hub.test", "127.0.0.1", 1)) // the proxy knows the name
				if err != nil {
					return
				}
				defer to.Close()
				go func() { _, _ = io.Copy(to, in) }()
				_, _ = io.Copy(c, to)
			}()
		}
	}()
	return l
}

// Requests go through the proxy that the environment names, and TLS is with the server. What the proxy does wrong is an error that says
// so, without what the proxy sent and without its password.
func TestDialThroughProxy(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
	say := func(answer string) func(*http.Request) string { return func(*http.Request) string { return answer } }
	for name, tc := range map[string]struct {
		scheme, user string
		answer       func(r *http.Request) string
		err          string // empty: it works
	}{
		"plain": {"http", "", say(ok), ""},
		"with a password": {"http", "me:se%20cret@", func(r *http.Request) string {
			if r.Method == http.MethodConnect && r.Host == "hub.test:"+port && r.Header.Get("Proxy-Authorization") == "Basic bWU6c2UgY3JldA==" {
				return ok
			}
			return "HTTP/1.1 407 No\r\n\r\n"
		}, ""},
		"over TLS":                {"https", "", say(ok), ""},
		"the password is refused": {"http", "me:secret@", say("HTTP/1.1 407 No\r\n\r\n"), "407"},
		"the target is refused":   {"http", "me:secret@", say("HTTP/1.1 403 evil\x1b[31m\r\n\r\n"), "it does not connect to hub.test:" + port + " (status 403)"},
		"no HTTP":                 {"http", "", say("220 evil\r\n\r\n"), "no valid answer"},
		"an endless header":       {"http", "", say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", proxyHeader) + "\r\n\r\n"), "no valid answer"},
		"bytes behind the answer": {"http", "", say("HTTP/1.1 200 OK\r\n\r\nevil"), "more than an answer"},
		"no answer":               {"http", "", say(""), context.DeadlineExceeded.Error()},
		"another scheme":          {"socks5", "", say(ok), "http:// or https://"},
	} {
		t.Run(name, func(t *testing.T) {
			l := connectProxy(t, tc.answer)
			conf := &tls.Config{RootCAs: pool}
			host := l.Addr().String()
			if tc.scheme == "https" {
				inner := httptest.NewUnstartedServer(nil)
				inner.StartTLS() // for its certificate, which is for 127.0.0.1
				defer inner.Close()
				outer, err := tls.Listen("tcp", "127.0.0.1:0", inner.TLS)
				if err != nil {
					t.Fatal(err)
				}
				defer outer.Close()
				go func() { // ends TLS before the proxy
					for {
						c, err := outer.Accept()
						if err != nil {
							return
						}
						to, err := net.Dial("tcp", l.Addr().String())
						if err != nil {
							return
						}
						go func() { _, _ = io.Copy(to, c) }()
						go func() { _, _ = io.Copy(c, to); _ = c.Close() }()
					}
				}()
				host = outer.Addr().String()
			}
			u, err := url.Parse(tc.scheme + "://" + tc.user + host)
			if err != nil {
				t.Fatal(err)
			}
			tr := Transport(&tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}, func(ctx context.Context, network, address string) (net.Conn, error) {
				return dialProxied(ctx, network, address, func(r *http.Request) (*url.URL, error) {
					if r.URL.Scheme != "https" || r.URL.Host != address {
						t.Errorf("a proxy for %s", r.URL)
					}
					return u, nil
				}, conf)
			})
			defer tr.CloseIdleConnections()
			ctx := t.Context()
			if tc.err == context.DeadlineExceeded.Error() {
				var cancel func()
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			q, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://hub.test:"+port, nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := tr.RoundTrip(q)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "evil") {
					t.Errorf("%v; want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != "hello" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

func TestProxyOfTheEnvironmentThatIsNoURL(t *testing.T) {
	_, err := dialProxied(t.Context(), "tcp", "hub.test:443", func(*http.Request) (*url.URL, error) { return nil, errors.New("secret") }, nil)
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "HTTPS_PROXY") {
		t.Error(err)
	}
}
