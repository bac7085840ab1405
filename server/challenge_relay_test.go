package server_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/eclipse/paho.golang/packets"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
)

// A peer with a public certificate for the server's name, for example one that inspects TLS, gets no signature over a challenge: it could
// pass on that of its own connection to the server, and have the session of the device.
func TestADeviceThatProvedItsConnectionSignsNoChallenge(t *testing.T) {
	c := config(t, t.TempDir()+"/data")
	cert := publicCertificate(t, "localhost")
	c.Server.TLSCert, c.Server.TLSKey = writeCertificate(t, t.TempDir(), cert)
	info := running(t, c)
	o, err := admin.LocalOptions(c.Data)
	check(t, err)
	owner, err := admin.New(o)
	check(t, err)
	made, err := owner.CreateDevice(t.Context(), "lamp-1", nil, 0)
	check(t, err)
	peer, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	check(t, err)
	t.Cleanup(func() { check(t, peer.Close()) })
	next := make(chan *packets.ControlPacket, 1) // what the device sends behind the challenge; nil: nothing
	go func() {
		defer close(next)
		nc, err := peer.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		p, err := packets.ReadPacket(nc)
		if err != nil || p.Type != packets.CONNECT {
			return
		}
		// AUTH, to continue authentication, with the method ace and a challenge of 8 bytes.
		if _, err := io.WriteString(nc, "\xf0\x13\x18\x11\x15\x00\x03ace\x16\x00\x0801234567"); err != nil {
			return
		}
		if p, err := packets.ReadPacket(nc); err == nil {
			next <- p
		}
	}()
	over := make(chan string, 8)
	d, err := device.OpenWith(t.TempDir()+"/lamp-1", device.Options{
		Log: quiet.Log, ProvePossession: true, Connected: func(o string) { over <- o },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			to := info.HTTPS
			if portOf(address) == portOf(info.MQTTS) {
				to = peer.Addr().String()
			}
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	})
	check(t, err)
	t.Cleanup(func() { check(t, d.Close()) })
	check(t, d.Enroll(t.Context(), made.Enrollment.Link))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	if p := testwait.For(t, "the end of the connection to the other peer", next); p != nil && p.Type == packets.AUTH {
		t.Errorf("the device answered the challenge: %v", p)
	}
	if got := testwait.For(t, "the connection over HTTPS", over); got != "https" {
		t.Errorf("the device is connected over %s", got)
	}
	cancel()
	check(t, testwait.For(t, "the end of the device", ended))
}
