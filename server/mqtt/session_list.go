package mqtt

import (
	"maps"
	"slices"
	"unsafe"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/session"
)

// SessionState returns the session of a client identifier. ok is false if there is none.
func (b *Broker) SessionState(t watchword.TenantID, client string) (state session.State, ok bool) {
	st := b.tenant(t).client(client)
	if st == nil {
		return state, false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.removed {
		return state, false
	}
	return st.sessionState(), true
}

// OfflineStates returns at most n sessions whose clients are not connected, in order of subject and of client identifier,
// from the given place on; of one subject alone if only is set. It looks at no others. next is where the list continues: nil
// at its end.
func (b *Broker) OfflineStates(t watchword.TenantID, from session.OfflinePlace, only bool, n int) (out []session.State, next *session.OfflinePlace) {
	page := b.tenant(t).offline.page(from, only, n+1)
	if len(page) > n {
		next, page = &session.OfflinePlace{Subject: page[n].owner.subject, Client: page[n].id}, page[:n]
	}
	for _, st := range page {
		st.mu.Lock()
		if !st.removed && st.conn == nil {
			out = append(out, st.sessionState())
		}
		st.mu.Unlock()
	}
	return out, next
}

// sessionState describes the session for lists. mu is held.
func (st *sessionState) sessionState() session.State {
	s := session.State{Client: st.id, Subject: st.owner.subject, Messages: len(st.queue) - st.head + len(st.inflight), Bytes: st.queuedBytes, MemoryBytes: st.memoryUse()}
	s.Filters = slices.Sorted(maps.Keys(st.subs))
	if c := st.conn; c != nil {
		s.Connected = true
		if live := c.live(); live != nil {
			s.ID = live.ID()
		}
	}
	per := st.persistent
	if per == nil {
		return s
	}
	s.Messages, s.Bytes, s.DisconnectedAt, s.Dropped = per.backlog.messages, per.backlog.bytes, per.offline.since, per.losses.dropped
	if st.conn == nil {
		s.WillDue = st.broker.wills.dueAt(st)
		if ends, ok := per.expiresAt(); ok {
			s.ExpiresAt = ends
		}
	}
	if per.offline.authority != nil {
		s.ID = per.offline.authority.ID()
	}
	return s
}

// memoryUse estimates the session's memory: structures, queue, backlog entries, and 8 KiB for the
// reader of a connection.
func (st *sessionState) memoryUse() int {
	n := int(unsafe.Sizeof(*st)) + st.queuedBytes + cap(st.queue)*int(unsafe.Sizeof(queuedMessage{})) + cap(st.inflightBuffer)*int(unsafe.Sizeof(inflightMessage{})) + st.receivedPeak*receivedEntryBytes
	for name := range st.subs {
		n += int(unsafe.Sizeof(subscription{})) + 3*len(name) + 128
	}
	if c := st.conn; c != nil {
		n += int(unsafe.Sizeof(*c)) + c.out.aliasBytes + cap(c.out.responses) + cap(c.out.pendingResponses)*int(unsafe.Sizeof(response{})) + 8<<10
	}
	if per := st.persistent; per != nil {
		n += int(unsafe.Sizeof(*per)) + cap(per.backlog.entries)*int(unsafe.Sizeof(backlogEntry{})) + cap(per.backlog.skipped)*16
	}
	return n
}

// EndOfflineSession ends the persistent session of a client that is not connected; id is that of [session.State]. log
// records that first, and may wait for a store: meanwhile the client cannot resume the session, and
// nothing ends where log returns an error. Codes: not_found where there is no such session, or its client
// is connected; log's.
func (b *Broker) EndOfflineSession(t watchword.TenantID, client string, id watchword.SessionID, log func() error) error {
	st := b.tenant(t).client(client)
	if st == nil || !st.isOffline(id) {
		return errNoSession
	}
	return st.endByOperator(id, log)
}

var errNoSession = watchword.Refuse(watchword.NotFound, "no open session has this id")

// isOffline reports whether st has that id and no connection.
func (st *sessionState) isOffline(id watchword.SessionID) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.conn == nil && st.persistent != nil && st.persistent.offline.authority != nil && st.persistent.offline.authority.ID() == id
}

// endByOperator is [Broker.EndOfflineSession] for one session. A session that ends by itself while log runs is no
// error: it has ended, and log said so.
func (st *sessionState) endByOperator(id watchword.SessionID, log func() error) error {
	st.receiving.Lock() // conn.resume takes it before it gives the session a connection
	defer st.receiving.Unlock()
	if !st.isOffline(id) {
		return errNoSession
	}
	lockrank.Block()
	if err := log(); err != nil {
		return err
	}
	return st.endSessionIf(func() error {
		st.broker.wills.offlineSessionClosed(st, st.broker.options.Now())
		return nil
	})
}
