package mqtt_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/token"
)

func permission(resource string, actions ...string) watchword.Permission {
	return watchword.Permission{Resource: resource, Actions: actions}
}

// refusedConnect sends a CONNECT that must be refused with r, or its return code.
func (srv *testServer) refusedConnect(v packet.Version, id, token string, r packet.Reason, edit ...func(*packet.Connect)) {
	srv.t.Helper()
	c := srv.dialRaw(v)
	p := hello(v, id, token)
	for _, e := range edit {
		e(p)
	}
	c.send(p)
	if v == packet.V311 {
		r = map[packet.Reason]packet.Reason{packet.NotAuthorized: 5, packet.TopicNameInvalid: 5, packet.QuotaExceeded: 3}[r]
	}
	if ack := want[*packet.Connack](c); ack.Code != r || ack.SessionPresent {
		srv.t.Errorf("CONNACK %#x %v, want %#x", ack.Code, ack.Properties, r)
	}
	c.closeAbruptly()
	synctest.Wait()
}

func TestANewSessionNeedsARightToSomeTopic(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for _, tc := range []struct {
			name   string
			policy []string
			perm   []watchword.Permission
			may    bool
		}{
			{"one API path", nil, []watchword.Permission{permission("api:/v1/self", "get")}, false},
			{"a function to call", nil, []watchword.Permission{permission("fn:lamp-8/lamp.set", "call")}, false},
			{"nothing", nil, []watchword.Permission{}, false},
			{"a topic to publish to", nil, []watchword.Permission{permission("topic:a", "pub")}, true},
			{"a topic to subscribe to", nil, []watchword.Permission{permission("topic:a", "sub")}, true},
			{"a topic that policy does not give", []string{`publish = ["b"]`}, []watchword.Permission{permission("topic:a", "pub")}, false},
			{"a topic that policy gives for the other way", []string{`publish = ["a"]`}, []watchword.Permission{permission("topic:a", "sub")}, false},
			{"a topic that is denied", []string{`publish = ["#"]`, `deny publish = ["a/#"]`}, []watchword.Permission{permission("topic:a/b", "pub")}, false},
			{"topics of which some are denied", []string{`publish = ["#"]`, `deny publish = ["a/b"]`}, []watchword.Permission{permission("topic:a/+", "pub")}, true},
		} {
			t.Run(fmt.Sprint(tc.name, " ", v), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					if tc.policy != nil {
						srv.policy(tc.policy...)
					}
					token := srv.token("lamp", time.Hour, tc.perm...)
					if tc.may {
						srv.connect(v, "lamp", token)
						return
					}
					srv.refusedConnect(v, "lamp", token, packet.NotAuthorized)
					if n := len(srv.guard.SubjectSessions(watchword.DefaultTenant, "lamp")); n > 0 {
						t.Errorf("%d sessions are left of what was refused", n)
					}
				})
			})
		}
	}
}

// What a session holds, and a token that covers all but that.
var holdings = []struct {
	name string
	hold func(h *testServer, v packet.Version, e ...func(*packet.Connect)) *testClient
	less []watchword.Permission
}{
	{"a subscription", func(h *testServer, v packet.Version, e ...func(*packet.Connect)) *testClient {
		c := h.connect(v, "lamp", h.token("lamp", 2*time.Hour), e...)
		c.subscribe(1, "held", "b")
		return c
	}, []watchword.Permission{permission("topic:b", "pub", "sub"), permission("topic:held", "pub"), permission("topic:held/#", "pub")}},
	{"a subscription that is wider", func(h *testServer, v packet.Version, e ...func(*packet.Connect)) *testClient {
		c := h.connect(v, "lamp", h.token("lamp", 2*time.Hour), e...)
		c.subscribe(1, "+")
		return c
	}, []watchword.Permission{permission("topic:held", "pub", "sub")}},
	{"a shared subscription", func(h *testServer, v packet.Version, e ...func(*packet.Connect)) *testClient {
		c := h.connect(v, "lamp", h.token("lamp", 2*time.Hour), e...)
		c.subscribe(1, "$share/g/held")
		return c
	}, []watchword.Permission{permission("topic:b", "pub", "sub")}},
	{"its commands", func(h *testServer, v packet.Version, e ...func(*packet.Connect)) *testClient {
		c := h.connect(v, "lamp", h.token("lamp", 2*time.Hour), e...)
		c.subscribe(1, "devices/lamp/commands", "held")
		return c
	}, []watchword.Permission{permission("topic:held", "pub", "sub"), permission("topic:devices/lamp/state", "pub", "sub")}},
	{"a will", func(h *testServer, v packet.Version, e ...func(*packet.Connect)) *testClient {
		c := h.connect(v, "lamp", h.token("lamp", 2*time.Hour), append(e, func(p *packet.Connect) {
			p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")}
			if v == packet.V5 {
				p.Will.Properties.SetNumber(packet.WillDelayInterval, 1800)
			}
		})...)
		c.subscribe(1, "held")
		return c
	}, []watchword.Permission{permission("topic:held", "pub", "sub"), permission("topic:will", "sub")}},
}

// A CONNECT with a token that does not cover the content of the session of its client identifier is refused, and that
// session is not affected.
func TestNarrowedTokenDoesNotTakeOverSession(t *testing.T) {
	lasting := func(p *packet.Connect) { persistentSession(p) }
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for _, tc := range holdings {
			for _, online := range []bool{true, false} {
				for _, clean := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s, version %d, there %v, clean start %v", tc.name, v, online, clean), func(t *testing.T) {
						inBubble(t, func(t *testing.T, srv *testServer) {
							subscriber := srv.device("ear")
							subscriber.subscribe(1, "will")
							c := tc.hold(srv, v, lasting)
							synctest.Wait()
							offline := !online
							if offline && v == packet.V311 && tc.name == "a will" {
								return // it has no delay there, and was published
							}
							if offline {
								c.closeAbruptly()
								synctest.Wait()
							}
							before := srv.broker.SessionStates(watchword.DefaultTenant, "lamp")
							srv.refusedConnect(v, "lamp", srv.token("lamp", time.Hour, tc.less...), packet.NotAuthorized, func(p *packet.Connect) {
								p.CleanStart = clean
								if v == packet.V5 && !clean {
									p.Properties.SetNumber(packet.SessionExpiryInterval, 10)
								}
							})
							if after := srv.broker.SessionStates(watchword.DefaultTenant, "lamp"); fmt.Sprint(before) != fmt.Sprint(after) {
								t.Errorf("the session was\n%+v, and is\n%+v", before, after)
							}
							subscriber.wantNothing() // nor was its will published
							pub := srv.device("pub")
							if r := pub.publish(1, "held", "x"); r != packet.Success {
								t.Errorf("no client receives what it subscribed to: %#x", r)
							}
							if offline {
								c = srv.reconnect(v, "lamp")
							}
							c.wantMessage("held", "x")
							// One that covers it, and today's policy no more, is enough.
							srv.policy(`publish = ["#"]`, `subscribe = ["b", "will", "held"]`)
							srv.connect(v, "lamp", srv.token("lamp", time.Hour, permission("topic:#", "pub"), permission("topic:b", "sub"), permission("topic:held", "sub"), permission("topic:devices/lamp/commands", "sub")), lasting)
						})
					})
				}
			}
		}
	}
}

// A session that ends with its connection is not taken over by less either.
func TestNarrowedTokenDoesNotEndConnection(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for _, tc := range holdings {
			t.Run(fmt.Sprint(tc.name, " ", v), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					c := tc.hold(srv, v)
					srv.refusedConnect(v, "lamp", srv.token("lamp", time.Hour, tc.less...), packet.NotAuthorized)
					srv.device("pub").publish(1, "held", "x")
					c.wantMessage("held", "x")
				})
			})
		}
	}
}

// Whatever refuses a CONNECT, the session of its client identifier is untouched.
func TestRefusedConnectHasNoEffect(t *testing.T) {
	fill := func(srv *testServer) { // the bound of live sessions
		for n := range 8 {
			srv.connect(packet.V5, fmt.Sprint("lamp/live-", n), srv.token("lamp", time.Hour))
		}
	}
	for _, tc := range []struct {
		name   string
		before func(srv *testServer)
		edit   func(p *packet.Connect)
		token  func(srv *testServer) string
		reason packet.Reason
		lasts  bool // the existing session is persistent
	}{
		{"a will on an invalid topic", nil, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "$watchword/auth"} }, nil, packet.TopicNameInvalid, true},
		{"a will on a topic that is the server's", nil, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "devices/lamp/config"} }, nil, packet.NotAuthorized, true},
		{"a will on a topic that the token does not give", nil, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "c"} }, func(srv *testServer) string {
			return srv.token("lamp", time.Hour, permission("topic:held", "pub", "sub"))
		}, packet.NotAuthorized, true},
		{"an expired token", nil, nil, func(srv *testServer) string { return srv.token("lamp", -time.Second) }, packet.NotAuthorized, true},
		{"an invalid token", nil, nil, func(*testServer) string { return "token-x" }, packet.NotAuthorized, true},
		{"no more live sessions", fill, nil, nil, packet.QuotaExceeded, true},
		{"no more sessions that last", func(srv *testServer) {
			for n := range 8 {
				srv.connect(packet.V5, fmt.Sprint("lamp/", n), srv.token("lamp", time.Hour), persistentSession).closeAbruptly()
				synctest.Wait()
			}
		}, persistentSession, nil, packet.QuotaExceeded, false},
	} {
		for _, clean := range []bool{true, false} {
			t.Run(fmt.Sprint(tc.name, ", clean start ", clean), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					c := srv.connect(packet.V5, "lamp", srv.token("lamp", 2*time.Hour), func(p *packet.Connect) {
						if tc.lasts {
							persistentSession(p)
						}
					})
					c.subscribe(1, "held")
					if tc.lasts {
						c.closeAbruptly()
						synctest.Wait()
					}
					if tc.before != nil {
						tc.before(srv)
					}
					token := srv.token("lamp", time.Hour)
					if tc.token != nil {
						token = tc.token(srv)
					}
					srv.refusedConnect(packet.V5, "lamp", token, tc.reason, func(p *packet.Connect) {
						if tc.edit != nil {
							tc.edit(p)
						}
						p.CleanStart = clean
					})
					srv.token("pub", time.Hour)
					if r := srv.device("pub").publish(1, "held", "x"); r != packet.Success {
						t.Errorf("no client receives what it subscribed to: %#x", r)
					}
					if !tc.lasts {
						c.wantMessage("held", "x")
					}
				})
			})
		}
	}
}

// Taking over its own session needs no additional room.
func TestTakeoverNeedsNoExtraQuota(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		for n := range 8 {
			srv.connect(packet.V5, fmt.Sprint("lamp/", n), srv.token("lamp", time.Hour), persistentSession)
		}
		srv.refusedConnect(packet.V5, "lamp/x", srv.token("lamp", time.Hour), packet.QuotaExceeded)
		for range 3 {
			srv.connect(packet.V5, "lamp/3", srv.token("lamp", time.Hour), persistentSession)
			srv.connect(packet.V5, "lamp/3", srv.token("lamp", time.Hour)) // and begins anew
			synctest.Wait()
		}
		if n := len(srv.guard.SubjectSessions(watchword.DefaultTenant, "lamp")); n != 8 {
			t.Errorf("%d sessions, want 8", n)
		}
	})
}

// A refresh by a token that does not cover what the session holds changes nothing.
func TestNarrowedTokenDoesNotRefreshSession(t *testing.T) {
	for _, tc := range holdings {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := tc.hold(srv, packet.V5)
				for _, perm := range [][]watchword.Permission{tc.less, {permission("api:/v1/self/#", "get", "put")}} {
					if r := c.publish(1, "$watchword/auth", srv.token("lamp", 4*time.Hour, perm...)); r != packet.NotAuthorized {
						t.Errorf("reason %#x", r)
					}
				}
				s := srv.guard.SubjectSessions(watchword.DefaultTenant, "lamp")[0]
				if left := time.Until(s.Authority().Expires()); left > 2*time.Hour {
					t.Errorf("refreshed: %v are left", left)
				}
				srv.device("pub").publish(1, "held", "x")
				c.wantMessage("held", "x")
			})
		})
	}
}

// assertion is a token in the shape of a client assertion.
func (srv *testServer) assertion(id watchword.SubjectID, perm ...watchword.Permission) string {
	srv.t.Helper()
	k, err := jose.GenerateKey("P-256")
	if err != nil {
		srv.t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		srv.t.Fatal(err)
	}
	raw, err := token.SignAssertion(s, id, "https://watch.example", time.Now(), time.Minute)
	if err != nil {
		srv.t.Fatal(err)
	}
	credentials := srv.token(id, time.Hour, perm...)
	srv.mu.Lock()
	srv.tokens[raw] = srv.tokens[credentials]
	srv.mu.Unlock()
	return raw
}

// Content that the session gets while the other's assertion is being used counts too.
func TestSessionStateIsCheckedAtAct(t *testing.T) {
	for name, tc := range map[string]struct{ clean, away bool }{
		"there": {}, "there, clean start": {clean: true}, "away": {away: true}, "away, clean start": {away: true, clean: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), persistentSession)
				srv.onSpend = func() {
					c.subscribe(1, "held")
					if tc.away {
						c.closeAbruptly()
						synctest.Wait()
					}
				}
				less := srv.assertion("lamp", permission("topic:b", "pub"))
				srv.refusedConnect(packet.V5, "lamp", less, packet.NotAuthorized, func(p *packet.Connect) { p.CleanStart = tc.clean })
				srv.device("pub").publish(1, "held", "x")
				if tc.away {
					c = srv.reconnect(packet.V5, "lamp")
				}
				c.wantMessage("held", "x")
			})
		})
	}
}

// A token need not cover what today's policy does not give: a session that still has it, since the guard was not notified
// yet, loses it, and its holder is not locked out.
func TestPolicyLossDoesNotBlockReconnect(t *testing.T) {
	for name, online := range map[string]bool{"there": true, "away": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), delayedWill(100))
				c.subscribe(1, "a", "b")
				if !online {
					c.closeAbruptly()
					synctest.Wait()
				}
				d, err := policy.Parse("test", []byte("for = {}\n[[allow]]\nsubscribe = [\"b\"]\n"))
				if err != nil {
					t.Fatal(err)
				}
				srv.mu.Lock()
				srv.set = policy.NewSet(d)
				srv.mu.Unlock()
				c = srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour, permission("topic:b", "sub"), permission("topic:devices/lamp/#", "pub", "sub")), persistentSession)
				if l := c.nextLost(); !c.ack.SessionPresent || !slices.Equal(l, []string{"a"}) {
					t.Errorf("session present %v, told %q", c.ack.SessionPresent, l)
				}
			})
		})
	}
}

// Messages that are queued for a subscription from which the client unsubscribed need not be covered by a token, and are
// delivered only if the client may subscribe to their topic now.
func TestDroppedMessagesGoToAllowedMembers(t *testing.T) {
	less := []watchword.Permission{permission("topic:b", "pub", "sub")}
	for name, tc := range map[string]struct {
		then func(srv *testServer) string // the token with which it reconnects
		want string
	}{
		"a whole token":  {func(srv *testServer) string { return srv.token("lamp", time.Hour) }, "a1 b1 a2"},
		"a narrow token": {func(srv *testServer) string { return srv.token("lamp", time.Hour, less...) }, "b1"},
		"policy took it": {func(srv *testServer) string {
			srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
			return srv.token("lamp", time.Hour)
		}, "b1"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), persistentSession, oneAtATime)
				c.subscribe(1, "a", "b", "first")
				pub := srv.device("pub")
				pub.publish(1, "first", "first") // not acknowledged: the rest waits
				for _, m := range []string{"a1", "b1", "a2"} {
					pub.publish(1, m[:1], m)
				}
				want[*packet.Publish](c)
				c.send(&packet.Unsubscribe{ID: 99, Filters: []string{"a", "first"}})
				want[*packet.Unsuback](c)
				c.closeAbruptly()
				synctest.Wait()
				c = srv.connect(packet.V5, "lamp", tc.then(srv), persistentSession)
				pub = srv.device("pub2")
				pub.publish(1, "b", "end")
				var got []string
				for p := c.receive(); string(p.Payload) != "end"; p = c.receive() {
					if p.Topic != "first" {
						got = append(got, string(p.Payload))
					}
				}
				if strings.Join(got, " ") != tc.want {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			})
		})
	}
	t.Run("policy takes it while the client is there", func(t *testing.T) {
		inBubble(t, func(t *testing.T, srv *testServer) {
			c := srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), oneAtATime)
			c.subscribe(1, "a", "b")
			pub := srv.device("pub")
			for _, m := range []string{"b0", "a1", "b1"} {
				pub.publish(1, m[:1], m)
			}
			first := want[*packet.Publish](c)
			c.send(&packet.Unsubscribe{ID: 99, Filters: []string{"a"}})
			want[*packet.Unsuback](c)
			srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: first.ID})
			c.wantMessage("b", "b1")
		})
	})
}
