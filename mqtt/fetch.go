package mqtt

import (
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// The bounds of what is fetched from the shelf at once.
const (
	fetchMessages = 64
	fetchBytes    = 128 << 10
	fetchRetry    = time.Second
)

// refill begins to fetch the next messages from the shelf where the queue has room for
// them. mu is held.
func (c *conn) refill() {
	l := c.session.lasting
	if l.loading || len(l.backlog) == 0 || c.out.closed || !c.out.ready || len(c.session.queue)-c.session.head > queueAhead/2 {
		return
	}
	l.loading = true
	go c.fetch(l.turn)
}

// fetch brings one page of the backlog into the queue.
func (c *conn) fetch(turn int) {
	c.session.mu.Lock()
	if c.session.conn != c || c.session.lasting.turn != turn {
		c.session.mu.Unlock()
		return
	}
	l := c.session.lasting
	n, size := 0, 0
	for n < len(l.backlog) && n < fetchMessages && (n == 0 || size+int(l.backlog[n].size) <= fetchBytes) {
		size += int(l.backlog[n].size)
		n++
	}
	page := slices.Clone(l.backlog[:n])
	c.session.mu.Unlock()

	bodies, err := c.session.bodies(page)
	if err != nil {
		c.broker.options.Log.Error("messages that wait cannot be read", slog.String("client", c.session.id), slog.Any("err", err))
		time.AfterFunc(fetchRetry, func() { c.fetch(turn) })
		return
	}

	c.session.mu.Lock()
	if c.session.conn != c || c.session.lasting.turn != turn || c.out.closed {
		c.session.mu.Unlock()
		return
	}
	a := c.live().Authority()
	all := l.backlog
	// What was taken from the backlog meanwhile is not there any more.
	for _, e := range page {
		if len(l.backlog) == 0 || l.backlog[0].seq != e.seq {
			continue
		}
		l.backlog = l.backlog[1:]
		var m *message
		if e.k != nil {
			m = bodies[e.k.id]
		}
		if m == nil {
			c.session.finished(e.k, e.seq, int(e.size))
			continue
		}
		it := e.item(m)
		// What came by a subscription that it gave up is asked for by its topic.
		if c.session.lostTo(m.topic, e.seq) && !c.session.wanted(&it) || !a.Subscribe(m.topic).Allowed {
			c.session.finished(e.k, e.seq, int(e.size))
			continue
		}
		if e.seq <= l.sent {
			it.flag |= 8 // DUP
		}
		if it.qos == 2 {
			c.broker.journal.whenWritten(e.k, c.session)
		}
		c.session.lineUp(it)
	}
	l.backlog = shrunk(all, len(all)-len(l.backlog))
	l.loading = false
	c.refill() // where nothing of this page was left
	c.session.mu.Unlock()
	c.flush(false)
}

// shrunk is what is left of a list whose first n are done. They are not held by it any more,
// and a list that was much longer lets go of its memory.
func shrunk(list []entry, n int) []entry {
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

// bodies reads the messages of some entries, by their ids in the store. What failed to be
// written is not among them.
func (st *sessionState) bodies(page []entry) (map[int64]*message, error) {
	out := make(map[int64]*message, len(page))
	var ids []int64
	for _, e := range page {
		if e.k == nil {
			continue
		}
		if m := e.k.body.Load(); m != nil { // not on the disk yet
			out[e.k.id] = m
			continue
		}
		if _, asked := out[e.k.id]; asked || e.k.failed.Load() {
			continue
		}
		out[e.k.id] = nil
		ids = append(ids, e.k.id)
	}
	if len(ids) == 0 {
		return out, nil
	}
	lockrank.Block()
	ms, err := st.broker.journal.store.ShelfMessages(st.broker.ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, sm := range ms {
		if out[sm.ID], err = unstored(sm.Packet, sm.Expires); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (e *entry) item(m *message) item {
	it := item{m: m, qos: e.qos, x: &extra{seq: e.seq, k: e.k, shared: e.shared, counted: e.size}}
	if e.identifiers != nil {
		it.x.identifiers = *e.identifiers
	}
	if e.retain {
		it.flag = 1
	}
	return it
}
