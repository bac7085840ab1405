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
	return uint32(min(b.o.SessionExpiry/time.Second, shelf.Forever-1))
}

// enter makes c the connection of its client identifier. What was there before ends, or
// goes on with c where it lasts: present says so. Whether it may is asked once more, at
// the act: until the one before has ended, it may come to hold more.
func (c *conn) enter(ad *admission) (present bool, err error) {
	w := c.world
	for {
		w.mu.Lock()
		prev := w.clients[ad.id]
		if err := w.admit(c.broker, prev, ad); err != nil {
			w.mu.Unlock()
			return false, err
		}
		if prev == nil {
			c.start(ad)
			w.put(c.client)
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
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client.world, c.client.id, c.owner = c.world, ad.id, ad.owner
	if ad.expiry > 0 {
		c.client.number = c.broker.sequence.Add(1) // in the order in which sessions begin: see Load
		c.last(ad.expiry)
		c.lasting.narrow = ad.narrow
	}
}

// last makes the client's state outlive its connection. mu is held.
func (cl *client) last(expiry uint32) {
	cl.lasting = &lasting{expiry: expiry, row: true}
	cl.broker.lasting.Add(1)
}

// resume gives c the place of the connection that prev has no more. It reports false
// where prev is over. Code: denied where the admission does not cover what prev holds.
func (c *conn) resume(prev *client, ad *admission) (bool, error) {
	own := c.client
	own.mu.Lock()
	for c.writing && !c.failed { // what was said before CONNACK: a challenge
		c.moved.Wait()
	}
	own.mu.Unlock()
	prev.passing.Lock() // the connection before may be in the middle of a publish
	defer prev.passing.Unlock()
	prev.mu.Lock()
	if prev.over || prev.conn != nil || prev.lapsed(prev.broker.o.Now()) { // somebody was quicker, or the time is
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
	c.client = prev
	c.moved.L = &prev.mu
	prev.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
	return true, nil
}

// watch has the guard say what a client that is away may have. Its answers come with
// the session locked.
func (cl *client) watch(ctx context.Context, turn int) {
	cl.mu.Lock()
	tenant, who := cl.world.tenant, cl.owner
	cl.mu.Unlock()
	still := func(f func(l *lasting)) {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		if l := cl.lasting; l != nil && !cl.over && l.turn == turn {
			f(l)
		}
	}
	hold := cl.broker.Guard.Hold(ctx, session.Papers{Tenant: tenant, Subject: who.subject, Incarnation: who.incarnation}, session.Options{
		Transport: "mqtt",
		Changed: func(a *session.Authority) {
			var orphans []orphan
			still(func(l *lasting) {
				l.paused = false
				_, orphans = cl.lose(a)
			})
			if len(orphans) > 0 {
				go cl.hand(orphans, false)
			}
		},
		Lapsed: func(cause error) {
			still(func(l *lasting) {
				switch watchword.CodeOf(cause) {
				case watchword.SubjectSuspended, watchword.SubjectNew: // it may come back, with all it had
					l.paused = true
				case watchword.SubjectRevoked, watchword.TokenRevoked:
					l.paused = true
					go cl.end()
				default: // nobody can say: what waits goes on to wait, and is judged when its client comes
					if l.again != nil {
						l.again.Stop()
					}
					l.again = time.AfterFunc(askAgain, func() { cl.ask(turn) })
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
func (cl *client) ask(turn int) {
	cl.mu.Lock()
	var hold *session.Session
	if l := cl.lasting; l != nil && l.turn == turn {
		hold = l.hold
	}
	cl.mu.Unlock()
	if hold != nil {
		hold.Recompute(cl.broker.ctx)
	}
}

// end ends a client without a connection: its time has come, or somebody begins anew in
// its place. Where it has a connection again, it does nothing.
func (cl *client) end() { _ = cl.endIf(func() error { return nil }) } // no reason not to

// endIf is end where may, asked with mu held, returns no error.
func (cl *client) endIf(may func() error) error {
	cl.mu.Lock()
	if cl.over || cl.conn != nil {
		cl.mu.Unlock()
		return nil
	}
	if err := may(); err != nil {
		cl.mu.Unlock()
		return err
	}
	var hold *session.Session
	var orphans []orphan
	if l := cl.lasting; l != nil {
		hold, l.hold = l.hold, nil
		orphans = cl.heirless()
		cl.forget()
	}
	cl.over = true
	cl.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
	cl.hand(orphans, false)
	cl.leave()
	return nil
}

// expire is the clock's.
func (cl *client) expire(turn int) {
	cl.mu.Lock()
	now := cl.lasting != nil && cl.lasting.turn == turn
	cl.mu.Unlock()
	if now {
		cl.broker.o.Log.Info("a session ended, its client did not come back", slog.String("client", cl.id))
		cl.end()
	}
}

// leave takes a client that is over out of the world. That its session ended is written
// with what it handed on, or later.
func (cl *client) leave() {
	if cl.ended {
		cl.broker.journal.add(adding{drop: cl.number})
	}
	if cl.world != nil {
		cl.world.forget(cl)
	}
}

// put makes cl the client of its identifier. mu is held.
func (w *world) put(cl *client) {
	w.clients[cl.id] = cl
	if cl.lasting != nil {
		cl.counted = true
		w.lasting[cl.owner.subject]++
	}
}

// forget takes a client out that is over; another that is not stays.
func (w *world) forget(cl *client) {
	cl.mu.Lock()
	over := cl.over
	cl.mu.Unlock()
	if !over {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clients[cl.id] == cl {
		delete(w.clients, cl.id)
	}
	if cl.counted {
		cl.counted = false
		if w.lasting[cl.owner.subject]--; w.lasting[cl.owner.subject] == 0 {
			delete(w.lasting, cl.owner.subject)
		}
	}
}
