package server

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

// A header of each version names the client, and what follows it stays for the next reader.
func TestPROXYHeaders(t *testing.T) {
	binaryHeader := func(rest string) string { return string(proxySignature) + rest }
	for name, tc := range map[string]struct {
		header, client string // client empty: refused
		orTLS          bool
	}{
		"version 1":                       {"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8443\r\n", "192.0.2.7:4711", false},
		"version 1, IPv6":                 {"PROXY TCP6 2001:db8::7 2001:db8::1 65535 443\r\n", "[2001:db8::7]:65535", false},
		"version 1, the longest":          {"PROXY UNKNOWN " + strings.Repeat("f", proxyLineBytes-16) + "\r\n", "pipe", false},
		"version 1, the shortest":         {"PROXY UNKNOWN\r\n", "pipe", false},
		"version 1, too long":             {"PROXY UNKNOWN " + strings.Repeat("f", proxyLineBytes-15) + "\r\n", "", false},
		"version 1, without the last CR":  {"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8443\n" + strings.Repeat(" ", 100), "", false},
		"version 1, a port too high":      {"PROXY TCP4 192.0.2.7 10.0.0.1 65536 8443\r\n", "", false},
		"version 1, the wrong family":     {"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", "", false},
		"version 1, IPv6 with IPv4":       {"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n", "", false},
		"version 1, the proxy is invalid": {"PROXY TCP4 192.0.2.7 x 1 2\r\n", "", false},
		"version 1, a name":               {"PROXY TCP4 hub.local 10.0.0.1 1 2\r\n", "", false},
		"version 1, a field too few":      {"PROXY TCP4 192.0.2.7 10.0.0.1 1\r\n", "", false},
		"version 1, two spaces":           {"PROXY TCP4  192.0.2.7 10.0.0.1 1 2\r\n", "", false},
		"version 1, UDP":                  {"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n", "", false},
		"version 2":                       {binaryHeader("\x21\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x67\x20\xfb"), "192.0.2.7:4711", false},
		"version 2, more than addresses":  {binaryHeader("\x21\x11\x00\x10\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x67\x20\xfb\x04\x00\x01\x00"), "192.0.2.7:4711", false},
		"version 2, LOCAL":                {binaryHeader("\x20\x00\x00\x00"), "pipe", false},
		"version 2, UDP":                  {binaryHeader("\x21\x12\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x67\x20\xfb"), "", false},
		"version 2, too long":             {binaryHeader("\x21\x11\x10\x01") + strings.Repeat("x", proxyBytes+1), "", false},
		"version 3":                       {binaryHeader("\x31\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x67\x20\xfb"), "", false},
		"none":                            {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdef", "", false},
		"none, and TLS may be there":      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdef", "pipe", true},
		"neither, where TLS may be there": {"GET / HTTP/1.1\r\n\r\n", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			go func() {
				_, _ = io.WriteString(theirs, tc.header+"rest") // fails when the header is refused before its end
				_ = theirs.Close()
			}()
			got, err := readProxy(ours, tc.orTLS)
			if tc.client == "" {
				if watchword.CodeOf(err) != watchword.BadRequest {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || got.RemoteAddr().String() != tc.client {
				t.Fatalf("%v, %v", got, err)
			}
			want := "rest"
			if tc.orTLS {
				want = tc.header + want
			}
			if rest, err := io.ReadAll(got); err != nil || string(rest) != want {
				t.Errorf("%q follows, %v", rest, err)
			}
		})
	}
}
