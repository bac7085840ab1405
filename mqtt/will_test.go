package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/waiting"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// willClients is the kinds of clients that there are, by what becomes of their sessions.
var willClients = map[string]struct {
	v    packet.Version
	edit func(*packet.Connect)
}{
	"3.1.1, clean session":  {packet.V311, func(*packet.Connect) {}},
	"3.1.1, it lasts":       {packet.V311, lasts},
	"5, expiry 0":           {packet.V5, func(*packet.Connect) {}},
	"5, it lasts":           {packet.V5, lasts},
	"5, expiry 0, no clean": {packet.V5, func(p *packet.Connect) { p.CleanStart = false }},
}

func withWill(p *packet.Connect) {
	p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")}
}

// stop ends the engine as SIGTERM does, and starts it again.
func (h *house) stop() {
	h.t.Helper()
	waiting.For(h.t, "the end of the connections", h.drain())
	h.close()
	h.start(mqtt.Options{})
}

func (h *house) session(id watchword.SubjectID) *session.Session {
	h.t.Helper()
	all := h.guard.Sessions(watchword.DefaultTenant, id)
	if len(all) != 1 {
		h.t.Fatalf("%d sessions of %s", len(all), id)
	}
	return all[0]
}

func (h *house) closeSession(id watchword.SubjectID) {
	h.session(id).Close(watchword.Refuse(watchword.SessionClosed, "by an operator"))
}

func (h *house) storedWills() int {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	return len(h.store.wills)
}

const willToken = 10 * time.Minute // how long the token of a client lives in these tests

// TestWillsOfEveryEnd goes over every kind of client and every way in which a connection
// ends: when its will comes, and that it does not where the client comes back in time.
func TestWillsOfEveryEnd(t *testing.T) {
	suspend := func(h *house) { h.state("lamp", watchword.Suspended); h.state("lamp", watchword.Active) }
	noRight := func(h *house) { h.policy(`subscribe = ["#"]`); h.policy(`publish = ["#"]`, `subscribe = ["#"]`) }
	tokenGone := func(h *house) {
		h.mu.Lock()
		raw := fmt.Sprintf("token-%d", h.serial) // the last one that was made
		h.mu.Unlock()
		h.guard.TokenRevoked(watchword.DefaultTenant, "lamp", raw)
	}
	expire := func() { time.Sleep(willToken); synctest.Wait() }
	const now, grace, never = time.Nanosecond, time.Minute, 0
	for name, c := range map[string]struct {
		end   func(h *house, c *client)
		after time.Duration // never: 0
	}{
		"the connection broke": {func(_ *house, c *client) { c.vanish() }, now},
		"the client broke the rules": {func(_ *house, c *client) {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: 1}, &packet.Connect{Version: c.v})
		}, now},
		"the client said goodbye":        {func(_ *house, c *client) { c.send(&packet.Disconnect{}) }, never},
		"the token ended":                {func(*house, *client) { expire() }, grace},
		"an operator closed the session": {func(h *house, _ *client) { h.closeSession("lamp") }, grace},
		"the server was stopped":         {func(h *house, _ *client) { h.stop() }, grace},
		"the server was killed":          {func(h *house, _ *client) { h.crash(mqtt.Options{}) }, grace},
		"the token ended, the server was killed": {func(h *house, _ *client) {
			expire()
			synctest.Wait()
			h.crash(mqtt.Options{})
		}, grace},
		"the subject was suspended":                   {func(h *house, _ *client) { suspend(h) }, never},
		"the subject was revoked":                     {func(h *house, _ *client) { h.state("lamp", watchword.Revoked) }, never},
		"the subject was deleted":                     {func(h *house, _ *client) { h.forget("lamp") }, never},
		"the token was revoked":                       {func(h *house, _ *client) { tokenGone(h) }, never},
		"its topic was taken, then it broke":          {func(h *house, c *client) { noRight(h); c.vanish() }, never},
		"the token ended, then it was suspended":      {func(h *house, _ *client) { expire(); suspend(h) }, never},
		"the token ended, then it was revoked":        {func(h *house, _ *client) { expire(); h.state("lamp", watchword.Revoked) }, never},
		"the token ended, then it was deleted":        {func(h *house, _ *client) { expire(); h.forget("lamp") }, never},
		"the token ended, then its topic went":        {func(h *house, _ *client) { expire(); noRight(h) }, never},
		"the token ended, then the token was revoked": {func(h *house, _ *client) { expire(); tokenGone(h) }, never},
		"the token ended, then its key went":          {func(h *house, _ *client) { expire(); h.rekey("lamp") }, never},
		"the token ended, then another incarnation began": {func(h *house, _ *client) {
			expire()
			h.mu.Lock()
			h.roll["lamp"].Incarnation = 2
			h.mu.Unlock()
			h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, "lamp")
		}, never},
		"the server was killed, and it was suspended meanwhile": {func(h *house, _ *client) {
			h.crash(mqtt.Options{})
			h.state("lamp", watchword.Suspended)
		}, never},
		"the server was killed, and its key went meanwhile": {func(h *house, _ *client) {
			h.crash(mqtt.Options{})
			h.rekey("lamp")
		}, never},
		"the server was killed, and its topic went for good": {func(h *house, _ *client) {
			h.crash(mqtt.Options{})
			h.policy(`publish = ["other"]`, `subscribe = ["#"]`)
		}, never},
	} {
		for kind, k := range willClients {
			for _, returns := range []time.Duration{0, 59 * time.Second} {
				if returns > 0 && c.after != grace {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/returns %v", name, kind, returns), func(t *testing.T) {
					inBubble(t, func(t *testing.T, h *house) {
						before := h.connect(packet.V5, "ear", h.token("ear", 5*time.Hour))
						before.subscribe(1, "will")
						lamp := h.connect(k.v, "lamp", h.token("lamp", willToken), k.edit, withWill)
						broker := h.broker
						c.end(h, lamp)
						from := time.Now()
						synctest.Wait()
						ear := before
						if h.broker != broker {
							ear = h.connect(packet.V5, "ear", h.token("ear", 5*time.Hour))
							ear.subscribe(1, "will")
						}
						if returns > 0 {
							time.Sleep(returns)
							ear.silent()
							h.connect(k.v, "lamp", h.token("lamp", 5*time.Hour), k.edit)
						}
						end := time.After(time.Hour)
						select {
						case p := <-ear.got:
							m, ok := p.(*packet.Publish)
							if !ok || string(m.Payload) != "gone" || c.after == never || returns > 0 {
								t.Fatalf("got %T %+v after %v", p, p, time.Since(from))
							}
							if after := time.Since(from); after > c.after || c.after == grace && after < grace {
								t.Errorf("the will came after %v, want %v", after, c.after)
							}
							ear.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
						case <-end:
							if c.after != never && returns == 0 {
								t.Error("no will")
							}
						}
						ear.silent()
						if n := h.storedWills(); n != 0 {
							t.Errorf("%d wills are left in the store", n)
						}
						if s := h.broker.Stats(); s.Wills != 0 || s.WillBytes != 0 {
							t.Errorf("%d wills of %d bytes are left", s.Wills, s.WillBytes)
						}
					})
				})
			}
		}
	}
}

// forget deletes a subject.
func (h *house) forget(id watchword.SubjectID) {
	h.mu.Lock()
	s := h.roll[id]
	delete(h.roll, id)
	h.mu.Unlock()
	h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, id)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll[id] = s // enrolled again, and nobody told the guard
	s.Incarnation++
}

// rekey retires the key of a subject.
func (h *house) rekey(id watchword.SubjectID) {
	h.mu.Lock()
	s := *h.roll[id]
	s.Keys = []watchword.Key{{ID: "k2", Purpose: watchword.Sign, State: watchword.KeyActive}}
	h.roll[id] = &s
	h.mu.Unlock()
	h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, id)
}

// The will is in the store before the client hears CONNACK; where it cannot be, the client
// is not let in, and nothing is published.
func TestAWillIsStoredBeforeCONNACK(t *testing.T) {
	for kind, k := range willClients {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " fails ", fails), func(t *testing.T) {
				inBubble(t, func(t *testing.T, h *house) {
					ear := h.device("ear")
					ear.subscribe(1, "will")
					h.store.shut()
					c := h.raw(k.v)
					p := hello(k.v, "lamp", h.token("lamp", time.Hour))
					k.edit(p)
					withWill(p)
					c.send(p)
					c.silent()
					if fails {
						h.store.fail(true)
						synctest.Wait()
						for p := range c.got {
							if ack, ok := p.(*packet.Connack); ok {
								t.Errorf("CONNACK %#x", ack.Code)
							}
						}
						h.store.fail(false)
						time.Sleep(2 * time.Minute)
						ear.silent()
						return
					}
					h.store.open()
					if ack := want[*packet.Connack](c); ack.Code != packet.Success {
						t.Errorf("%#x", ack.Code)
					}
					if n := h.storedWills(); n != 1 {
						t.Errorf("%d wills in the store", n)
					}
				})
			})
		}
	}
}

// What a will says is the same after a crash, and it is kept for as long as it said.
func TestAWillKeepsWhatItSaysOverACrash(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprint("crash ", crash), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) { aWillSays(t, h, crash) })
		})
	}
}

func aWillSays(t *testing.T, h *house, crash bool) {
	lamp := h.device("lamp", func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: "will", QoS: 2, Retain: true, Payload: []byte{0, 1}}
		w := &p.Will.Properties
		w.SetNumber(packet.MessageExpiry, 100)
		w.SetNumber(packet.WillDelay, 7_000) // of no use where the session ends with its connection
		w.SetText(packet.ContentType, "x")
		w.User = []packet.Pair{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}
	})
	if crash {
		h.crash(mqtt.Options{})
	} else {
		lamp.vanish()
		synctest.Wait()
	}
	ear := h.device("ear")
	p := &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "will", QoS: 2, RetainAsPublished: true}}}
	ear.send(p)
	want[*packet.Suback](ear)
	m := want[*packet.Publish](ear)
	life, _ := m.Properties.Number(packet.MessageExpiry)
	kind, _ := m.Properties.Text(packet.ContentType)
	_, delayed := m.Properties.Number(packet.WillDelay)
	if m.QoS != 2 || !m.Retain || string(m.Payload) != "\x00\x01" || life != 100 || kind != "x" || delayed || fmt.Sprint(m.Properties.User) != "[{a 1} {a 2}]" {
		t.Errorf("%+v", m)
	}
	late := h.device("late")
	late.subscribe(1, "will")
	if m := late.message(); !m.Retain {
		t.Errorf("%+v", m)
	}
	time.Sleep(101 * time.Second)
	later := h.device("later")
	later.subscribe(1, "will")
	later.silent()
}

// A will stands on the token that its connection had last.
func TestAWillStandsOnTheLastToken(t *testing.T) {
	for name, last := range map[string]bool{"the first token is revoked": false, "the last token is revoked": true} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " crash ", crash), func(t *testing.T) {
				inBubble(t, func(t *testing.T, h *house) {
					first, second := h.token("lamp", time.Minute), h.token("lamp", time.Hour)
					lamp := h.connect(packet.V5, "lamp", first, withWill)
					if r := lamp.publish(1, "$watchword/auth", second); r != packet.Success {
						t.Fatalf("%#x", r)
					}
					synctest.Wait() // it is written
					if crash {
						h.crash(mqtt.Options{})
					} else {
						time.Sleep(time.Hour)
					}
					synctest.Wait()
					ear := h.device("ear")
					ear.subscribe(1, "will")
					gone := first
					if last {
						gone = second
					}
					h.guard.TokenRevoked(watchword.DefaultTenant, "lamp", gone)
					time.Sleep(2 * time.Minute)
					if !last {
						ear.hears("will", "gone")
					}
					ear.silent()
				})
			})
		}
	}
}

// A token that may not say what the will says cancels no will.
func TestATokenOfLessCancelsNoWill(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ear := h.device("ear")
		ear.subscribe(1, "will")
		h.device("lamp", withWill)
		h.closeSession("lamp")
		h.connect(packet.V5, "lamp", h.token("lamp", time.Hour, watchword.Permission{Resource: "topic:other", Actions: []string{"pub"}}))
		time.Sleep(willToken)
		ear.hears("will", "gone")
	})
}

// Of a client with a will delay whose session an operator ends while it is away, the will
// waits for a minute, not for the rest of the delay.
func TestTheWillOfASessionThatAnOperatorEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ear := h.device("ear")
		ear.subscribe(1, "will")
		h.connect(packet.V5, "lamp", h.token("lamp", time.Hour), wills(600)).vanish()
		synctest.Wait()
		states := h.broker.States(watchword.DefaultTenant, "lamp")
		if len(states) != 1 || time.Until(states[0].Will) != 600*time.Second {
			t.Fatalf("%+v", states)
		}
		refused := errors.New("not written down")
		if err := h.broker.Forget(watchword.DefaultTenant, states[0].ID, func() error { return refused }); err != refused {
			t.Fatal(err)
		}
		if n := len(h.broker.States(watchword.DefaultTenant, "lamp")); n != 1 {
			t.Fatalf("what was not written down was done: %d sessions", n)
		}
		if err := h.broker.Forget(watchword.DefaultTenant, states[0].ID, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := h.broker.Forget(watchword.DefaultTenant, states[0].ID, func() error { t.Error("it was written down twice"); return nil }); watchword.CodeOf(err) != watchword.NotFound {
			t.Fatalf("it is there still: %v", err)
		}
		from := time.Now()
		ear.hears("will", "gone")
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
			inBubble(t, func(t *testing.T, h *house) {
				h.crash(o)
				all, mine := 0, 0
				for _, id := range []watchword.SubjectID{"lamp", "other"} {
					mine = 0
					for n := range 6 {
						c := h.raw(packet.V5)
						p := hello(packet.V5, fmt.Sprintf("%s/%d", id, n), h.token(id, time.Hour))
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
				if s := h.broker.Stats(); s.Wills != int64(all) || s.WillBytes < int64(all)*1_000 {
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
		end           func(h *house)
		after         time.Duration
	}{
		"session close, delay":                {3_600, 600, func(h *house) { h.closeSession("lamp") }, 600 * time.Second},
		"session close, delay below a minute": {3_600, 30, func(h *house) { h.closeSession("lamp") }, time.Minute},
		"session close, session ends first":   {90, 600, func(h *house) { h.closeSession("lamp") }, 90 * time.Second},
		"killed, delay":                       {3_600, 600, func(h *house) { h.crash(mqtt.Options{}) }, 600 * time.Second},
		"killed, session ends first":          {90, 600, func(h *house) { h.crash(mqtt.Options{}) }, 90 * time.Second},
		"killed, of an older build": {90, 600, func(h *house) {
			synctest.Wait()
			h.store.mu.Lock()
			for id, w := range h.store.wills {
				w.Due, w.Token, w.Key = time.Now().Add(600*time.Second), "", ""
				h.store.wills[id] = w
			}
			h.store.mu.Unlock()
			h.crash(mqtt.Options{})
		}, 90 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.connect(packet.V5, "lamp", h.token("lamp", 5*time.Hour), wills(c.delay), func(p *packet.Connect) { p.Properties.SetNumber(packet.SessionExpiry, c.expiry) })
				c.end(h)
				from := time.Now()
				ear := h.connect(packet.V5, "ear", h.token("ear", 5*time.Hour))
				ear.subscribe(1, "will")
				ear.hears("will", "gone")
				if after := time.Since(from); after != c.after {
					t.Errorf("after %v, want %v", after, c.after)
				}
			})
		})
	}
}

// Wills of several lives of the server do not take each other's place in the store, and of
// one client identifier the last will stands alone.
func TestWillsOfSeveralLives(t *testing.T) {
	for _, twice := range []bool{false, true} {
		t.Run(fmt.Sprint("twice ", twice), func(t *testing.T) { inBubble(t, func(t *testing.T, h *house) { severalLives(t, h, twice) }) })
	}
}

func severalLives(t *testing.T, h *house, twice bool) {
	h.device("first", withWill)
	synctest.Wait()
	h.store.mu.Lock() // the connection before, whose end was not written any more
	for id, w := range h.store.wills {
		if !twice {
			break
		}
		w.ID = id + 1
		h.store.wills[w.ID] = w
		break
	}
	h.store.mu.Unlock()
	h.crash(mqtt.Options{})
	h.device("second", withWill)
	synctest.Wait()
	h.crash(mqtt.Options{})
	ear := h.connect(packet.V5, "ear", h.token("ear", 5*time.Hour))
	ear.subscribe(1, "will")
	ear.hears("will", "gone")
	ear.hears("will", "gone")
	time.Sleep(time.Hour)
	ear.silent()
	if n := h.storedWills(); n != 0 {
		t.Errorf("%d wills are left in the store", n)
	}
}

// What could not be written of a will is written when the store writes again.
func TestTheEndOfAWillThatCouldNotBeWritten(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		lamp := h.device("lamp", withWill)
		synctest.Wait()
		h.store.fail(true)
		lamp.send(&packet.Disconnect{})
		time.Sleep(2 * time.Second)
		h.store.fail(false)
		time.Sleep(2 * time.Second)
		if n := h.storedWills(); n != 0 {
			t.Errorf("%d wills in the store", n)
		}
	})
}

// A CONNECT that is refused after its will was counted gives the room back.
func TestARefusedConnectGivesTheRoomOfItsWillBack(t *testing.T) {
	for name, refused := range map[string]func(h *house){
		"too many sessions": func(h *house) {
			for n := range 8 {
				h.connect(packet.V5, fmt.Sprintf("lamp/%d", n), h.token("lamp", time.Hour))
			}
		},
		"suspended before the session starts": func(h *house) { h.onABadRoll().good.Store(2) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				raw := h.token("lamp", time.Hour)
				refused(h)
				c := h.raw(packet.V5)
				p := hello(packet.V5, "lamp", raw)
				withWill(p)
				c.send(p)
				if ack := want[*packet.Connack](c); ack.Code == packet.Success {
					t.Fatal("it was let in")
				}
				synctest.Wait()
				if s := h.broker.Stats(); s.Wills != 0 || s.WillBytes != 0 {
					t.Errorf("%d wills of %d bytes", s.Wills, s.WillBytes)
				}
			})
		})
	}
}

// Recording an operator's end of a session may wait for a store, and locks nobody out but the client
// itself: it resumes the session only where the end was not recorded.
func TestAClientThatComesBackWhileTheEndOfItsSessionIsRecorded(t *testing.T) {
	for name, refused := range map[string]error{"recorded": nil, "not recorded": errors.New("not recorded")} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.away(packet.V5, "lamp", "x")
				synctest.Wait()
				states := h.broker.States(watchword.DefaultTenant, "lamp")
				if len(states) != 1 {
					t.Fatalf("%+v", states)
				}
				c, p := h.raw(packet.V5), hello(packet.V5, "lamp", h.token("lamp", time.Hour))
				p.CleanStart = false
				p.Properties.SetNumber(packet.SessionExpiry, 3600)
				err := h.broker.Forget(watchword.DefaultTenant, states[0].ID, func() error {
					c.send(p)
					if now := h.broker.States(watchword.DefaultTenant, "lamp"); len(now) != 1 || now[0].Live {
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
