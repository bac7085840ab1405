package server_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// tenantSide is one of two tenants of a server that have the same names for everything: the operator with the same key, the device
// lamp-1, the policy lamps, and whatever a test makes in both.
type tenantSide struct {
	*testing.T
	id       watchword.TenantID
	issuer   string
	info     server.Info
	operator *jose.Signer
	admin    *admin.Client
	lamp     *device.Device
}

// twoTenants starts a server with two tenants. Requests name theirs by path, connections by token.
func twoTenants(t *testing.T, edit func(*server.Config)) (a, b *tenantSide) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	c.Server.HTTPS, c.Server.MQTT = "localhost:"+testport.Reserve(t), "localhost:0" // the issuer names the port
	edit(&c)
	once(t, c)
	raw, err := os.ReadFile(filepath.Join(dir, "operator.jwk"))
	check(t, err)
	k, err := jose.ParsePrivateJWK([]byte(strings.TrimSpace(string(raw))), jose.ForSigning)
	check(t, err)
	operator := addOwner(t, dir, "other", k)
	o := quiet
	o.Tenants = map[watchword.TenantID][]string{"other": {"other.example"}}
	s, err := server.New(t.Context(), c, o)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, testwait.For(t, "the end of the server", ended))
	})
	testwait.For(t, "the start of the server", s.Ready())
	pem, err := os.ReadFile(s.Info().CAFile)
	check(t, err)
	side := func(id watchword.TenantID) *tenantSide {
		x := &tenantSide{T: t, id: id, issuer: watchword.Issuers(s.Info().Issuer).Of(id), info: s.Info(), operator: operator}
		x.admin, err = admin.New(admin.Options{URL: x.issuer, CA: pem, Subject: "operator", Key: k})
		check(t, err)
		_, err = x.admin.ApplyPolicy(t.Context(), "lamps", []byte(lampPolicy), -1)
		check(t, err)
		x.lamp = x.enroll("lamp-1")
		return x
	}
	return side(watchword.DefaultTenant), side("other")
}

const lampPolicy = "for = {}\n[[allow]]\npublish = [\"plant/#\"]\nsubscribe = [\"plant/#\"]\n"

// in returns the side for a subtest.
func (x *tenantSide) in(t *testing.T) *tenantSide {
	out := *x
	out.T = t
	return &out
}

// enroll makes a device, which enrolls by its link.
func (x *tenantSide) enroll(id watchword.SubjectID) *device.Device {
	x.Helper()
	made, err := x.admin.CreateDevice(x.Context(), id, watchword.Labels{"kind": "lamp"}, 0)
	check(x.T, err)
	d, err := device.OpenWith(filepath.Join(x.TempDir(), string(id)), device.Options{Log: quiet.Log})
	check(x.T, err)
	x.Cleanup(func() { check(x.T, d.Close()) })
	check(x.T, d.Enroll(x.Context(), made.Enrollment.Link))
	return d
}

// connect opens an MQTT connection of lamp-1.
func (x *tenantSide) connect(client string, edit ...func(*packet.Connect)) *mqttClient {
	x.Helper()
	access, err := x.lamp.Token(x.Context())
	check(x.T, err)
	return x.connectWith(access, client, edit...)
}

func (x *tenantSide) connectWith(access, client string, edit ...func(*packet.Connect)) *mqttClient {
	x.Helper()
	nc, err := net.Dial("tcp", x.info.MQTT)
	check(x.T, err)
	c := &mqttClient{T: x.T, tenant: x.id, nc: nc, got: make(chan packet.Packet, 1024)}
	x.Cleanup(func() { _ = nc.Close() }) // the test or the server may have closed it
	go c.read()
	p := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: client, Username: "jwt", HasUser: true, HasPass: true, Password: []byte(access)}
	for _, e := range edit {
		e(p)
	}
	c.send(p)
	c.connack = next[*packet.Connack](c)
	return c
}

// mqttClient is a client of MQTT 5.0 that a test takes packet by packet.
type mqttClient struct {
	*testing.T
	tenant  watchword.TenantID
	nc      net.Conn
	got     chan packet.Packet // closed at the end of the connection
	connack *packet.Connack
	id      uint16
	ahead   []*packet.Publish // came before the answer that was waited for
}

func (c *mqttClient) read() {
	defer close(c.got)
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := c.nc.Read(buf)
		b = append(b, buf[:n]...)
		for {
			first, body, n, ferr := packet.Frame(b, packet.MaxSize)
			if ferr != nil || n == 0 {
				break
			}
			p, perr := packet.Parse(first, append([]byte(nil), body...), packet.V5)
			if perr != nil {
				c.Errorf("what the server sent is no packet: %v", perr)
				return
			}
			b = b[n:]
			c.got <- p
		}
		if err != nil {
			return
		}
	}
}

func (c *mqttClient) send(p packet.Packet) {
	_, _ = c.nc.Write(packet.Append(nil, p, packet.V5)) // the server may have closed it: the next packet shows it
}

// next returns the next packet, which must be a P; a PUBLISH before it is put aside, unless it is the awaited packet.
func next[P packet.Packet](c *mqttClient) P {
	c.Helper()
	for {
		p := testwait.For(c.T, "a packet in tenant "+string(c.tenant), c.got)
		if out, ok := p.(P); ok {
			return out
		}
		m, ok := p.(*packet.Publish)
		if !ok {
			var want P
			c.Fatalf("%s: got %T %+v, want %T", c.tenant, p, p, want)
		}
		c.ahead = append(c.ahead, m)
	}
}

func (c *mqttClient) subscribe(filters ...string) {
	c.Helper()
	c.id++
	p := &packet.Subscribe{ID: c.id}
	for _, f := range filters {
		p.Filters = append(p.Filters, packet.Filter{Topic: f, QoS: 1})
	}
	c.send(p)
	for i, code := range next[*packet.Suback](c).Codes {
		if code > 2 {
			c.Fatalf("%s: SUBACK %#x for %s", c.tenant, code, filters[i])
		}
	}
}

// publish sends a message with QoS 1, and returns the reason code of its PUBACK.
func (c *mqttClient) publish(topic, payload string, edit ...func(*packet.Publish)) packet.Reason {
	c.Helper()
	c.id++
	p := &packet.Publish{Topic: topic, QoS: 1, ID: c.id, Payload: []byte(payload)}
	for _, e := range edit {
		e(p)
	}
	c.send(p)
	return next[*packet.Ack](c).Reason
}

func retain(p *packet.Publish) { p.Retain = true }

// wantMessages takes as many messages, which must be these and in this order, each as "topic payload".
func (c *mqttClient) wantMessages(want ...string) {
	c.Helper()
	for _, w := range want {
		var m *packet.Publish
		if len(c.ahead) > 0 {
			m, c.ahead = c.ahead[0], c.ahead[1:]
		} else {
			m = next[*packet.Publish](c)
		}
		if m.QoS > 0 {
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
		if got := m.Topic + " " + string(m.Payload); got != w {
			c.Fatalf("%s: got %q, want %q", c.tenant, got, w)
		}
	}
}

// wantEnd takes DISCONNECT with this reason, and the end of the connection.
func (c *mqttClient) wantEnd(r packet.Reason) {
	c.Helper()
	if d := next[*packet.Disconnect](c); d.Reason != r {
		c.Errorf("%s: DISCONNECT %#x, want %#x", c.tenant, d.Reason, r)
	}
	if p, open := <-c.got; open {
		c.Errorf("%s: got %T %+v, want the end", c.tenant, p, p)
	}
}

// persistent makes CONNECT resume a session that outlives its connection by an hour.
func persistent(p *packet.Connect) {
	p.CleanStart = false
	p.Properties.SetNumber(packet.SessionExpiryInterval, uint32(time.Hour/time.Second))
}
