package server

import (
	"bufio"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/httpapi"
)

// behindProxies serves the requests of trusted proxies with the address of the client in RemoteAddr, port 0. That is the last
// address of Forwarded (RFC 7239) or X-Forwarded-For that is not one of a trusted proxy: what is left of it, the client may have
// written itself. A request of any other peer keeps its address, whatever its header says. WebSockets of one client are limited
// here as connections are, since the connections of a proxy are not counted by address.
//
// Both headers may be there. A proxy usually writes one of them and passes the other on as the client sent it, so they must agree.
// Code: bad_request, if they do not, or a header is malformed.
func (s *Server) behindProxies(next, api http.Handler) http.Handler {
	trusted, _ := parseNetworks(s.cfg.Server.TrustedProxies) // Config.Check was called
	if len(trusted) == 0 {
		return next
	}
	limit := newConnectionLimit(s.cfg.Limits.Connections, s.cfg.Limits.PerAddress, nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !trusted.contain(peer.Addr()) {
			next.ServeHTTP(w, r)
			return
		}
		client, err := clientOf(r.Header, peer.Addr().Unmap(), trusted)
		if err != nil {
			api.ServeHTTP(w, httpapi.WithRefusal(r, err))
			return
		}
		if client == peer.Addr().Unmap() {
			next.ServeHTTP(w, r)
			return
		}
		r = r.WithContext(r.Context()) // a copy
		r.RemoteAddr = netip.AddrPortFrom(client, 0).String()
		if r.Header.Get("Upgrade") == "" {
			next.ServeHTTP(w, r)
			return
		}
		if !limit.enter(client) {
			api.ServeHTTP(w, httpapi.WithRefusal(r, &watchword.Error{Code: watchword.Busy, Detail: "too many connections of this address (limits.per_address)", RetryAfter: time.Second}))
			return
		}
		upgrade := &forwardedUpgrade{ResponseWriter: w, limit: limit, client: client}
		next.ServeHTTP(upgrade, r)
		if !upgrade.hijacked {
			limit.leave(client)
		}
	})
}

// clientOf returns the address of the client of a request that came from peer, a trusted proxy. It is that of the nearest proxy
// whose header names no address (unknown, or a name that hides it). Code: bad_request.
func clientOf(h http.Header, peer netip.Addr, trusted networks) (netip.Addr, error) {
	forwarded, err := forwardedHops(h.Values("Forwarded"))
	if err != nil {
		return peer, err
	}
	nearest := func(hops []netip.Addr) netip.Addr {
		client := peer
		for i := len(hops) - 1; i >= 0 && trusted.contain(client) && hops[i].IsValid(); i-- {
			client = hops[i].Unmap().WithZone("")
		}
		return client
	}
	standard, usual := nearest(forwarded), nearest(forwardedForHops(h.Values("X-Forwarded-For")))
	switch {
	case len(forwarded) == 0:
		return usual, nil
	case len(h.Values("X-Forwarded-For")) > 0 && standard != usual:
		return peer, watchword.Refuse(watchword.BadRequest, "the headers Forwarded and X-Forwarded-For name different clients: the proxy must remove the one that it does not write")
	}
	return standard, nil
}

// forwardedForHops returns the addresses of X-Forwarded-For in their order; one that is not an address is the zero value.
func forwardedForHops(lines []string) (hops []netip.Addr) {
	if len(lines) == 0 {
		return nil
	}
	for _, e := range strings.Split(strings.Join(lines, ","), ",") {
		hops = append(hops, nodeAddress(strings.TrimSpace(e)))
	}
	return hops
}

// forwardedHops returns the addresses of the parameter for of each element of Forwarded in their order; one that is not an
// address is the zero value. Code: bad_request where the header is malformed, since a quotation mark of the client would else hide
// what the proxy has added.
func forwardedHops(lines []string) (hops []netip.Addr, err error) {
	for _, line := range lines {
		for rest := line; ; {
			var hop netip.Addr
			if hop, rest, err = forwardedElement(rest); err != nil {
				return nil, err
			}
			hops = append(hops, hop)
			if rest == "" {
				break
			}
			rest = rest[1:] // the comma
		}
	}
	return hops, nil
}

var errForwarded = watchword.Refuse(watchword.BadRequest, "the header Forwarded is malformed: it must be a list of NAME=VALUE pairs as in RFC 7239")

// forwardedElement parses one element of Forwarded, up to a comma or the end, and returns what follows.
func forwardedElement(in string) (hop netip.Addr, rest string, err error) {
	for named := false; ; {
		in = strings.TrimLeft(in, " \t")
		i := strings.IndexAny(in, "=,; \t\"")
		if i < 0 || in[i] != '=' {
			if i < 0 && in == "" || i == 0 && (in[0] == ',' || in[0] == ';') { // RFC 9110 §5.6.1: empty elements are ignored
				if in == "" || in[0] == ',' {
					return hop, in, nil
				}
				in = in[1:]
				continue
			}
			return hop, "", errForwarded
		}
		name := in[:i]
		var value string
		if value, in, err = forwardedValue(in[i+1:]); err != nil {
			return hop, "", err
		}
		if strings.EqualFold(name, "for") {
			if named { // §4: each parameter once in an element
				return hop, "", errForwarded
			}
			hop, named = nodeAddress(value), true
		}
		in = strings.TrimLeft(in, " \t")
		switch {
		case in == "" || in[0] == ',':
			return hop, in, nil
		case in[0] != ';':
			return hop, "", errForwarded
		}
		in = in[1:]
	}
}

// forwardedValue returns a token or the content of a quoted string (RFC 9110 §5.6.4), and what follows.
func forwardedValue(in string) (value, rest string, err error) {
	if !strings.HasPrefix(in, `"`) {
		i := strings.IndexAny(in, ",; \t\"")
		if i < 0 {
			i = len(in)
		}
		return in[:i], in[i:], nil
	}
	var b strings.Builder
	for i := 1; i < len(in); i++ {
		switch in[i] {
		case '"':
			return b.String(), in[i+1:], nil
		case '\\':
			if i++; i == len(in) {
				return "", "", errForwarded
			}
		}
		b.WriteByte(in[i])
	}
	return "", "", errForwarded
}

// nodeAddress returns the address of a node (RFC 7239 §6): an address with or without a port, and IPv6 with or without brackets. It
// is the zero value of anything else.
func nodeAddress(node string) netip.Addr {
	if a, err := netip.ParseAddrPort(node); err == nil {
		return a.Addr()
	}
	if bare, ok := strings.CutPrefix(node, "["); ok {
		node = strings.TrimSuffix(bare, "]")
	}
	if host, port, ok := strings.Cut(node, ":_"); ok && port != "" { // §6.3: an obfuscated port
		node = strings.TrimSuffix(host, "]")
	}
	a, err := netip.ParseAddr(node)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// forwardedUpgrade is the response writer of a request for a WebSocket that a proxy passes on. The connection that it gives has the
// client's address, and the client's place in the limit until it is closed.
type forwardedUpgrade struct {
	http.ResponseWriter
	limit    *connectionLimit
	client   netip.Addr
	hijacked bool
}

// Unwrap is for [http.ResponseController].
func (w *forwardedUpgrade) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack implements [http.Hijacker].
func (w *forwardedUpgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.hijacked = true
	return &proxiedConn{&limitedConn{Conn: c, limit: w.limit, from: w.client}, net.TCPAddrFromAddrPort(netip.AddrPortFrom(w.client, 0))}, rw, nil
}
