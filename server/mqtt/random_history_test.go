package mqtt_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/policy"
)

// A random history: clients connect, subscribe, publish, refresh, are taken over and vanish, while the clock runs, policies
// are edited and devices suspended. A slow and simple model states after each step what each client must have received:
// nothing that it forbids, everything that it allows.

var (
	historyTopics  = []string{"a", "b", "c/1", "c/2", "c/1/x"}
	historyFilters = []string{"a", "b", "c/+", "c/#", "+/1", "c/1/x"}
	historyRules   = []string{"a", "b", "c/#", "c/1", "c/+", "#", "+"}
)

// permissionLists is a list of what is allowed and one of what is denied.
type permissionLists struct{ pub, sub, noPub, noSub []string }

func (r permissionLists) mayPublish(topic string) bool {
	hits := func(fs []string) bool {
		return slices.ContainsFunc(fs, func(f string) bool { return policy.Match(f, topic) })
	}
	return hits(r.pub) && !hits(r.noPub)
}

func (r permissionLists) maySubscribe(filter string) bool {
	return slices.ContainsFunc(r.sub, func(f string) bool { return policy.Contains(f, filter) }) &&
		!slices.ContainsFunc(r.noSub, func(f string) bool { return authz.Intersects(f, filter) })
}

// modelClient is one client, as the model sees it.
type modelClient struct {
	id      watchword.SubjectID
	c       *testClient // nil while away
	token   permissionLists
	ends    time.Time
	subs    map[string]bool
	listens bool
	will    string // its topic; "" for none
	willID  string
	waiting []waitingWill
}

// waitingWill is the will of a connection whose token ended.
type waitingWill struct {
	topic, id string
	due       time.Time
}

func (p *modelClient) isListening(topic string) bool {
	for f := range p.subs {
		if policy.Match(f, topic) {
			return true
		}
	}
	return false
}

type authorityHistory struct {
	t         *testing.T
	h         *testServer
	r         *rand.Rand
	today     permissionLists
	suspended map[watchword.SubjectID]bool
	players   []*modelClient
	serial    int
	log       []string
}

func some(r *rand.Rand, from []string, likely float64) []string {
	var out []string
	for _, s := range from {
		if r.Float64() < likely {
			out = append(out, s)
		}
	}
	return out
}

func (hs *authorityHistory) note(format string, a ...any) {
	hs.log = append(hs.log, fmt.Sprintf(format, a...))
}

func (hs *authorityHistory) fail(format string, a ...any) {
	hs.t.Helper()
	hs.t.Fatalf("%s\nafter:\n%s", fmt.Sprintf(format, a...), strings.Join(hs.log[max(0, len(hs.log)-25):], "\n"))
}

func (hs *authorityHistory) mayPublish(p *modelClient, topic string) bool {
	return hs.today.mayPublish(topic) && p.token.mayPublish(topic)
}

func (hs *authorityHistory) maySubscribe(p *modelClient, filter string) bool {
	return hs.today.maySubscribe(filter) && p.token.maySubscribe(filter)
}

// anyTopic reports whether today and a token allow anything at all. The built-in policy
// gives a device some topics of its own, which only what is denied takes away.
func (hs *authorityHistory) anyTopic(token permissionLists) bool {
	own := permissionLists{pub: []string{"devices/ID/events/#", "devices/ID/state"}, sub: []string{"devices/ID/config"}, noPub: hs.today.noPub, noSub: hs.today.noSub}
	for _, topic := range []string{"devices/ID/events/z", "devices/ID/state", "devices/ID/config"} {
		if own.mayPublish(topic) && token.mayPublish(topic) || own.maySubscribe(topic) && token.maySubscribe(topic) {
			return true
		}
	}
	for _, one := range []string{"a", "b", "c", "1", "z"} {
		for _, topic := range []string{one, one + "/1", one + "/z", one + "/1/x", one + "/z/z"} {
			if hs.today.mayPublish(topic) && token.mayPublish(topic) || hs.today.maySubscribe(topic) && token.maySubscribe(topic) {
				return true
			}
		}
	}
	return false
}

// covers reports whether a token covers what a player's session holds of what it may
// have today.
func (hs *authorityHistory) covers(p *modelClient, token permissionLists) bool {
	for f := range p.subs {
		if hs.today.maySubscribe(f) && !token.maySubscribe(f) {
			return false
		}
	}
	return p.will == "" || !hs.today.mayPublish(p.will) || token.mayPublish(p.will)
}

// expected is what each player must receive from one step, in no order between publishers.
type expected map[*modelClient][]string

// message adds a publish, from whomever, to what is expected.
func (hs *authorityHistory) message(e expected, topic, id string) (reached bool) {
	for _, p := range hs.players {
		if p.c != nil && p.isListening(topic) {
			e[p] = append(e[p], topic+" "+id)
			reached = true
		}
	}
	return reached
}

// gone is the end of a player's connection, with its will if it may still be.
func (hs *authorityHistory) gone(e expected, p *modelClient, withWill bool) {
	p.c, p.subs, p.listens = nil, nil, false
	topic, id := p.will, p.willID
	p.will = ""
	if withWill && topic != "" && hs.mayPublish(p, topic) {
		hs.message(e, topic, id)
	}
}

// recomputed is a change of authority: what a player loses, and the expected notices.
func (hs *authorityHistory) recomputed(e expected) {
	var closed []*modelClient
	for _, p := range hs.players {
		p.waiting = slices.DeleteFunc(p.waiting, func(w waitingWill) bool { return hs.suspended[p.id] || !hs.today.mayPublish(w.topic) })
		if p.c == nil {
			continue
		}
		if hs.suspended[p.id] {
			e[p] = append(e[p], fmt.Sprintf("end %#x", packet.AdministrativeAction))
			closed = append(closed, p)
			p.subs, p.will = nil, "" // no message is received any more, and no will is left
			continue
		}
		lost := false
		for f := range p.subs {
			if !hs.maySubscribe(p, f) {
				delete(p.subs, f)
				lost = true
			}
		}
		if p.will != "" && !hs.mayPublish(p, p.will) {
			p.will = ""
		}
		switch {
		case lost && p.listens:
			e[p] = append(e[p], "lost")
		case lost:
			e[p] = append(e[p], fmt.Sprintf("end %#x", packet.NotAuthorized))
			closed = append(closed, p)
			p.subs = nil
		}
	}
	for _, p := range closed {
		hs.gone(e, p, true)
	}
}

// run has the clock run, from one end of a token or time of a will to the next.
func (hs *authorityHistory) run(e expected, d time.Duration) {
	for end := time.Now().Add(d); ; {
		next := end
		for _, p := range hs.players {
			if p.c != nil && p.ends.Before(next) {
				next = p.ends
			}
			for _, w := range p.waiting {
				if w.due.Before(next) {
					next = w.due
				}
			}
		}
		time.Sleep(time.Until(next))
		synctest.Wait()
		hs.expire(e)
		if next.Equal(end) {
			return
		}
	}
}

// expire publishes wills that are due, and ends players with an expired token.
func (hs *authorityHistory) expire(e expected) {
	for _, p := range hs.players {
		for len(p.waiting) > 0 && !time.Now().Before(p.waiting[0].due) {
			hs.message(e, p.waiting[0].topic, p.waiting[0].id)
			p.waiting = p.waiting[1:]
		}
		if p.c != nil && !time.Now().Before(p.ends) {
			e[p] = append(e[p], fmt.Sprintf("end %#x", packet.MaximumConnectTime))
			if p.will != "" {
				p.waiting = append(p.waiting, waitingWill{p.will, p.willID, p.ends.Add(time.Minute)})
			}
			hs.gone(e, p, false)
		}
	}
}

// heard returns what was received since the last step, one line each. Requests to refresh may arrive at any time.
func heard(c *testClient) []string {
	var out []string
	for {
		select {
		case p, open := <-c.got:
			switch p := p.(type) {
			case *packet.Publish:
				if p.QoS > 0 {
					c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
				}
				switch {
				case p.Topic != "$watchword/auth":
					out = append(out, p.Topic+" "+string(p.Payload))
				case strings.Contains(string(p.Payload), `"lost"`):
					out = append(out, "lost")
				}
			case *packet.Disconnect:
				out = append(out, fmt.Sprintf("end %#x", p.Reason))
			case nil:
				if !open {
					return out
				}
			}
			continue
		default:
			return out
		}
	}
}

func (hs *authorityHistory) check(clients map[*modelClient]*testClient, e expected) {
	hs.t.Helper()
	synctest.Wait()
	for p, c := range clients {
		got, want := heard(c), e[p]
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			hs.fail("%s received %q, want %q", p.id, got, want)
		}
	}
}

// step does one random thing and holds what follows against the model.
func (hs *authorityHistory) step() {
	r, e := hs.r, expected{}
	p := hs.players[r.IntN(len(hs.players))]
	clients := map[*modelClient]*testClient{}
	for _, q := range hs.players {
		if q.c != nil {
			clients[q] = q.c
		}
	}
	n := r.IntN(100)
	if p.c == nil && n < 94 {
		n = 0
		if hs.suspended[p.id] && r.IntN(3) > 0 {
			n = 94
		}
	}
	switch {
	case n < 4:
		hs.connect(e, p, clients)
	case n < 10:
		hs.note("%s vanishes", p.id)
		p.c.closeAbruptly()
		delete(clients, p)
		hs.gone(e, p, true)
	case n < 13:
		hs.note("%s says goodbye", p.id)
		p.c.send(&packet.Disconnect{})
		delete(clients, p)
		hs.gone(e, p, false)
	case n < 30:
		f := historyFilters[r.IntN(len(historyFilters))]
		code, want := p.c.subscribe(byte(r.IntN(2)), f)[0], packet.NotAuthorized
		hs.note("%s subscribes to %s: %#x", p.id, f, code)
		if hs.maySubscribe(p, f) {
			p.subs[f], want = true, code&1
		}
		if code != want {
			hs.fail("%#x, want %#x", code, want)
		}
	case n < 34:
		hs.note("%s listens", p.id)
		p.c.subscribe(1, "$watchword/auth")
		p.listens = true
	case n < 38:
		f := historyFilters[r.IntN(len(historyFilters))]
		hs.note("%s unsubscribes from %s", p.id, f)
		p.c.send(&packet.Unsubscribe{ID: p.c.id(), Filters: []string{f}})
		want[*packet.Unsuback](p.c)
		delete(p.subs, f)
	case n < 75:
		hs.publish(e, p)
	case n < 82:
		hs.refresh(p)
	case n < 88:
		d := time.Duration(1 + r.IntN(90)*int(time.Second))
		hs.note("the clock runs %s", d)
		hs.run(e, d)
	case n < 94:
		hs.edit()
		hs.recomputed(e)
	default:
		st := watchword.Active
		if hs.suspended[p.id] = !hs.suspended[p.id]; hs.suspended[p.id] {
			st = watchword.Suspended
		}
		hs.note("%s is %s", p.id, st)
		hs.h.state(p.id, st)
		hs.recomputed(e)
	}
	hs.check(clients, e)
}

func (hs *authorityHistory) connect(e expected, p *modelClient, clients map[*modelClient]*testClient) {
	r := hs.r
	likely := []float64{0.1, 0.5, 0.8}[r.IntN(3)]
	token := permissionLists{pub: some(r, historyRules, likely), sub: some(r, historyRules, likely)}
	hs.serial++
	life := time.Duration(60+r.IntN(600))*time.Second + time.Duration(hs.serial)*time.Microsecond // no two end at once
	raw := hs.h.token(p.id, life, watchword.Permission{Resource: "topic:q", Actions: []string{"pub"}})
	hs.retoken(raw, token)
	before, ends := *p, time.Now().Add(life)
	c := hs.h.dialRaw(packet.V5)
	cp := hello(packet.V5, string(p.id), raw)
	will := ""
	if r.IntN(2) == 0 {
		will = historyTopics[r.IntN(len(historyTopics))]
		hs.serial++
		cp.Will = &packet.Will{Topic: will, Payload: fmt.Append(nil, hs.serial), QoS: byte(r.IntN(2))}
	}
	c.send(cp)
	ack := want[*packet.Connack](c)
	hs.note("%s connects (%+v, will %q): %#x", p.id, token, will, ack.Code)
	wantCode := packet.Success
	mayWill := will == "" || hs.today.mayPublish(will) && token.mayPublish(will)
	if hs.suspended[p.id] || !mayWill || !hs.anyTopic(token) || before.c != nil && !hs.covers(p, token) {
		wantCode = packet.NotAuthorized
	}
	if ack.Code != wantCode {
		hs.fail("CONNACK %#x, want %#x", ack.Code, wantCode)
	}
	if wantCode != packet.Success {
		return // the one before is untouched
	}
	if before.c != nil {
		e[p] = append(e[p], fmt.Sprintf("end %#x", packet.SessionTakenOver))
		hs.gone(e, p, true)
	}
	p.token, p.ends = token, ends
	p.c, p.subs, p.will, p.willID = c, map[string]bool{}, will, fmt.Sprint(hs.serial)
	p.waiting = slices.DeleteFunc(p.waiting, func(w waitingWill) bool { return hs.mayPublish(p, w.topic) }) // it is back
}

// retoken gives a token these rights.
func (hs *authorityHistory) retoken(raw string, r permissionLists) {
	var perm []watchword.Permission
	for _, f := range r.pub {
		perm = append(perm, watchword.Permission{Resource: "topic:" + f, Actions: []string{"pub"}})
	}
	for _, f := range r.sub {
		perm = append(perm, watchword.Permission{Resource: "topic:" + f, Actions: []string{"sub"}})
	}
	g, err := policy.FromPermissions(perm, nil)
	if err != nil {
		hs.t.Fatal(err)
	}
	hs.h.mu.Lock()
	defer hs.h.mu.Unlock()
	credentials := hs.h.tokens[raw]
	credentials.Permissions = g
	hs.h.tokens[raw] = credentials
}

func (hs *authorityHistory) publish(e expected, p *modelClient) {
	topic := historyTopics[hs.r.IntN(len(historyTopics))]
	hs.serial++
	id := fmt.Sprint(hs.serial)
	may := hs.mayPublish(p, topic)
	hs.note("%s publishes %s on %s (may %v)", p.id, id, topic, may)
	m := &packet.Publish{Topic: topic, Payload: []byte(id), QoS: byte(hs.r.IntN(2))}
	reached := may && hs.message(e, topic, id)
	if m.QoS == 0 {
		p.c.send(m)
		return
	}
	m.ID = p.c.id()
	p.c.send(m)
	synctest.Wait()
	// Its own copy may come before the acknowledgement, or after it.
	var ack *packet.Ack
	for range len(p.c.got) {
		q := <-p.c.got
		if a, ok := q.(*packet.Ack); ok {
			ack = a
			continue
		}
		p.c.got <- q
	}
	wantReason := packet.Success
	switch {
	case !may:
		wantReason = packet.NotAuthorized
	case !reached:
		wantReason = packet.NoMatchingSubscribers
	}
	if ack == nil || ack.Reason != wantReason {
		hs.fail("PUBACK %+v, want %#x", ack, wantReason)
	}
}

// refresh shows a newer token, or one of another, or an older one.
func (hs *authorityHistory) refresh(p *modelClient) {
	token := permissionLists{pub: some(hs.r, historyRules, 0.6), sub: some(hs.r, historyRules, 0.9)}
	hs.serial++
	life := time.Duration(30+hs.r.IntN(600))*time.Second + time.Duration(hs.serial)*time.Microsecond
	raw := hs.h.token(p.id, life, watchword.Permission{Resource: "topic:q", Actions: []string{"pub"}})
	hs.retoken(raw, token)
	newer := time.Now().Add(life).After(p.ends)
	hs.note("%s refreshes (newer %v, %+v)", p.id, newer, token)
	p.c.send(&packet.Publish{Topic: "$watchword/auth", Payload: []byte(raw)})
	if newer && hs.anyTopic(token) && hs.covers(p, token) {
		p.token, p.ends = token, time.Now().Add(life)
	}
}

func (hs *authorityHistory) edit() {
	r := hs.r
	hs.today = permissionLists{pub: some(r, historyRules, 0.6), sub: some(r, historyRules, 0.6), noPub: some(r, historyRules, 0.1), noSub: some(r, historyRules, 0.1)}
	hs.note("policy is %+v", hs.today)
	hs.h.policy(hs.today.lines()...)
}

func (r permissionLists) lines() []string {
	var out []string
	for _, l := range []struct {
		what string
		fs   []string
	}{{"publish", r.pub}, {"subscribe", r.sub}, {"deny publish", r.noPub}, {"deny subscribe", r.noSub}} {
		if len(l.fs) > 0 {
			out = append(out, l.what+` = ["`+strings.Join(l.fs, `", "`)+`"]`)
		}
	}
	return out
}

func TestRandomHistories(t *testing.T) {
	histories, steps := 60, 300
	if testing.Short() {
		histories = 10
	}
	for seed := range uint64(histories) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				all := permissionLists{pub: historyRules, sub: historyRules}
				hs := &authorityHistory{t: t, h: srv, r: rand.New(rand.NewPCG(seed, 1)), today: all, suspended: map[watchword.SubjectID]bool{}}
				srv.policy(all.lines()...)
				for i := range 5 {
					id := watchword.SubjectID(fmt.Sprintf("lamp-%d", i))
					srv.token(id, time.Hour) // adds it to the directory
					hs.players = append(hs.players, &modelClient{id: id})
				}
				for range steps {
					hs.step()
				}
				for _, p := range hs.players {
					if p.c != nil {
						p.c.closeAbruptly()
					}
				}
				time.Sleep(5 * time.Second) // disconnected clients linger for the final packet
				if s := srv.broker.Stats(); s.Connections != 0 || s.Clients != 0 || s.Subscriptions != 0 {
					t.Errorf("left at the end: %+v", s)
				}
			})
		})
	}
}

// TestAnEditBetweenManyPublishes has no lockstep: publishers continue while a topic is removed. A message that was
// published after the edit returned is received by no client that lost the topic, and by every client that kept it; those
// lose no earlier message.
func TestAnEditBetweenManyPublishes(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			srv := newTestServer(t, mqtt.Options{})
			defer srv.close()
			r := rand.New(rand.NewPCG(seed, 2))
			keeper, loser := srv.device("keeper"), srv.device("loser")
			keeper.subscribe(1, "keep/#")
			loser.subscribe(1, "keep/#", "take/#", "$watchword/auth")
			const publishers, each = 4, 40
			var wg sync.WaitGroup
			started := make(chan struct{})
			for i := range publishers {
				c := srv.device(watchword.SubjectID(fmt.Sprintf("pub-%d", i)))
				wg.Go(func() {
					<-started
					for n := range each {
						c.publish(1, "keep/x", fmt.Sprintf("%d %d", i, n))
						c.publish(1, "take/x", fmt.Sprintf("%d %d", i, n))
					}
				})
			}
			late := srv.device("late")
			stop := make(chan struct{})
			for _, c := range []*testClient{keeper, loser} {
				wg.Go(func() {
					last := map[string]int{}
					seen := 0
					for {
						select {
						case p := <-c.got:
							m, ok := p.(*packet.Publish)
							if !ok {
								t.Errorf("got %T", p)
								return
							}
							c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
							var owner, n int
							if string(m.Payload) == "late" && m.Topic == "take/x" {
								t.Error("received what was published after the edit")
							}
							if k, _ := fmt.Sscanf(string(m.Payload), "%d %d", &owner, &n); k != 2 {
								continue
							}
							key := fmt.Sprint(m.Topic, owner)
							if n != last[key] && m.Topic == "keep/x" {
								t.Errorf("message %d of %d, want %d: lost or out of order", n, owner, last[key])
							}
							last[key] = n + 1
							if m.Topic == "keep/x" {
								seen++
							}
						case <-stop:
							if seen != publishers*each {
								t.Errorf("received %d that it may receive, want %d", seen, publishers*each)
							}
							return
						}
					}
				})
			}
			close(started)
			for range r.IntN(200) {
				time.Sleep(0) // let the others run, a random while
			}
			srv.policy(`publish = ["#"]`, `subscribe = ["keep/#"]`)
			late.publish(1, "take/x", "late")
			synctest.Wait()
			close(stop)
			wg.Wait()
		})
	}
}
