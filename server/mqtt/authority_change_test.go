package mqtt_test

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/session"
)

// nextNotice takes the next word on $watchword/auth.
func (c *testClient) nextNotice() mqtt.Notice {
	c.t.Helper()
	m := c.receiveAndAck()
	var n mqtt.Notice
	if err := json.Unmarshal(m.Payload, &n); err != nil || m.Topic != "$watchword/auth" {
		c.t.Fatalf("got %q on %s: %v", m.Payload, m.Topic, err)
	}
	return n
}

func TestLostAuthorityClosesConnectionWithReason(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*testServer)
		want packet.Reason
	}{
		"revoked":             {func(srv *testServer) { srv.state("lamp-7", watchword.Revoked) }, packet.NotAuthorized},
		"suspended":           {func(srv *testServer) { srv.state("lamp-7", watchword.Suspended) }, packet.AdministrativeAction},
		"a key retired":       {func(srv *testServer) { srv.retireKey("lamp-7") }, packet.NotAuthorized},
		"a subscription lost": {func(srv *testServer) { srv.policy(`subscribe = ["b"]`) }, packet.NotAuthorized},
		"closed by an operator": {func(srv *testServer) {
			for _, s := range srv.guard.SubjectSessions(watchword.DefaultTenant, "lamp-7") {
				s.End(watchword.Refuse(watchword.SessionClosed, "closed"))
			}
		}, packet.AdministrativeAction},
		"the server goes": {func(srv *testServer) { srv.guard.Close(watchword.Refuse(watchword.Unavailable, "going down")) }, packet.ServerShuttingDown},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				five, three := srv.device("lamp-7"), srv.connect(packet.V311, "lamp-7/old", srv.token("lamp-7", time.Hour))
				for _, cl := range []*testClient{five, three} {
					cl.subscribe(1, "a")
				}
				c.end(srv)
				five.wantDisconnect(c.want)
				three.wantDisconnect(0)
				synctest.Wait()
				if s := srv.broker.Stats(); s.Clients != 0 || s.Subscriptions != 0 {
					t.Errorf("left: %+v", s)
				}
			})
		})
	}
}

func (srv *testServer) retireKey(id watchword.SubjectID) {
	srv.mu.Lock()
	srv.subjects[id].Keys = []watchword.Key{{ID: "k1", Purpose: watchword.Sign, State: watchword.KeyRetired}}
	srv.mu.Unlock()
	srv.changed(watchword.SubjectChanged, string(id))
}

func TestInvalidTokenDoesNotTakeOverConnection(t *testing.T) {
	for name, spoil := range map[string]func(srv *testServer, old string){
		"of a key that was retired": func(srv *testServer, old string) { srv.edit(old, func(p *session.Credentials) { p.Key = "k0" }) },
		"of an earlier life":        func(srv *testServer, old string) { srv.edit(old, func(p *session.Credentials) { p.Incarnation = 0 }) },
		"revoked just now": func(srv *testServer, old string) {
			srv.changed(watchword.AccessTokenRevoked, old)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				old := srv.token("lamp-7", time.Hour)
				spoil(srv, old)
				lamp := srv.device("lamp-7")
				lamp.subscribe(1, "a")
				burglar := srv.dialRaw(packet.V5)
				burglar.send(hello(packet.V5, "lamp-7", old))
				if a := want[*packet.Connack](burglar); a.Code != packet.NotAuthorized {
					t.Errorf("CONNACK %#x, want %#x", a.Code, packet.NotAuthorized)
				}
				lamp.wantNothing()
				lamp.publish(0, "a", "still here")
				lamp.wantMessage("a", "still here")
			})
		})
	}
}

// edit changes what a token says.
func (srv *testServer) edit(raw string, change func(*session.Credentials)) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	p := srv.tokens[raw]
	change(&p)
	srv.tokens[raw] = p
}

func TestLostSubscriptionIsReportedOnAuthTopic(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c, pub := srv.device("lamp-7"), srv.device("pub")
		c.subscribe(1, "a", "b", "$watchword/auth")
		srv.policy(`subscribe = ["b"]`, `publish = ["#"]`)
		if n := c.nextNotice(); n.Type != "lost" || len(n.Subscriptions) != 1 || n.Subscriptions[0] != "a" {
			t.Errorf("%+v", n)
		}
		pub.publish(1, "a", "no")
		pub.publish(1, "b", "yes")
		c.wantMessage("b", "yes")
		if codes := c.subscribe(1, "a"); codes[0] != packet.NotAuthorized {
			t.Errorf("subscribing again: %#x", codes[0])
		}
		time.Sleep(5 * time.Second)
		if n := c.nextNotice(); n.Type != "refresh" {
			t.Errorf("after an edit the server asks for a refresh: %+v", n)
		}
	})
}

func TestQueuedMessagesEndWithSubscription(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c, pub := srv.device("lamp-7", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) }), srv.device("pub")
		c.subscribe(1, "a/#", "b", "+/both", "$watchword/auth")
		pub.publish(1, "b", "first")
		held := want[*packet.Publish](c) // not acknowledged: the rest waits
		for _, topic := range []string{"a/1", "b", "a/2", "a/both", "a/3"} {
			pub.publish(1, topic, topic)
		}
		srv.policy(`subscribe = ["b", "+/both"]`, `publish = ["#"]`)
		c.wantNothing()
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: held.ID})
		c.wantMessage("b", "b")
		c.wantMessage("a/both", "a/both") // another subscription holds it up
		if n := c.nextNotice(); n.Type != "lost" || n.Subscriptions[0] != "a/#" {
			t.Errorf("%+v", n)
		}
	})
}

func TestOnlyAffectedSessionsAreRecomputed(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c, other := srv.device("lamp-7"), srv.device("lamp-8")
		c.subscribe(1, "a", "$watchword/auth")
		other.subscribe(1, "a", "$watchword/auth")
		srv.state("lamp-7", watchword.Suspended)
		c.wantDisconnect(packet.AdministrativeAction)
		time.Sleep(time.Minute)
		other.wantNothing()
	})
}

func TestRefreshWithoutAuth(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		for _, v := range []packet.Version{packet.V5, packet.V311} {
			id := watchword.SubjectID(map[packet.Version]string{packet.V5: "five", packet.V311: "three"}[v])
			c, pub := srv.connect(v, string(id), srv.token(id, 10*time.Minute)), srv.device("pub")
			c.subscribe(1, "a", "$watchword/auth")
			start := time.Now()
			n := c.nextNotice() // requested in time, without a timer
			if d := time.Since(start); n.Type != "refresh" || d < 7*time.Minute || d > 510*time.Second {
				t.Errorf("asked after %s: %+v", d, n)
			}
			c.send(&packet.Publish{Topic: "$watchword/auth", QoS: 1, ID: 77, Payload: []byte(srv.token(id, 10*time.Minute))})
			if a := want[*packet.Ack](c); a.Reason != packet.Success {
				t.Errorf("%+v", a)
			}
			if n := c.nextNotice(); n.Type != "refreshed" || time.Until(*n.ExpiresAt) < 9*time.Minute {
				t.Errorf("%+v", n)
			}
			time.Sleep(5 * time.Minute) // past the old end
			pub.publish(1, "a", "still here")
			c.wantMessage("a", "still here")
			c.nextNotice() // asked again
		}
	})
}

func TestRefusedRefreshChangesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.connect(packet.V5, "lamp-7", srv.token("lamp-7", 10*time.Minute))
		c.subscribe(1, "$watchword/auth")
		for name, raw := range map[string]string{"rubbish": "x", "another's": srv.token("lamp-8", time.Hour), "nothing": ""} {
			c.send(&packet.Publish{Topic: "$watchword/auth", QoS: 1, ID: 7, Payload: []byte(raw)})
			if a := want[*packet.Ack](c); a.Reason != packet.NotAuthorized {
				t.Errorf("%s: %#x", name, a.Reason)
			}
			if n := c.nextNotice(); n.Type != "refused" {
				t.Errorf("%s: %+v", name, n)
			}
		}
		c.nextNotice() // it is asked to, in time
		c.wantDisconnect(packet.MaximumConnectTime)
	})
}

// withAce names the method and the token, and the proof if there is one.
func withAce(token string, proof []byte) func(*packet.Connect) {
	return func(p *packet.Connect) {
		p.HasUser, p.HasPass, p.Password = false, false, nil
		p.Properties.SetText(packet.AuthenticationMethod, "ace")
		p.Properties.SetData(packet.AuthenticationData, append(withLength(token), proof...))
	}
}

func withLength(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

// prove answers the server's challenge.
func (c *testClient) prove(key ed25519.PrivateKey) {
	c.t.Helper()
	a := want[*packet.Auth](c)
	challenge, _ := a.Properties.Data(packet.AuthenticationData)
	if a.Reason != packet.ContinueAuthentication || len(challenge) != 8 {
		c.t.Fatalf("%+v", a)
	}
	const mine = "12345678"
	out := &packet.Auth{Reason: packet.ContinueAuthentication}
	out.Properties.SetText(packet.AuthenticationMethod, "ace")
	out.Properties.SetData(packet.AuthenticationData, append(withLength(mine), ed25519.Sign(key, append(challenge, mine...))...))
	c.send(out)
}

func (c *testClient) reauthenticate(token string) {
	a := &packet.Auth{Reason: packet.ReAuthenticate}
	a.Properties.SetText(packet.AuthenticationMethod, "ace")
	a.Properties.SetData(packet.AuthenticationData, withLength(token))
	c.send(a)
}

func TestProofOfPossession(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		_, other, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		srv.proofKey = pub
		begin := func(edit func(*packet.Connect)) *testClient {
			c := srv.dialRaw(packet.V5)
			p := hello(packet.V5, "lamp-7", "")
			edit(p)
			c.send(p)
			return c
		}

		c := begin(withAce(srv.token("lamp-7", 10*time.Minute), nil))
		c.prove(key)
		ack := want[*packet.Connack](c)
		if m, _ := ack.Properties.Text(packet.AuthenticationMethod); ack.Code != packet.Success || m != "ace" {
			t.Fatalf("%+v", ack)
		}
		c.subscribe(1, "a", "$watchword/auth")
		c.nextNotice()
		if r := c.publish(1, "$watchword/auth", srv.token("lamp-7", time.Hour)); r != packet.NotAuthorized {
			t.Errorf("a refresh without the proof: %#x", r)
		}
		c.reauthenticate(srv.token("lamp-7", 10*time.Minute))
		c.prove(key)
		if a := want[*packet.Auth](c); a.Reason != packet.Success {
			t.Errorf("%+v", a)
		}
		if n := c.nextNotice(); n.Type != "refreshed" {
			t.Errorf("%+v", n)
		}
		time.Sleep(5 * time.Minute)
		c.send(&packet.Publish{Topic: "a", Payload: []byte("past the old end")})
		c.wantMessage("a", "past the old end")
		c.reauthenticate(srv.token("lamp-7", 10*time.Minute))
		c.prove(other)
		c.wantDisconnect(packet.NotAuthorized)

		c = begin(withAce(srv.token("lamp-7", time.Hour), nil))
		c.prove(other)
		if ack := want[*packet.Connack](c); ack.Code != packet.NotAuthorized {
			t.Errorf("another's proof: %+v", ack)
		}
		c = begin(withAce(srv.token("lamp-7", time.Hour), make([]byte, 64)))
		if ack := want[*packet.Connack](c); ack.Code != packet.NotAuthorized {
			t.Errorf("a proof by the exporter, without TLS: %+v", ack)
		}
		c = begin(withAce("token-x", nil))
		if ack := want[*packet.Connack](c); ack.Code != packet.NotAuthorized {
			t.Errorf("a token that is not on record: %+v", ack)
		}
		c = begin(func(p *packet.Connect) {
			withAce("", nil)(p)
			p.Properties.SetData(packet.AuthenticationData, []byte{0, 50, 1})
		})
		if ack := want[*packet.Connack](c); ack.Code != packet.BadUserNameOrPassword {
			t.Errorf("a false length: %+v", ack)
		}
		c = begin(withAce(srv.token("lamp-7", time.Hour), nil))
		want[*packet.Auth](c)
		c.send(&packet.Publish{Topic: "a"})
		if p, open := <-c.got; open {
			t.Errorf("a publish before the proof: got %T, want the end", p)
		}
	})
}

func TestEventsReachReaders(t *testing.T) {
	inBubble(t, func(t *testing.T, h *testServer) {
		s := h.reader("devices/+/events/#")
		defer s.Close()
		c, app := h.device("lamp-7"), h.device("app")
		app.subscribe(1, "devices/+/events/lux/#")
		if r := c.publish(1, "devices/lamp-7/events/lux/1", "42"); r != packet.Success {
			t.Errorf("%#x", r)
		}
		app.wantMessage("devices/lamp-7/events/lux/1", "42")
		testwait.For(t, "the event", s.Ready())
		if es, gap, _ := s.Next(); len(es) != 1 || gap.Any() || es[0].Device != "lamp-7" || es[0].Stream != "lux/1" || string(es[0].Data) != "42" {
			t.Errorf("%+v, gap %+v", es, gap)
		}
		if r := c.publish(1, "devices/lamp-7/events/l%x", "42"); r != packet.PayloadFormatInvalid {
			t.Errorf("a stream that is no name: %#x", r)
		}
		h.publish(&bus.Document{Name: "devices/lamp-8/events/lux/2", ContentType: "text/plain", Payload: []byte("over another transport")})
		app.wantMessage("devices/lamp-8/events/lux/2", "over another transport")
	})
}

// Of two publishers of one stream, one over MQTT and one that is not, a client and a reader of events have the same order.
func TestEventsHaveOneOrderForClientsAndReaders(t *testing.T) {
	inBubble(t, func(t *testing.T, h *testServer) {
		reader := h.reader("devices/+/events/#")
		defer reader.Close()
		device, app := h.device("lamp-7"), h.device("app")
		app.subscribe(0, "devices/lamp-7/events/lux")
		const each = 100
		published := make(chan struct{})
		go func() {
			defer close(published)
			for n := range each {
				e := &bus.Event{Device: "lamp-7", Stream: "lux", At: time.Now(), Data: fmt.Appendf(nil, "http %d", n)}
				if err := h.bus.Tenant(watchword.DefaultTenant).PublishDocument(&bus.Document{Name: e.Topic(), Payload: e.Data}, e); err != nil {
					t.Error(err)
				}
			}
		}()
		for n := range each {
			device.send(&packet.Publish{Topic: "devices/lamp-7/events/lux", Payload: fmt.Appendf(nil, "mqtt %d", n)})
		}
		var heard, read []string
		for range 2 * each {
			heard = append(heard, string(want[*packet.Publish](app).Payload))
		}
		<-published
		testwait.For(t, "the events", reader.Ready())
		for more := true; more; {
			var events []*bus.Event
			var gap bus.Gap
			if events, gap, more = reader.Next(); gap.Any() {
				t.Errorf("gap %+v", gap)
			}
			for _, e := range events {
				read = append(read, string(e.Data))
			}
		}
		if !slices.Equal(heard, read) {
			t.Errorf("the client has %d events in this order:\n%q\nthe reader %d in this:\n%q", len(heard), heard, len(read), read)
		}
	})
}

// A session that a token opened is not refreshed by a proof: no key was named in CONNECT
// (MQTT 5.0 §4.12.1), however good the token in AUTH is.
func TestUnrequestedProofIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub, _, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		srv.proofKey = pub
		c := srv.device("lamp-7")
		c.reauthenticate(srv.token("lamp-7", time.Hour))
		c.wantDisconnect(packet.ProtocolError)
	})
}

// So many publishes with QoS 2 may be unreleased; one more ends the connection.
func TestUnreleasedPublishes(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.connect(packet.V311, "pub", srv.token("pub", time.Hour))
		const most = 1024
		for n := range most {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
			if a := want[*packet.Ack](c); a.Kind != packet.PUBREC {
				t.Fatalf("publish %d: %s", n, a.Kind)
			}
		}
		c.send(&packet.Publish{Topic: "a", QoS: 2, ID: most, Dup: true}) // repeated: it is not counted again
		if a := want[*packet.Ack](c); a.Kind != packet.PUBREC {
			t.Fatalf("said again: %s", a.Kind)
		}
		c.send(&packet.Publish{Topic: "a", QoS: 2, ID: most + 1})
		c.wantDisconnect(packet.QuotaExceeded)
	})
}
