package mqtt_test

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
)

const ownCommands = "devices/lamp-7/commands"

// commandFixture is a command service over a real store behind the engine, and the device lamp-7 with keys.
type commandFixture struct {
	t       *testing.T
	service *command.Service
	store   *sqlite.Store
	may     *session.Authority
	opens   *jose.Decrypter
}

// withCommands is inBubble with a command service that hands commands to lamp-7.
func withCommands(t *testing.T, f func(t *testing.T, srv *testServer, o *commandFixture)) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		dir := t.TempDir()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		st, err := sqlite.Open(t.Context(), filepath.Join(dir, "db"), sqlite.Options{})
		must(err)
		defer func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		}()
		kek, err := keyring.OpenKEK(filepath.Join(dir, "kek"), true)
		must(err)
		now := time.Now()
		sign, err := jose.GenerateKey(jose.P256)
		must(err)
		seal, err := jose.GenerateKey(jose.X25519)
		must(err)
		key := func(k *jose.PrivateKey, p watchword.Purpose) watchword.Key {
			return watchword.Key{ID: k.Public().ID(), Purpose: p, JWK: k.Public().JWK(), State: watchword.KeyActive, Added: now}
		}
		alice, err := jose.GenerateKey(jose.P256)
		must(err)
		must(keyring.Initialize(t.Context(), st, keyring.InitOptions{Issuer: "https://server.example", KEK: kek, Now: now, Operator: watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: "alice", Kind: watchword.Operator, State: watchword.Active, Role: policy.RoleOwner,
			Version: 1, Incarnation: 1, Created: now, Changed: now, Keys: []watchword.Key{key(alice, watchword.Sign)},
		}}))
		ring, err := keyring.Open(t.Context(), st, kek, nil)
		must(err)
		hash := sha256.Sum256([]byte("lamp-7"))
		entry := func(kind string) audit.Entry {
			return audit.Entry{Tenant: watchword.DefaultTenant, At: now, Kind: kind, Object: "lamp-7", Outcome: audit.Done}
		}
		must(st.CreateSubject(t.Context(), watchword.Subject{Tenant: watchword.DefaultTenant, ID: "lamp-7", Kind: watchword.Device, State: watchword.New, Created: now, Changed: now},
			&enroll.Code{Tenant: watchword.DefaultTenant, Hash: hash, Subject: "lamp-7", Expires: now.Add(time.Hour)}, entry(audit.DeviceCreate)))
		_, _, err = st.RedeemCode(t.Context(), enroll.Redemption{Tenant: watchword.DefaultTenant, Hash: hash, Sign: key(sign, watchword.Sign), Seal: key(seal, watchword.Seal)}, watchword.AuthorityVersions{}, now, audit.FixedEntry[watchword.Subject](entry(audit.DeviceEnroll)))
		must(err)
		directory := registry.NewDirectory(st)
		all, err := policy.FromPermissions([]watchword.Permission{{Resource: "fn:*/*", Actions: []string{"call"}}}, nil)
		must(err)
		o := &commandFixture{t: t, store: st}
		o.opens, err = seal.Decrypter()
		must(err)
		o.may, err = session.NewGuard(directory, session.GuardOptions{}).Check(t.Context(), session.Credentials{
			Tenant: watchword.DefaultTenant, Subject: "alice", Incarnation: 1, Key: alice.Public().ID(), Expires: now.Add(24 * time.Hour), Permissions: all,
		})
		must(err)
		o.service = command.New(st, directory, ring, ring, command.Options{Issuers: watchword.FixedIssuer("https://server.example"), Epoch: 1})
		srv.close()
		srv.commands = o.service
		srv.start(mqtt.Options{})
		f(t, srv, o)
		srv.close()
	})
}

// order orders a command of lamp-7 and returns its number.
func (o *commandFixture) order() int64 {
	o.t.Helper()
	row, err := o.service.Order(o.t.Context(), o.may, command.Call{Device: "lamp-7", Function: "blink", TTL: time.Hour}, "")
	if err != nil {
		o.t.Fatal(err)
	}
	return row.Seq
}

// take returns the next packet, which must be the command with number n, unacknowledged.
func (o *commandFixture) take(c *testClient, n int64) *packet.Publish {
	o.t.Helper()
	p := want[*packet.Publish](c)
	if p.Topic != ownCommands || p.QoS != 1 || p.Retain {
		o.t.Fatalf("got %+v, want command %d", p, n)
	}
	jws, _, err := o.opens.Decrypt(string(p.Payload), watchword.MaxDocument)
	if err != nil {
		o.t.Fatal(err)
	}
	u, err := jose.ParseJWS(string(jws), watchword.MaxDocument)
	if err != nil {
		o.t.Fatal(err)
	}
	var seq int64
	var claims struct {
		Seq int64 `json:"seq"`
	}
	if err := jose.Decode(u.UnverifiedPayload(), &claims); err != nil {
		o.t.Fatal(err)
	}
	if seq = claims.Seq; seq != n {
		o.t.Fatalf("got command %d, want %d", seq, n)
	}
	return p
}

func (c *testClient) acknowledge(p *packet.Publish) {
	c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
}

// Commands are for one connection. A shared subscription to them is refused, and one to
// more, which others may be in, is handed none.
func TestASharedSubscriptionIsHandedNoCommands(t *testing.T) {
	withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
		c := srv.device("lamp-7")
		for filter, code := range map[string]packet.Reason{
			"$share/g/" + ownCommands: packet.NotAuthorized, "$share/g/devices/lamp-7/#": 1, "$share/g/devices/+/commands": 1, "$share/g/#": 1, "$share/g/devices/lamp-8/commands": 1,
		} {
			if codes := c.subscribe(1, filter); codes[0] != code {
				t.Fatalf("%s: %#x, want %#x", filter, codes[0], code)
			}
		}
		n := o.order()
		c.wantNothing()
		// Nor does it keep them from a subscription that is the device's own.
		if codes := c.subscribe(1, ownCommands); codes[0] != 1 {
			t.Fatalf("%#x", codes[0])
		}
		c.acknowledge(o.take(c, n))
		n = o.order()
		c.acknowledge(o.take(c, n))
		c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{ownCommands}})
		want[*packet.Unsuback](c)
		n = o.order()
		c.wantNothing()
		rows, err := o.service.List(t.Context(), watchword.DefaultTenant, command.Filter{Device: "lamp-7"}, "", 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.Seq == n && r.State != watchword.Queued {
				t.Errorf("a command without a device to take it is %s, want queued", r.State)
			}
		}
	})
}

// A device holds sixteen commands that it has not acknowledged; each acknowledgement lets
// one more in, whatever order they come in.
func TestSixteenCommandsAtOnce(t *testing.T) {
	withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
		c := srv.device("lamp-7")
		c.subscribe(1, ownCommands)
		const window = 16
		for range window + 4 {
			o.order()
		}
		var held []*packet.Publish
		for i := range window {
			held = append(held, o.take(c, int64(i+1)))
		}
		c.wantNothing()
		c.acknowledge(held[3])
		o.take(c, window+1)
		c.wantNothing()
		c.acknowledge(held[0])
		c.acknowledge(held[1])
		o.take(c, window+2)
		o.take(c, window+3)
		c.wantNothing()
		c.acknowledge(held[2])
		o.take(c, window+4)
		c.wantNothing()
		if got := o.order(); got != window+5 {
			t.Fatalf("number %d", got)
		}
		c.wantNothing() // sixteen are in flight again
		c.acknowledge(held[4])
		o.take(c, window+5)
		c.wantNothing()
	})
}

// Any subscription with QoS 1 that reaches the device's own commands is handed them; none with
// QoS 0, none that reaches others, and none of another device.
func TestCommandHandOverConditions(t *testing.T) {
	for filter, qos := range map[string]byte{"devices/lamp-7/#": 1, "#": 1, "devices/+/commands": 1, ownCommands: 1} {
		withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
			c := srv.device("lamp-7")
			if codes := c.subscribe(qos, filter); codes[0] != packet.Reason(qos) {
				t.Fatalf("%s: %#x", filter, codes[0])
			}
			c.acknowledge(o.take(c, o.order()))
		})
	}
	for filter, qos := range map[string]byte{"devices/lamp-7/#": 0, "#": 0, "devices/lamp-8/commands": 1, "devices/lamp-7/config": 1} {
		withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
			c := srv.device("lamp-7")
			if codes := c.subscribe(qos, filter); codes[0] != packet.Reason(qos) {
				t.Fatalf("%s: %#x", filter, codes[0])
			}
			o.order()
			c.wantNothing()
		})
	}
	// A device gets its own commands, and no other client does.
	withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
		other := srv.device("lamp-8")
		if codes := other.subscribe(1, "#", ownCommands); fmt.Sprint(codes) != "[1 1]" {
			t.Fatalf("%v", codes)
		}
		n := o.order()
		other.wantNothing()
		c := srv.device("lamp-7")
		c.subscribe(1, ownCommands)
		o.take(c, n)
		other.wantNothing()
	})
}

// state returns the state of the command with number n.
func (o *commandFixture) state(n int64) watchword.CommandState {
	o.t.Helper()
	rows, err := o.service.List(o.t.Context(), watchword.DefaultTenant, command.Filter{Device: "lamp-7"}, "", 100)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Seq == n {
			return r.State
		}
	}
	o.t.Fatalf("no command %d", n)
	return ""
}

// An acknowledgement is stored a moment later, together with those that follow it at once, without a receipt.
func TestAcknowledgementsAreWrittenDown(t *testing.T) {
	withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
		c := srv.device("lamp-7")
		c.subscribe(1, ownCommands)
		for range 3 {
			first, second := o.order(), o.order()
			a, b := o.take(c, first), o.take(c, second)
			c.acknowledge(a)
			synctest.Wait()
			time.Sleep(10 * time.Millisecond)
			c.acknowledge(b)
			synctest.Wait()
			if s := o.state(first); s != watchword.Sent {
				t.Errorf("number %d is %s before the pause is over, want sent", first, s)
			}
			time.Sleep(15 * time.Millisecond)
			synctest.Wait()
			for _, n := range []int64{first, second} {
				if s := o.state(n); s != watchword.Delivered {
					t.Errorf("number %d is %s after the pause, want delivered", n, s)
				}
			}
		}
	})
}

// A session that is resumed is handed the commands that came meanwhile, by the
// subscription of then; and a connection with a Maximum Packet Size what fits into it.
func TestAResumedSessionIsHandedCommands(t *testing.T) {
	withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
		srv.leaveOffline(packet.V5, "lamp-7", ownCommands)
		n := o.order()
		c := srv.connect(packet.V5, "lamp-7", srv.token("lamp-7", time.Hour), persistentSession, func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 4000) })
		c.acknowledge(o.take(c, n))
	})
}

// A hello after the subscription is effective: unacknowledged commands are sent again, with its nonce.
func TestHelloAfterSubscribe(t *testing.T) {
	withCommands(t, func(t *testing.T, srv *testServer, o *commandFixture) {
		c := srv.device("lamp-7")
		c.subscribe(1, ownCommands)
		n := o.order()
		o.take(c, n)
		const nonce = "0123456789012345678901"
		if r := c.publish(1, "$watchword/hello", `{"nonce":"`+nonce+`","epoch":0,"seq":0}`); r != packet.Success {
			t.Fatalf("hello: %#x", r)
		}
		p := o.take(c, n)
		jws, _, err := o.opens.Decrypt(string(p.Payload), watchword.MaxDocument)
		if err != nil {
			t.Fatal(err)
		}
		u, err := jose.ParseJWS(string(jws), watchword.MaxDocument)
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			Nonce string `json:"nonce"`
		}
		if err := jose.Decode(u.UnverifiedPayload(), &claims); err != nil || claims.Nonce != nonce {
			t.Errorf("nonce %q (%v), want %q", claims.Nonce, err, nonce)
		}
		// What it says that it knows is written down at once, though it acknowledges nothing.
		if r := c.publish(1, "$watchword/hello", fmt.Sprintf(`{"nonce":"%s","epoch":1,"seq":%d}`, nonce, n)); r != packet.Success {
			t.Fatalf("hello: %#x", r)
		}
		synctest.Wait()
		if s := o.state(n); s != watchword.Delivered {
			t.Errorf("a command that the device knows is %s, want delivered", s)
		}
	})
}
