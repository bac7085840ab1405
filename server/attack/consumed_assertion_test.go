package attack_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// connected sends the bytes of a CONNECT, and returns the code of CONNACK; 0xFF if the connection ends without one.
func connected(t *testing.T, nc net.Conn, v packet.Version, b []byte) packet.Reason {
	t.Helper()
	must(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
	_, err := nc.Write(b)
	must(t, err)
	var in []byte
	buf := make([]byte, 4096)
	for {
		n, err := nc.Read(buf)
		in = append(in, buf[:n]...)
		first, body, used, ferr := packet.Frame(in, packet.MaxSize)
		must(t, ferr)
		if used > 0 {
			p, err := packet.Parse(first, body, v)
			if err != nil { // a client of another version is answered in 3.1.1
				p, err = packet.Parse(first, body, packet.V311)
			}
			must(t, err)
			if ack, ok := p.(*packet.Connack); ok {
				return ack.Code
			}
			t.Fatalf("got %T, want CONNACK", p)
		}
		if errors.Is(err, io.EOF) {
			return 0xFF
		}
		if err != nil {
			t.Fatalf("no CONNACK: %v", err)
		}
	}
}

// TestRefusedConnectDoesNotConsumeAssertion: whatever refuses a CONNECT that carries a client
// assertion, the same assertion is good for the next one that is right.
func TestRefusedConnectDoesNotConsumeAssertion(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.TokenRate = 100_000 })
	d := srv.enroll("lamp-1", device.Options{}, nil)
	full := srv.enroll("lamp-2", device.Options{}, nil)  // has as many live sessions as it may
	lasts := srv.enroll("lamp-3", device.Options{}, nil) // and as many that outlive their connection
	dial := func(d *device.Device) net.Conn {
		t.Helper()
		nc, err := tls.Dial("tcp", d.MQTT(), anchored(t, d))
		must(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	connect := func(v packet.Version, id, assertion string) *packet.Connect {
		return &packet.Connect{Version: v, CleanStart: true, ClientID: id, Username: "jwt", HasUser: true, HasPass: true, Password: []byte(assertion), KeepAlive: 60}
	}
	outlives := func(p *packet.Connect) { p.Properties.SetNumber(packet.SessionExpiryInterval, 600) }
	var open []net.Conn
	for n := range 8 {
		nc := dial(full)
		open = append(open, nc)
		if r := connected(t, nc, packet.V5, packet.Append(nil, connect(packet.V5, fmt.Sprint("lamp-2/", n), mustValue(full.Assertion(time.Minute))(t)), packet.V5)); r != packet.Success {
			t.Fatalf("live session %d: %#x", n, r)
		}
		p := connect(packet.V5, fmt.Sprint("lamp-3/", n), mustValue(lasts.Assertion(time.Minute))(t))
		outlives(p)
		nc = dial(lasts)
		if r := connected(t, nc, packet.V5, packet.Append(nil, p, packet.V5)); r != packet.Success {
			t.Fatalf("session that lasts %d: %#x", n, r)
		}
		_, err := nc.Write(packet.Append(nil, &packet.Disconnect{}, packet.V5))
		must(t, err)
		_ = nc.Close() // it is away
	}
	both := []packet.Version{packet.V311, packet.V5}
	only := func(v packet.Version) []packet.Version { return []packet.Version{v} }
	for _, tc := range []struct {
		name string
		by   *device.Device
		in   []packet.Version
		edit func(p *packet.Connect)
		raw  func(body []byte) []byte
	}{
		{"another's client id", d, both, func(p *packet.Connect) { p.ClientID = "lamp-2" }, nil},
		{"a suffix that is no name", d, both, func(p *packet.Connect) { p.ClientID = "lamp-1/a/b" }, nil},
		{"no client id for a session that lasts", d, only(packet.V311), func(p *packet.Connect) { p.ClientID, p.CleanStart = "", false }, nil},
		{"a will's topic with a wildcard", d, both, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "a/#"} }, nil},
		{"a will's topic with a control character", d, both, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "devices/lamp-1/events/\x01"} }, nil},
		{"a will's topic that is too deep", d, both, func(p *packet.Connect) { p.Will = &packet.Will{Topic: strings.Repeat("a/", 64)} }, nil},
		{"a will to the server itself", d, both, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "$watchword/auth"} }, nil},
		{"a will that policy does not give", d, both, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "plant/x"} }, nil},
		{"a will's property with a control character", d, only(packet.V5), func(p *packet.Connect) {
			p.Will = &packet.Will{Topic: "devices/lamp-1/events/x"}
			p.Will.Properties.SetText(packet.ContentType, "a\n")
		}, nil},
		{"an empty response topic", d, only(packet.V5), func(p *packet.Connect) {
			p.Will = &packet.Will{Topic: "devices/lamp-1/events/x"}
			p.Will.Properties.SetText(packet.ResponseTopic, "")
		}, nil},
		{"an authentication method beside the password", d, only(packet.V5), func(p *packet.Connect) { p.Properties.SetText(packet.AuthenticationMethod, "ace") }, nil},
		{"another authentication method", d, only(packet.V5), func(p *packet.Connect) { p.Properties.SetText(packet.AuthenticationMethod, "SCRAM-SHA-1") }, nil},
		{"no packet as large as CONNACK", d, only(packet.V5), func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 12) }, nil},
		{"another version", d, both, nil, func(b []byte) []byte { b[6] = 6; return b }},
		{"the reserved flag", d, both, nil, func(b []byte) []byte { b[7] |= 1; return b }},
		{"bytes after its end", d, both, nil, func(b []byte) []byte { return append(b, 0) }},
		{"as many live sessions as it may have", full, both, nil, nil},
		{"as many lasting sessions as it may have", lasts, only(packet.V5), outlives, nil},
		{"as many lasting sessions as it may have", lasts, only(packet.V311), func(p *packet.Connect) { p.CleanStart = false }, nil},
	} {
		for _, v := range tc.in {
			t.Run(fmt.Sprint(tc.name, ", version ", v), func(t *testing.T) {
				assertion := mustValue(tc.by.Assertion(time.Minute))(t)
				id := string(tc.by.ID())
				if tc.by == full {
					id += fmt.Sprint("/as-", v) // else it would take the place of the one before
				}
				bad := connect(v, id, assertion)
				if tc.edit != nil {
					tc.edit(bad)
				}
				b := packet.Append(nil, bad, v)
				if tc.raw != nil {
					_, body, _, err := packet.Frame(b, packet.MaxSize)
					must(t, err)
					body = tc.raw(body)
					if len(body) < 128 || len(body) >= 128*128 {
						t.Fatalf("a CONNECT of %d bytes", len(body))
					}
					b = append([]byte{b[0], byte(len(body)) | 0x80, byte(len(body) >> 7)}, body...)
				}
				if r := connected(t, dial(tc.by), v, b); r == packet.Success {
					t.Fatal("it was taken")
				}
				if tc.by == full {
					_ = open[0].Close()
					open = open[1:]
				}
				for end := time.Now().Add(10 * time.Second); ; {
					r := connected(t, dial(tc.by), v, packet.Append(nil, connect(v, id, assertion), v))
					if r == packet.Success {
						return
					}
					if tc.by != full || time.Now().After(end) { // the server sees the end of the other in its own time
						t.Fatalf("the same assertion, in a CONNECT that is right: %#x", r)
					}
				}
			})
		}
	}
}
