package mqtt

import (
	"cmp"
	"maps"
	"slices"
	"unsafe"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/session"
)

// States returns the clients of a tenant, or those of one subject, by client identifier.
func (b *Broker) States(t watchword.TenantID, subject watchword.SubjectID) []session.State {
	w := b.world(t)
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.clients))
	w.mu.Unlock()
	out := []session.State{}
	for _, st := range all {
		st.mu.Lock()
		if !st.over && (subject == "" || subject == st.owner.subject) {
			out = append(out, st.describe())
		}
		st.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b session.State) int { return cmp.Compare(a.Client, b.Client) })
	return out
}

// describe is called with mu held.
func (st *sessionState) describe() session.State {
	s := session.State{Client: st.id, Subject: st.owner.subject, Messages: len(st.queue) - st.head + len(st.flights), Bytes: st.bytes, Memory: st.memory()}
	s.Filters = slices.Sorted(maps.Keys(st.subs))
	if c := st.conn; c != nil {
		s.Live = true
		if live := c.live(); live != nil {
			s.ID = live.ID()
		}
	}
	l := st.lasting
	if l == nil {
		return s
	}
	s.Messages, s.Bytes, s.Left, s.Dropped = l.waiting, l.weight, l.left, l.dropped
	if st.conn == nil {
		s.Will = st.broker.wills.dueAt(st)
		if ends, ok := l.ends(); ok {
			s.Ends = ends
		}
	}
	if l.hold != nil {
		s.ID = l.hold.ID()
	}
	return s
}

// memory is about what the client takes: structures, what is queued, what is known of
// what waits on the shelf, and 8 KiB for the goroutine that reads a connection.
func (st *sessionState) memory() int {
	n := int(unsafe.Sizeof(*st)) + st.bytes + cap(st.queue)*int(unsafe.Sizeof(item{})) + cap(st.ground)*int(unsafe.Sizeof(flight{})) + st.mostReceived*receivedBytes
	for name := range st.subs {
		n += int(unsafe.Sizeof(subscription{})) + 3*len(name) + 128
	}
	if c := st.conn; c != nil {
		n += int(unsafe.Sizeof(*c)) + c.out.aliasBytes + cap(c.out.control) + cap(c.out.answers)*int(unsafe.Sizeof(reply{})) + 8<<10
	}
	if l := st.lasting; l != nil {
		n += int(unsafe.Sizeof(*l)) + cap(l.backlog)*int(unsafe.Sizeof(entry{})) + cap(l.gone)*16
	}
	return n
}

// Forget ends a persistent session whose client is not connected; id is that of [session.State]. log
// records that first, and may wait for a store: meanwhile the client cannot resume the session, and
// nothing ends where log returns an error. Codes: not_found where there is no such session, or its client
// is connected; log's.
func (b *Broker) Forget(t watchword.TenantID, id watchword.SessionID, log func() error) error {
	w := b.world(t)
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.clients))
	w.mu.Unlock()
	for _, st := range all {
		if st.isOffline(id) {
			return st.endOffline(id, log)
		}
	}
	return errNoSession
}

var errNoSession = watchword.Refuse(watchword.NotFound, "no such session")

// isOffline reports whether st has that id and no connection.
func (st *sessionState) isOffline(id watchword.SessionID) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.conn == nil && st.lasting != nil && st.lasting.hold != nil && st.lasting.hold.ID() == id
}

// endOffline is [Broker.Forget] for one session. A session that ends by itself while log runs is no
// error: it has ended, and log said so.
func (st *sessionState) endOffline(id watchword.SessionID, log func() error) error {
	st.receiving.Lock() // conn.resume takes it before it gives the session a connection
	defer st.receiving.Unlock()
	if !st.isOffline(id) {
		return errNoSession
	}
	lockrank.Block()
	if err := log(); err != nil {
		return err
	}
	return st.endIf(func() error {
		st.broker.wills.sessionClosed(st, st.broker.options.Now())
		return nil
	})
}
