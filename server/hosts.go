package server

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// checkHost answers 421 to a request whose Host is none of this server's (RFC 9110 §7.4), and hands on the others. A page in a
// browser on this machine could else read the answer: its own name is made to point at a loopback address (DNS rebinding), but
// still stands in Host. Own are localhost, loopback addresses and names; the port does not count, nor is a request of
// HTTP/1.0 without Host refused, which no browser sends.
func checkHost(names []string, next http.Handler) http.Handler {
	own := map[string]bool{"": true, "localhost": true}
	for _, n := range names {
		own[canonicalHost(n)] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = canonicalHost(host)
		if a, err := netip.ParseAddr(host); !own[host] && (err != nil || !a.IsLoopback()) {
			http.Error(w, "this listener answers to localhost, loopback addresses, server.names and the host of server.public_url alone", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// canonicalHost is a host as it is compared: in small letters, without brackets and without the dot at the end.
func canonicalHost(h string) string {
	return strings.TrimSuffix(strings.ToLower(strings.Trim(h, "[]")), ".")
}

// hosts is by what names this server is known, beside those of loopback.
func (c Config) hosts() (out []string) {
	out = append(out, c.Server.Names...)
	if u, err := url.Parse(c.PublicURL()); err == nil {
		out = append(out, u.Hostname())
	}
	if h, _, err := net.SplitHostPort(c.Metrics.Listen); err == nil {
		out = append(out, h)
	}
	return out
}
