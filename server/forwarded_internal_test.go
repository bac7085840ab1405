package server

import (
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

var testProxies = networks{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}

// The client is the last address that is not a proxy's, by either header; what the client wrote left of it does not count.
func TestClientOfForwardedRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		header http.Header
		want   string // an address; empty: bad_request
	}{
		"no header":                             {nil, "10.0.0.1"},
		"X-Forwarded-For":                       {http.Header{"X-Forwarded-For": {"192.0.2.7"}}, "192.0.2.7"},
		"with a port":                           {http.Header{"X-Forwarded-For": {"192.0.2.7:4711"}}, "192.0.2.7"},
		"IPv6":                                  {http.Header{"X-Forwarded-For": {"2001:db9::7"}}, "2001:db9::7"},
		"IPv6 with a port":                      {http.Header{"X-Forwarded-For": {"[2001:db9::7]:80"}}, "2001:db9::7"},
		"IPv4 in IPv6 form":                     {http.Header{"X-Forwarded-For": {"::ffff:192.0.2.7"}}, "192.0.2.7"},
		"the client's own list":                 {http.Header{"X-Forwarded-For": {"203.0.113.1, 198.51.100.1,192.0.2.7"}}, "192.0.2.7"},
		"lines":                                 {http.Header{"X-Forwarded-For": {"203.0.113.1", "192.0.2.7"}}, "192.0.2.7"},
		"two proxies":                           {http.Header{"X-Forwarded-For": {"203.0.113.1, 192.0.2.7, 10.0.0.2"}}, "192.0.2.7"},
		"proxies alone":                         {http.Header{"X-Forwarded-For": {"10.0.0.3, 10.0.0.2"}}, "10.0.0.3"},
		"an unknown hop behind a proxy":         {http.Header{"X-Forwarded-For": {"192.0.2.7, unknown, 10.0.0.2"}}, "10.0.0.2"},
		"not an address":                        {http.Header{"X-Forwarded-For": {"192.0.2.7, x"}}, "10.0.0.1"},
		"empty":                                 {http.Header{"X-Forwarded-For": {""}}, "10.0.0.1"},
		"Forwarded":                             {http.Header{"Forwarded": {"for=192.0.2.7"}}, "192.0.2.7"},
		"Forwarded, all parameters":             {http.Header{"Forwarded": {`by=10.0.0.1 ; FOR="192.0.2.7:80";proto=https; host="a,b;c"`}}, "192.0.2.7"},
		"Forwarded, IPv6":                       {http.Header{"Forwarded": {`For="[2001:db9::7]:4711"`}}, "2001:db9::7"},
		"Forwarded, a hidden port":              {http.Header{"Forwarded": {`for="[2001:db9::7]:_x"`}}, "2001:db9::7"},
		"Forwarded, an escape":                  {http.Header{"Forwarded": {`for="192.0.2.\7"`}}, "192.0.2.7"},
		"Forwarded, a list and lines":           {http.Header{"Forwarded": {"for=203.0.113.1, for=198.51.100.1", "for=192.0.2.7,for=10.0.0.2"}}, "192.0.2.7"},
		"Forwarded, a hop without for":          {http.Header{"Forwarded": {"for=192.0.2.7, proto=https"}}, "10.0.0.1"},
		"Forwarded, a hidden hop":               {http.Header{"Forwarded": {"for=192.0.2.7, for=_hidden"}}, "10.0.0.1"},
		"Forwarded, a quote that is not closed": {http.Header{"Forwarded": {`for="203.0.113.1, for=192.0.2.7`}}, ""},
		"Forwarded, an escape at the end":       {http.Header{"Forwarded": {`for="192.0.2.7\`}}, ""},
		"Forwarded, text behind a value":        {http.Header{"Forwarded": {`for="192.0.2.7"x`}}, ""},
		"Forwarded, no value":                   {http.Header{"Forwarded": {"for"}}, ""},
		"Forwarded, twice for":                  {http.Header{"Forwarded": {"for=192.0.2.7;for=192.0.2.8"}}, ""},
		"both, the same":                        {http.Header{"Forwarded": {"for=203.0.113.1, for=192.0.2.7"}, "X-Forwarded-For": {"192.0.2.7"}}, "192.0.2.7"},
		"both, different":                       {http.Header{"Forwarded": {"for=203.0.113.1"}, "X-Forwarded-For": {"192.0.2.7"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := clientOf(tc.header, netip.MustParseAddr("10.0.0.1"), testProxies)
			if tc.want == "" {
				if watchword.CodeOf(err) != watchword.BadRequest {
					t.Errorf("%v, %v", got, err)
				}
			} else if err != nil || got != netip.MustParseAddr(tc.want) {
				t.Errorf("%v, %v; want %s", got, err, tc.want)
			}
		})
	}
}

// Whatever a client writes in front of what the proxy adds, it has its own address or an error.
func TestNoClientChoosesItsForwardedAddress(t *testing.T) {
	parts := []string{`"`, `\`, ",", ";", "=", " ", "for", "For=", "[", "]", ":", "1.2.3.4", "10.0.0.9", "2001:db9::1", "unknown", "_x", "\t", `for="1.2.3.4"`, "by=_a"}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	own, accepted := netip.MustParseAddr("192.0.2.7"), 0
	for range 50_000 {
		var b strings.Builder
		for range r.IntN(8) {
			b.WriteString(parts[r.IntN(len(parts))])
		}
		for name, added := range map[string]string{"Forwarded": "for=192.0.2.7", "X-Forwarded-For": "192.0.2.7"} {
			for _, h := range []http.Header{{name: {b.String() + ", " + added}}, {name: {b.String(), added}}} {
				got, err := clientOf(h, netip.MustParseAddr("10.0.0.1"), testProxies)
				if err == nil {
					accepted++
				}
				if err == nil && got != own || err != nil && (watchword.CodeOf(err) != watchword.BadRequest || name != "Forwarded") {
					t.Fatalf("seed %d: %q: %v, %v", seed, h, got, err)
				}
			}
		}
	}
	if accepted < 100_000 {
		t.Errorf("only %d were accepted", accepted)
	}
}

func TestNetworks(t *testing.T) {
	n, ok := parseNetworks([]string{"10.1.2.3", "192.0.2.0/24", "::ffff:198.51.100.0/120", "2001:db8::/32"})
	if !ok {
		t.Fatal("refused")
	}
	for a, want := range map[string]bool{
		"10.1.2.3": true, "10.1.2.4": false, "::ffff:10.1.2.3": true, "192.0.2.255": true, "192.0.3.0": false, "198.51.100.7": true,
		"2001:db8:1::": true, "2001:db9::": false,
	} {
		if got := n.contain(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	for _, bad := range []string{"", "host", "10.0.0.0/33", "fe80::1%eth0", "::ffff:0:0/90"} {
		if n, ok := parseNetworks([]string{"10.0.0.1", bad}); ok {
			t.Errorf("%q: %v", bad, n)
		}
	}
}
