package mqtt

import (
	"context"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/shelf"
)

// maxLasting is how many clients of one subject may have state that outlives their
// connections.
const maxLasting = 8

// mostExpiry is the longest session expiry that this server gives, in seconds; 0 where
// nothing survives.
func (b *Broker) mostExpiry() uint32 {
	if b.journal.store == nil {
		return 0
	}
	return uint32(min(b.options.SessionExpiry/time.Second, shelf.Forever-1))
}

// enter makes c the connection of its client identifier. What was there before ends, or
// goes on with c where it lasts: present says so. Whether it may is asked once more, at
// the act: until the one before has ended, it may come to hold more.
func (c *conn) enter(ad *admission) (present bool, err error) {
	w := c.session.world
	for {
		w.mu.Lock()
		prev := w.clients[ad.id]
		if err := w.admit(c.broker, prev, ad); err != nil {
			w.mu.Unlock()
			return false, err
		}
		if prev == nil {
			c.start(ad)
			w.put(c.session)
			w.mu.Unlock()
			return false, nil
		}
		w.mu.Unlock()
		prev.mu.Lock()
		old := prev.conn
		prev.mu.Unlock()
		if old != nil {
			if err := old.takenOver(ad); err != nil { // it has no client when it returns
				return false, err
			}
		}
		if !ad.clean && prev.owner == ad.owner {
			resumed, err := c.resume(prev, ad)
			if resumed || err != nil {
				return resumed, err
			}
		}
		if err := prev.endIf(func() error { return prev.yields(ad) }); err != nil {
			return false, err
		}
		w.forget(prev)
	}
}

// start makes the connection's own client that of an identifier.
func (c *conn) start(ad *admission) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.session.id, c.session.owner = ad.id, ad.owner
	if ad.expiry > 0 {
		c.session.number = c.broker.sequence.Add(1) // in the order in which sessions begin: see Load
		c.session.last(ad.expiry)
		c.session.lasting.narrow = ad.narrow
	}
}

// last makes the client's state outlive its connection. mu is held.
func (st *sessionState) last(expiry uint32) {
	st.lasting = &lasting{expiry: expiry, row: true}
	st.broker.lasting.Add(1)
}

// resume gives c the place of the connection that prev has no more. It reports false
// where prev is over. Code: denied where the admission does not cover what prev holds.
func (c *conn) resume(prev *sessionState, ad *admission) (bool, error) {
	own := c.session
	own.mu.Lock()
	for c.out.writing && !c.out.failed { // what was said before CONNACK: a challenge
		c.out.moved.Wait()
	}
	own.mu.Unlock()
	prev.receiving.Lock() // the connection before may be in the middle of a publish
	defer prev.receiving.Unlock()
	prev.mu.Lock()
	if prev.over || prev.conn != nil || prev.lapsed(prev.broker.options.Now()) { // somebody was quicker, or the time is
		prev.mu.Unlock()
		return false, nil
	}
	if err := prev.yields(ad); err != nil {
		prev.mu.Unlock()
		return false, err
	}
	l := prev.lasting
	hold := l.hold
	l.hold, l.paused = nil, false
	l.turn++
	l.stop()
	l.left, l.row = time.Time{}, true
	l.expiry = ad.expiry
	l.unwritten = l.dirty != nil && !l.dirty.over()
	prev.conn = c
	prev.unpack()
	prev.weigh()
	prev.touch()
	c.session = prev
	c.out.moved.L = &prev.mu
	prev.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
	return true, nil
}

// watch has the guard say what a client that is away may have. Its answers come with
// the session locked.
func (st *sessionState) watch(ctx context.Context, turn int) {
	st.mu.Lock()
	tenant, who := st.world.tenant, st.owner
	st.mu.Unlock()
	still := func(f func(l *lasting)) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if l := st.lasting; l != nil && !st.over && l.turn == turn {
			f(l)
		}
	}
	hold := st.broker.deps.Guard.Hold(ctx, session.Papers{Tenant: tenant, Subject: who.subject, Incarnation: who.incarnation}, session.Options{
		Transport: "mqtt",
		Changed: func(a *session.Authority) {
			var orphans []orphan
			still(func(l *lasting) {
				l.paused = false
				_, orphans = st.lose(a)
			})
			if len(orphans) > 0 {
				go st.hand(orphans, false)
			}
		},
		Lapsed: func(cause error) {
			still(func(l *lasting) {
				switch watchword.CodeOf(cause) {
				case watchword.SubjectSuspended, watchword.SubjectNew: // it may come back, with all it had
					l.paused = true
				case watchword.SubjectRevoked, watchword.TokenRevoked:
					l.paused = true
					go st.end()
				default: // nobody can say: what waits goes on to wait, and is judged when its client comes
					if l.again != nil {
						l.again.Stop()
					}
					l.again = time.AfterFunc(askAgain, func() { st.ask(turn) })
				}
			})
		},
	})
	kept := false
	still(func(l *lasting) { l.hold, kept = hold, true })
	if !kept {
		hold.Close(nil)
	}
}

// askAgain is when a question is asked again that nobody could answer.
const askAgain = time.Second

// ask has the guard look again at what a client that is away may have.
func (st *sessionState) ask(turn int) {
	st.mu.Lock()
	var hold *session.Session
	if l := st.lasting; l != nil && l.turn == turn {
		hold = l.hold
	}
	st.mu.Unlock()
	if hold != nil {
		hold.Recompute(st.broker.ctx)
	}
}

// end ends a client without a connection: its time has come, or somebody begins anew in
// its place. Where it has a connection again, it does nothing.
func (st *sessionState) end() { _ = st.endIf(func() error { return nil }) } // no reason not to

// endIf is end where may, asked with mu held, returns no error.
func (st *sessionState) endIf(may func() error) error {
	st.mu.Lock()
	if st.over || st.conn != nil {
		st.mu.Unlock()
		return nil
	}
	if err := may(); err != nil {
		st.mu.Unlock()
		return err
	}
	var hold *session.Session
	var orphans []orphan
	if l := st.lasting; l != nil {
		hold, l.hold = l.hold, nil
		orphans = st.heirless()
		st.forget()
	}
	st.over = true
	st.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
	st.hand(orphans, false)
	st.leave()
	return nil
}

// expire is the clock's.
func (st *sessionState) expire(turn int) {
	st.mu.Lock()
	now := st.lasting != nil && st.lasting.turn == turn
	st.mu.Unlock()
	if now {
		st.broker.options.Log.Info("a session ended, its client did not come back", slog.String("client", st.id))
		st.end()
	}
}

// leave takes a client that is over out of the world. That its session ended is written
// with what it handed on, or later.
func (st *sessionState) leave() {
	if st.ended {
		st.broker.journal.add(adding{drop: st.number})
	}
	if st.world != nil {
		st.world.forget(st)
	}
}

// put makes st the client of its identifier. mu is held.
func (w *world) put(st *sessionState) {
	w.clients[st.id] = st
	if st.lasting != nil {
		st.counted = true
		w.lasting[st.owner.subject]++
	}
}

// forget takes a client out that is over; another that is not stays.
func (w *world) forget(st *sessionState) {
	st.mu.Lock()
	over := st.over
	st.mu.Unlock()
	if !over {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clients[st.id] == st {
		delete(w.clients, st.id)
	}
	if st.counted {
		st.counted = false
		if w.lasting[st.owner.subject]--; w.lasting[st.owner.subject] == 0 {
			delete(w.lasting, st.owner.subject)
		}
	}
}
