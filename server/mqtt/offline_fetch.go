package mqtt

import (
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// Limits of one read of stored messages.
const (
	fetchMessages   = 64
	fetchBytes      = 128 << 10
	fetchRetryDelay = time.Second
)

// refill starts reading the next stored messages if the queue has room. mu is held.
func (c *conn) refill() {
	per := c.session.persistent
	if per.backlog.loading || len(per.backlog.entries) == 0 || c.out.closed || !c.out.connackSent || len(c.session.queue)-c.session.head > queueWindow/2 {
		return
	}
	per.backlog.loading = true
	go c.fetch(per.generation)
}

// fetch reads one page of the backlog into the queue.
func (c *conn) fetch(generation int) {
	c.session.mu.Lock()
	if c.session.conn != c || c.session.persistent.generation != generation {
		c.session.mu.Unlock()
		return
	}
	per := c.session.persistent
	page := per.backlog.page()
	c.session.mu.Unlock()

	bodies, err := c.session.loadMessages(page)
	if err != nil {
		c.broker.options.Log.Error("messages that wait cannot be read", slog.String("client", c.session.id), slog.Any("err", err))
		time.AfterFunc(fetchRetryDelay, func() { c.fetch(generation) })
		return
	}

	c.session.mu.Lock()
	if c.session.conn != c || c.session.persistent.generation != generation || c.out.closed {
		c.session.mu.Unlock()
		return
	}
	a := c.live().Authority()
	for _, e := range per.backlog.pop(page) { // redistribution may have taken some meanwhile
		var m *message
		if e.stored != nil {
			m = bodies[e.stored.id]
		}
		if m == nil {
			c.session.uncountOffline(e.stored, e.seq, int(e.size))
			continue
		}
		it := e.queuedMessage(m)
		// Messages of removed subscriptions are recognized by their topic.
		if c.session.isFromLostSubscription(m.topic, e.seq) && !c.session.stillSubscribed(&it) || !a.Subscribe(m.topic).Allowed {
			c.session.uncountOffline(e.stored, e.seq, int(e.size))
			continue
		}
		if per.backlog.wasSent(e.seq) {
			it.flags |= 8 // DUP
		}
		if it.qos == 2 {
			c.broker.committer.wakeWhenWritten(e.stored, c.session)
		}
		c.session.appendToQueue(it)
	}
	per.backlog.loading = false
	c.refill() // if nothing of this page is left
	c.session.mu.Unlock()
	c.flush(false)
}

// trimFront removes the first n items of a list, and releases memory if the list was much longer.
func trimFront(list []backlogEntry, n int) []backlogEntry {
	rest := append(list[:0], list[n:]...)
	clear(list[len(rest):])
	switch {
	case len(rest) == 0:
		return nil
	case cap(rest) > 4*fetchMessages && len(rest) < cap(rest)/4:
		return slices.Clone(rest)
	}
	return rest
}

// loadMessages reads the messages of backlog entries by their ids. Messages whose write failed are
// missing.
func (st *sessionState) loadMessages(page []backlogEntry) (map[int64]*message, error) {
	out := make(map[int64]*message, len(page))
	var ids []int64
	for _, e := range page {
		if e.stored == nil {
			continue
		}
		if m := e.stored.body.Load(); m != nil { // not committed yet
			out[e.stored.id] = m
			continue
		}
		if _, asked := out[e.stored.id]; asked || e.stored.failed.Load() {
			continue
		}
		out[e.stored.id] = nil
		ids = append(ids, e.stored.id)
	}
	if len(ids) == 0 {
		return out, nil
	}
	lockrank.Block()
	ms, err := st.broker.committer.store.Messages(st.broker.ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, sm := range ms {
		if out[sm.ID], err = decodeStored(sm.Packet, sm.Expires); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (e *backlogEntry) queuedMessage(m *message) queuedMessage {
	it := queuedMessage{message: m, qos: e.qos, extra: &queuedExtra{seq: e.seq, stored: e.stored, group: e.group, countedBytes: e.size}}
	if e.identifiers != nil {
		it.extra.identifiers = *e.identifiers
	}
	if e.retain {
		it.flags = 1
	}
	return it
}
