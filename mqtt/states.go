package mqtt

import (
	"cmp"
	"maps"
	"slices"
	"unsafe"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/session"
)

// States returns the clients of a tenant, or those of one subject, by client identifier.
func (b *Broker) States(t watchword.TenantID, subject watchword.SubjectID) []session.State {
	w := b.world(t)
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.clients))
	w.mu.Unlock()
	out := []session.State{}
	for _, cl := range all {
		cl.mu.Lock()
		if !cl.over && (subject == "" || subject == cl.owner.subject) {
			out = append(out, cl.describe())
		}
		cl.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b session.State) int { return cmp.Compare(a.Client, b.Client) })
	return out
}

// describe is called with mu held.
func (cl *client) describe() session.State {
	s := session.State{Client: cl.id, Subject: cl.owner.subject, Messages: len(cl.queue) - cl.head + len(cl.flights), Bytes: cl.bytes, Memory: cl.memory()}
	s.Filters = slices.Sorted(maps.Keys(cl.subs))
	if c := cl.conn; c != nil {
		s.Live = true
		if live := c.live(); live != nil {
			s.ID = live.ID()
		}
	}
	l := cl.lasting
	if l == nil {
		return s
	}
	s.Messages, s.Bytes, s.Left, s.Dropped = l.waiting, l.weight, l.left, l.dropped
	if cl.conn == nil {
		s.Will = cl.broker.wills.dueAt(cl)
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
func (cl *client) memory() int {
	n := int(unsafe.Sizeof(*cl)) + cl.bytes + cap(cl.queue)*int(unsafe.Sizeof(item{})) + cap(cl.ground)*int(unsafe.Sizeof(flight{})) + cl.mostReceived*receivedBytes
	for name := range cl.subs {
		n += int(unsafe.Sizeof(subscription{})) + 3*len(name) + 128
	}
	if c := cl.conn; c != nil {
		n += int(unsafe.Sizeof(*c)) + c.aliasBytes + cap(c.control) + cap(c.answers)*int(unsafe.Sizeof(reply{})) + 8<<10
	}
	if l := cl.lasting; l != nil {
		n += int(unsafe.Sizeof(*l)) + cap(l.backlog)*int(unsafe.Sizeof(entry{})) + cap(l.gone)*16
	}
	return n
}

// Forget ends the session that a client without a connection left behind; id is that of
// [session.State]. log writes that down first: the client cannot come back in between, and nothing
// ends where log refuses. Codes: not_found where there is none, or its client came back; log's.
func (b *Broker) Forget(t watchword.TenantID, id watchword.SessionID, log func() error) error {
	none := watchword.Refuse(watchword.NotFound, "no such session")
	w := b.world(t)
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.clients))
	w.mu.Unlock()
	for _, cl := range all {
		cl.mu.Lock()
		it := cl.conn == nil && cl.lasting != nil && cl.lasting.hold != nil && cl.lasting.hold.ID() == id
		cl.mu.Unlock()
		if it {
			return cl.endIf(func() error { // asked with mu held: its client may have come back
				if l := cl.lasting; l == nil || l.hold == nil || l.hold.ID() != id {
					return none
				}
				if err := log(); err != nil {
					return err
				}
				b.wills.sessionClosed(cl, b.o.Now())
				return nil
			})
		}
	}
	return none
}
