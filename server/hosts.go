package server

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// checkHost answers 421 to a request whose Host is not a name of this server (RFC 9110 §7.4). Otherwise a web page could
// read answers of a server on the same machine by DNS rebinding: its name resolves to a loopback address, but is still in
// Host. Accepted are localhost, loopback addresses and names, with any port, and HTTP/1.0 requests without Host, which
// browsers do not send.
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

// canonicalHost returns a host of a request in its canonical form, and in lower case if it has none.
func canonicalHost(h string) string {
	if n, err := canonicalName(h); err == nil {
		return n
	}
	return strings.ToLower(h)
}

// hosts returns the names of this server beside those of loopback.
func (c Config) hosts() (out []string) {
	out = append(c.Server.names(), hostOf(c.PublicURL()))
	if h, _, err := net.SplitHostPort(c.Metrics.Listen); err == nil {
		out = append(out, h)
	}
	return out
}
