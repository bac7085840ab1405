package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/shelf"
)

// report is what a client was told of its losses over one connection, in CONNACK or in
// $watchword/auth. It counts as told once the client is known to have read it: once it
// acknowledges a message that was sent after it, or sends PINGREQ when all of it has been
// written. Until then the next CONNACK says it again.
type report struct {
	lost    []shelf.Lost
	dropped int64
	after   int64 // who acknowledges a message with this number or a higher one has read it
}

// lose notes that a filter was lost, and that nobody was told. mu is held.
func (l *lasting) lose(filter string, seq int64) {
	for i := range l.lost {
		if x := &l.lost[i]; x.Filter == filter && !x.Told { // once is enough: it is told with the last number
			x.Seq = max(x.Seq, seq)
			return
		}
	}
	l.lost = append(l.lost, shelf.Lost{Filter: filter, Seq: seq})
}

// untold returns the losses that the client was not told. One whose filter stands again
// needs no telling: who subscribed anew knew of it. mu is held.
func (st *sessionState) untold() (lost []shelf.Lost) {
	l := st.lasting
	for i := range l.lost {
		x := &l.lost[i]
		if x.Told {
			continue
		}
		if x.Told = st.stands(x.Filter); !x.Told {
			lost = append(lost, *x)
		}
	}
	return lost
}

func (st *sessionState) stands(filter string) bool {
	for _, s := range st.subs {
		if s.Filter == filter {
			return true
		}
	}
	return false
}

// names returns the filters of some losses, each once.
func names(lost []shelf.Lost) (out []string) {
	for _, x := range lost {
		if !slices.Contains(out, x.Filter) {
			out = append(out, x.Filter)
		}
	}
	return out
}

// sameHolder reports whether who comes back is who held the session: a token that states
// all topics that policy gives, or any that may resume where the session began with a narrowed
// one. To another nothing is told of losses, and nothing counts as told. mu is held.
func (l *lasting) sameHolder(a *session.Authority) bool {
	switch {
	case !l.narrow && l.dropped == 0 && !slices.ContainsFunc(l.lost, func(x shelf.Lost) bool { return !x.Told }):
		return true // there is nothing to tell
	case a.WholeTopics():
		l.narrow = false
		return true
	}
	return l.narrow
}

// says notes a report that goes out; after is as in [report]. mu is held.
func (c *conn) says(r report, after int64) {
	if len(r.lost) > 0 || r.dropped > 0 {
		r.after = after
		c.reports = append(c.reports, r)
	}
}

// unsay is for a CONNACK that went without the report.
func (c *conn) unsay() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.reports = nil
}

// hasRead is told that the client acknowledged the message with that number. mu is held.
func (c *conn) hasRead(seq int64) {
	rest := c.reports[:0]
	for _, r := range c.reports {
		if r.after > seq {
			rest = append(rest, r)
			continue
		}
		c.told(r)
	}
	if c.reports = rest; len(rest) == 0 {
		c.reports = nil
	}
}

// pinged is told of PINGREQ: where nothing waits to be written, all was written before.
func (c *conn) pinged() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if len(c.reports) > 0 && c.session.conn == c && c.out.ready && !c.out.writing && len(c.out.control) == 0 {
		for _, r := range c.reports {
			c.told(r)
		}
		c.reports = nil
	}
}

// told notes that the client knows what is in a report. mu is held.
func (c *conn) told(r report) {
	l := c.session.lasting
	if l == nil {
		return
	}
	for i := range l.lost {
		x := &l.lost[i]
		if slices.ContainsFunc(r.lost, func(y shelf.Lost) bool { return y.Filter == x.Filter && y.Seq == x.Seq }) {
			x.Told = true
		}
	}
	l.dropped = max(0, l.dropped-r.dropped)
	c.session.touch()
}
