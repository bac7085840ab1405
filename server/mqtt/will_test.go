package mqtt_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/session"
)

// willClients is the kinds of clients that there are, by what becomes of their sessions.
var willClients = map[string]struct {
	v    packet.Version
	edit func(*packet.Connect)
}{
	"3.1.1, clean session":  {packet.V311, func(*packet.Connect) {}},
	"3.1.1, it lasts":       {packet.V311, persistentSession},
	"5, expiry 0":           {packet.V5, func(*packet.Connect) {}},
	"5, it lasts":           {packet.V5, persistentSession},
	"5, expiry 0, no clean": {packet.V5, func(p *packet.Connect) { p.CleanStart = false }},
}

func withWill(p *packet.Connect) {
	p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")}
}

// stop ends the engine as SIGTERM does, and starts it again.
func (srv *testServer) stop() {
	srv.t.Helper()
	testwait.For(srv.t, "the end of the connections", srv.drain())
	srv.close()
	srv.start(mqtt.Options{})
}

func (srv *testServer) session(id watchword.SubjectID) *session.Session {
	srv.t.Helper()
	all := srv.guard.SubjectSessions(watchword.DefaultTenant, id)
	if len(all) != 1 {
		srv.t.Fatalf("%d sessions of %s", len(all), id)
	}
	return all[0]
}

func (srv *testServer) closeSession(id watchword.SubjectID) {
	srv.session(id).End(watchword.Refuse(watchword.SessionClosed, "by an operator"))
}

func (srv *testServer) storedWills() int {
	srv.store.mu.Lock()
	defer srv.store.mu.Unlock()
	return len(srv.store.wills)
}

const willToken = 10 * time.Minute // how long the token of a client lives in these tests

// TestWillForEveryDisconnectReason covers every kind of client and every way in which a connection ends: when its will is
// published, and that it is not if the client reconnects in time.
func TestWillForEveryDisconnectReason(t *testing.T) {
	suspend := func(srv *testServer) { srv.state("lamp", watchword.Suspended); srv.state("lamp", watchword.Active) }
	noRight := func(srv *testServer) {
		srv.policy(`subscribe = ["#"]`)
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
	}
	tokenGone := func(srv *testServer) {
		srv.mu.Lock()
		raw := fmt.Sprintf("token-%d", srv.serial) // the last one that was made
		srv.mu.Unlock()
		srv.changed(watchword.AccessTokenRevoked, raw)
	}
	expire := func() { time.Sleep(willToken); synctest.Wait() }
	const now, grace, never = time.Nanosecond, time.Minute, 0
	for name, c := range map[string]struct {
		end   func(srv *testServer, c *testClient)
		after time.Duration // never: 0
	}{
		"the connection broke": {func(_ *testServer, c *testClient) { c.closeAbruptly() }, now},
		"the client broke the rules": {func(_ *testServer, c *testClient) {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: 1}, &packet.Connect{Version: c.v})
		}, now},
		"the client said goodbye":        {func(_ *testServer, c *testClient) { c.send(&packet.Disconnect{}) }, never},
		"the token ended":                {func(*testServer, *testClient) { expire() }, grace},
		"an operator closed the session": {func(srv *testServer, _ *testClient) { srv.closeSession("lamp") }, grace},
		"the server was stopped":         {func(srv *testServer, _ *testClient) { srv.stop() }, grace},
		"the server was killed":          {func(srv *testServer, _ *testClient) { srv.crash(mqtt.Options{}) }, grace},
		"the token ended, the server was killed": {func(srv *testServer, _ *testClient) {
			expire()
			synctest.Wait()
			srv.crash(mqtt.Options{})
		}, grace},
		"the subject was suspended":                   {func(srv *testServer, _ *testClient) { suspend(srv) }, never},
		"the subject was revoked":                     {func(srv *testServer, _ *testClient) { srv.state("lamp", watchword.Revoked) }, never},
		"the subject was deleted":                     {func(srv *testServer, _ *testClient) { srv.forget("lamp") }, never},
		"the token was revoked":                       {func(srv *testServer, _ *testClient) { tokenGone(srv) }, never},
		"its topic was taken, then it broke":          {func(srv *testServer, c *testClient) { noRight(srv); c.closeAbruptly() }, never},
		"the token ended, then it was suspended":      {func(srv *testServer, _ *testClient) { expire(); suspend(srv) }, never},
		"the token ended, then it was revoked":        {func(srv *testServer, _ *testClient) { expire(); srv.state("lamp", watchword.Revoked) }, never},
		"the token ended, then it was deleted":        {func(srv *testServer, _ *testClient) { expire(); srv.forget("lamp") }, never},
		"the token ended, then its topic went":        {func(srv *testServer, _ *testClient) { expire(); noRight(srv) }, never},
		"the token ended, then the token was revoked": {func(srv *testServer, _ *testClient) { expire(); tokenGone(srv) }, never},
		"the token ended, then its key went":          {func(srv *testServer, _ *testClient) { expire(); srv.rekey("lamp") }, never},
		"the token ended, then another incarnation began": {func(srv *testServer, _ *testClient) {
			expire()
			srv.mu.Lock()
			srv.subjects["lamp"].Incarnation = 2
			srv.mu.Unlock()
			srv.changed(watchword.SubjectChanged, "lamp")
		}, never},
		"the server was killed, and it was suspended meanwhile": {func(srv *testServer, _ *testClient) {
			srv.crash(mqtt.Options{})
			srv.state("lamp", watchword.Suspended)
		}, never},
		"the server was killed, and its key went meanwhile": {func(srv *testServer, _ *testClient) {
			srv.crash(mqtt.Options{})
			srv.rekey("lamp")
		}, never},
		"the server was killed, and its topic went for good": {func(srv *testServer, _ *testClient) {
			srv.crash(mqtt.Options{})
			srv.policy(`publish = ["other"]`, `subscribe = ["#"]`)
		}, never},
	} {
		for kind, k := range willClients {
			for _, returns := range []time.Duration{0, 59 * time.Second} {
				if returns > 0 && c.after != grace {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/returns %v", name, kind, returns), func(t *testing.T) {
					inBubble(t, func(t *testing.T, srv *testServer) {
						before := srv.connect(packet.V5, "ear", srv.token("ear", 5*time.Hour))
						before.subscribe(1, "will")
						lamp := srv.connect(k.v, "lamp", srv.token("lamp", willToken), k.edit, withWill)
						broker := srv.broker
						c.end(srv, lamp)
						from := time.Now()
						synctest.Wait()
						subscriber := before
						if srv.broker != broker {
							subscriber = srv.connect(packet.V5, "ear", srv.token("ear", 5*time.Hour))
							subscriber.subscribe(1, "will")
						}
						if returns > 0 {
							time.Sleep(returns)
							subscriber.wantNothing()
							srv.connect(k.v, "lamp", srv.token("lamp", 5*time.Hour), k.edit)
						}
						end := time.After(time.Hour)
						select {
						case p := <-subscriber.got:
							m, ok := p.(*packet.Publish)
							if !ok || string(m.Payload) != "gone" || c.after == never || returns > 0 {
								t.Fatalf("got %T %+v after %v", p, p, time.Since(from))
							}
							if after := time.Since(from); after > c.after || c.after == grace && after < grace {
								t.Errorf("the will came after %v, want %v", after, c.after)
							}
							subscriber.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
						case <-end:
							if c.after != never && returns == 0 {
								t.Error("no will")
							}
						}
						subscriber.wantNothing()
						if n := srv.storedWills(); n != 0 {
							t.Errorf("%d wills are left in the store", n)
						}
						if s := srv.broker.Stats(); s.Wills != 0 || s.WillBytes != 0 {
							t.Errorf("%d wills of %d bytes are left", s.Wills, s.WillBytes)
						}
					})
				})
			}
		}
	}
}

// forget deletes a subject.
func (srv *testServer) forget(id watchword.SubjectID) {
	srv.mu.Lock()
	s := srv.subjects[id]
	delete(srv.subjects, id)
	srv.mu.Unlock()
	srv.changed(watchword.SubjectChanged, string(id))
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.subjects[id] = s // enrolled again, and the guard was not notified
	s.Incarnation++
}

// rekey retires the key of a subject.
func (srv *testServer) rekey(id watchword.SubjectID) {
	srv.mu.Lock()
	s := *srv.subjects[id]
	s.Keys = []watchword.Key{{ID: "k2", Purpose: watchword.Sign, State: watchword.KeyActive}}
	srv.subjects[id] = &s
	srv.mu.Unlock()
	srv.changed(watchword.SubjectChanged, string(id))
}

// The will is in the store before CONNACK; if it cannot be stored, CONNECT is refused, and nothing is published.
func TestAWillIsStoredBeforeCONNACK(t *testing.T) {
	for kind, k := range willClients {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " fails ", fails), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					subscriber := srv.device("ear")
					subscriber.subscribe(1, "will")
					srv.store.block()
					c := srv.dialRaw(k.v)
					p := hello(k.v, "lamp", srv.token("lamp", time.Hour))
					k.edit(p)
					withWill(p)
					c.send(p)
					c.wantNothing()
					if fails {
						srv.store.fail(true)
						synctest.Wait()
						for p := range c.got {
							if ack, ok := p.(*packet.Connack); ok {
								t.Errorf("CONNACK %#x", ack.Code)
							}
						}
						srv.store.fail(false)
						time.Sleep(2 * time.Minute)
						subscriber.wantNothing()
						return
					}
					srv.store.unblock()
					if ack := want[*packet.Connack](c); ack.Code != packet.Success {
						t.Errorf("%#x", ack.Code)
					}
					if n := srv.storedWills(); n != 1 {
						t.Errorf("%d wills in the store", n)
					}
				})
			})
		}
	}
}

// What a will says is the same after a crash, and it is kept for as long as it said.
func TestWillPropertiesSurviveCrash(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprint("crash ", crash), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) { aWillSays(t, srv, crash) })
		})
	}
}

func aWillSays(t *testing.T, srv *testServer, crash bool) {
	lamp := srv.device("lamp", func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: "will", QoS: 2, Retain: true, Payload: []byte{0, 1}}
		w := &p.Will.Properties
		w.SetNumber(packet.MessageExpiryInterval, 100)
		w.SetNumber(packet.WillDelayInterval, 7_000) // of no use where the session ends with its connection
		w.SetText(packet.ContentType, "x")
		w.User = []packet.UserProp{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}
	})
	if crash {
		srv.crash(mqtt.Options{})
	} else {
		lamp.closeAbruptly()
		synctest.Wait()
	}
	subscriber := srv.device("ear")
	p := &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "will", QoS: 2, RetainAsPublished: true}}}
	subscriber.send(p)
	want[*packet.Suback](subscriber)
	m := want[*packet.Publish](subscriber)
	life, _ := m.Properties.Number(packet.MessageExpiryInterval)
	kind, _ := m.Properties.Text(packet.ContentType)
	_, delayed := m.Properties.Number(packet.WillDelayInterval)
	if m.QoS != 2 || !m.Retain || string(m.Payload) != "\x00\x01" || life != 100 || kind != "x" || delayed || fmt.Sprint(m.Properties.User) != "[{a 1} {a 2}]" {
		t.Errorf("%+v", m)
	}
	late := srv.device("late")
	late.subscribe(1, "will")
	if m := late.receiveAndAck(); !m.Retain {
		t.Errorf("%+v", m)
	}
	time.Sleep(101 * time.Second)
	later := srv.device("later")
	later.subscribe(1, "will")
	later.wantNothing()
}

// A will is authorized by the last token of its connection.
func TestWillUsesLatestToken(t *testing.T) {
	for name, last := range map[string]bool{"the first token is revoked": false, "the last token is revoked": true} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " crash ", crash), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					first, second := srv.token("lamp", time.Minute), srv.token("lamp", time.Hour)
					lamp := srv.connect(packet.V5, "lamp", first, withWill)
					if r := lamp.publish(1, "$watchword/auth", second); r != packet.Success {
						t.Fatalf("%#x", r)
					}
					synctest.Wait() // it is written
					if crash {
						srv.crash(mqtt.Options{})
					} else {
						time.Sleep(time.Hour)
					}
					synctest.Wait()
					subscriber := srv.device("ear")
					subscriber.subscribe(1, "will")
					gone := first
					if last {
						gone = second
					}
					srv.changed(watchword.AccessTokenRevoked, gone)
					time.Sleep(2 * time.Minute)
					if !last {
						subscriber.wantMessage("will", "gone")
					}
					subscriber.wantNothing()
				})
			})
		}
	}
}

// A token that may not say what the will says cancels no will.
func TestNarrowerTokenDoesNotCancelWill(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		subscriber := srv.device("ear")
		subscriber.subscribe(1, "will")
		srv.device("lamp", withWill)
		srv.closeSession("lamp")
		srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour, watchword.Permission{Resource: "topic:other", Actions: []string{"pub"}}))
		time.Sleep(willToken)
		subscriber.wantMessage("will", "gone")
	})
}

// Of a client with a will delay whose session an operator ends while it is away, the will
// waits for a minute, not for the rest of the delay.
func TestTheWillOfASessionThatAnOperatorEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		subscriber := srv.device("ear")
		subscriber.subscribe(1, "will")
		srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), delayedWill(600)).closeAbruptly()
		synctest.Wait()
		states := srv.broker.SessionStates(watchword.DefaultTenant, "lamp")
		if len(states) != 1 || time.Until(states[0].WillDue) != 600*time.Second {
			t.Fatalf("%+v", states)
		}
		refused := errors.New("not written down")
		if err := srv.broker.EndOfflineSession(watchword.DefaultTenant, states[0].Client, states[0].ID, func() error { return refused }); err != refused {
			t.Fatal(err)
		}
		if n := len(srv.broker.SessionStates(watchword.DefaultTenant, "lamp")); n != 1 {
			t.Fatalf("what was not written down was done: %d sessions", n)
		}
		if err := srv.broker.EndOfflineSession(watchword.DefaultTenant, states[0].Client, states[0].ID, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := srv.broker.EndOfflineSession(watchword.DefaultTenant, states[0].Client, states[0].ID, func() error { t.Error("it was written down twice"); return nil }); watchword.CodeOf(err) != watchword.NotFound {
			t.Fatalf("it is there still: %v", err)
		}
		from := time.Now()
		subscriber.wantMessage("will", "gone")
		if after := time.Since(from); after != time.Minute {
			t.Errorf("after %v", after)
		}
	})
}

// What wills may count together has a bound of each subject, and one of all.
func TestWillsHaveBounds(t *testing.T) {
	for name, o := range map[string]mqtt.Options{
		"limits.subject_will_bytes": {SubjectWillBytes: 5_000},
		"limits.will_bytes":         {WillBytes: 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.crash(o)
				all, mine := 0, 0
				for _, id := range []watchword.SubjectID{"lamp", "other"} {
					mine = 0
					for n := range 6 {
						c := srv.dialRaw(packet.V5)
						p := hello(packet.V5, fmt.Sprintf("%s/%d", id, n), srv.token(id, time.Hour))
						p.Will = &packet.Will{Topic: "will", Payload: make([]byte, 1_000)}
						c.send(p)
						ack := want[*packet.Connack](c)
						if ack.Code == packet.Success {
							all++
							mine++
							continue
						}
						if ack.Code != packet.QuotaExceeded {
							t.Fatalf("%#x %v", ack.Code, ack.Properties)
						}
						if s, _ := ack.Properties.Text(packet.ReasonString); !strings.Contains(s, name) {
							t.Errorf("it says %q", s)
						}
					}
				}
				wantAll, wantMine := 6, 0
				if name == "limits.subject_will_bytes" {
					wantAll, wantMine = 6, 3
				}
				if all != wantAll || mine != wantMine {
					t.Errorf("%d wills, %d of the second subject; want %d and %d", all, mine, wantAll, wantMine)
				}
				if s := srv.broker.Stats(); s.Wills != int64(all) || s.WillBytes < int64(all)*1_000 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// A will delay that is longer than the minute counts from the end of the session's token
// too; and no will waits for longer than its session lasts.
func TestAWillDelayAfterAnEndByTheServer(t *testing.T) {
	for name, c := range map[string]struct {
		expiry, delay uint32
		end           func(srv *testServer)
		after         time.Duration
	}{
		"session close, delay":                {3_600, 600, func(srv *testServer) { srv.closeSession("lamp") }, 600 * time.Second},
		"session close, delay below a minute": {3_600, 30, func(srv *testServer) { srv.closeSession("lamp") }, time.Minute},
		"session close, session ends first":   {90, 600, func(srv *testServer) { srv.closeSession("lamp") }, 90 * time.Second},
		"killed, delay":                       {3_600, 600, func(srv *testServer) { srv.crash(mqtt.Options{}) }, 600 * time.Second},
		"killed, session ends first":          {90, 600, func(srv *testServer) { srv.crash(mqtt.Options{}) }, 90 * time.Second},
		"killed, of an older build": {90, 600, func(srv *testServer) {
			synctest.Wait()
			srv.store.mu.Lock()
			for id, w := range srv.store.wills {
				w.Due, w.Token, w.Key = time.Now().Add(600*time.Second), "", ""
				srv.store.wills[id] = w
			}
			srv.store.mu.Unlock()
			srv.crash(mqtt.Options{})
		}, 90 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.connect(packet.V5, "lamp", srv.token("lamp", 5*time.Hour), delayedWill(c.delay), func(p *packet.Connect) { p.Properties.SetNumber(packet.SessionExpiryInterval, c.expiry) })
				c.end(srv)
				from := time.Now()
				subscriber := srv.connect(packet.V5, "ear", srv.token("ear", 5*time.Hour))
				subscriber.subscribe(1, "will")
				subscriber.wantMessage("will", "gone")
				if after := time.Since(from); after != c.after {
					t.Errorf("after %v, want %v", after, c.after)
				}
			})
		})
	}
}

// Wills of several incarnations of the server do not replace each other in the store, and one client identifier has only
// the last will.
func TestWillsOfSeveralIncarnations(t *testing.T) {
	for _, twice := range []bool{false, true} {
		t.Run(fmt.Sprint("twice ", twice), func(t *testing.T) { inBubble(t, func(t *testing.T, srv *testServer) { severalLives(t, srv, twice) }) })
	}
}

func severalLives(t *testing.T, srv *testServer, twice bool) {
	srv.device("first", withWill)
	synctest.Wait()
	srv.store.mu.Lock() // the connection before, whose end was not written any more
	for id, w := range srv.store.wills {
		if !twice {
			break
		}
		w.ID = id + 1
		srv.store.wills[w.ID] = w
		break
	}
	srv.store.mu.Unlock()
	srv.crash(mqtt.Options{})
	srv.device("second", withWill)
	synctest.Wait()
	srv.crash(mqtt.Options{})
	subscriber := srv.connect(packet.V5, "ear", srv.token("ear", 5*time.Hour))
	subscriber.subscribe(1, "will")
	subscriber.wantMessage("will", "gone")
	subscriber.wantMessage("will", "gone")
	time.Sleep(time.Hour)
	subscriber.wantNothing()
	if n := srv.storedWills(); n != 0 {
		t.Errorf("%d wills are left in the store", n)
	}
}

// What could not be written of a will is written when the store writes again.
func TestUnwrittenWillIsReleased(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		lamp := srv.device("lamp", withWill)
		synctest.Wait()
		srv.store.fail(true)
		lamp.send(&packet.Disconnect{})
		time.Sleep(2 * time.Second)
		srv.store.fail(false)
		time.Sleep(2 * time.Second)
		if n := srv.storedWills(); n != 0 {
			t.Errorf("%d wills in the store", n)
		}
	})
}

// A CONNECT that is refused after its will was counted gives the room back.
func TestRefusedConnectReleasesWillQuota(t *testing.T) {
	for name, refused := range map[string]func(srv *testServer){
		"too many sessions": func(srv *testServer) {
			for n := range 8 {
				srv.connect(packet.V5, fmt.Sprintf("lamp/%d", n), srv.token("lamp", time.Hour))
			}
		},
		"suspended before the session starts": func(srv *testServer) { srv.withFailingDirectory().good.Store(2) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				raw := srv.token("lamp", time.Hour)
				refused(srv)
				c := srv.dialRaw(packet.V5)
				p := hello(packet.V5, "lamp", raw)
				withWill(p)
				c.send(p)
				if ack := want[*packet.Connack](c); ack.Code == packet.Success {
					t.Fatal("it was let in")
				}
				synctest.Wait()
				if s := srv.broker.Stats(); s.Wills != 0 || s.WillBytes != 0 {
					t.Errorf("%d wills of %d bytes", s.Wills, s.WillBytes)
				}
			})
		})
	}
}

// Recording an operator's end of a session may wait for a store, and delays only the client itself: it resumes the session
// only if the end was not recorded.
func TestReconnectDuringSessionEnd(t *testing.T) {
	for name, refused := range map[string]error{"recorded": nil, "not recorded": errors.New("not recorded")} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *testServer) {
				h.leaveOffline(packet.V5, "lamp", "x")
				synctest.Wait()
				states := h.broker.SessionStates(watchword.DefaultTenant, "lamp")
				if len(states) != 1 {
					t.Fatalf("%+v", states)
				}
				c, p := h.dialRaw(packet.V5), hello(packet.V5, "lamp", h.token("lamp", time.Hour))
				p.CleanStart = false
				p.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
				err := h.broker.EndOfflineSession(watchword.DefaultTenant, states[0].Client, states[0].ID, func() error {
					c.send(p)
					if now := h.broker.SessionStates(watchword.DefaultTenant, "lamp"); len(now) != 1 || now[0].Connected {
						t.Errorf("while it is recorded: %+v", now)
					}
					return refused
				})
				if err != refused {
					t.Fatal(err)
				}
				if ack := want[*packet.Connack](c); ack.Code != packet.Success || ack.SessionPresent != (refused != nil) {
					t.Errorf("CONNACK %#x, session present %v", ack.Code, ack.SessionPresent)
				}
			})
		})
	}
}
