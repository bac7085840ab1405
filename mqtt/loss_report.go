package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/mqttstore"
	"github.com/watchword-iot/watchword/session"
)

// lossReport is what a client was told of its losses over one connection, in CONNACK or in
// $watchword/auth. It counts as told once the client is known to have read it: once it
// acknowledges a message that was sent after it, or sends PINGREQ when all of it has been
// written. Until then the next CONNACK says it again.
type lossReport struct {
	lost           []mqttstore.LostFilter
	dropped        int64
	confirmedBySeq int64 // who acknowledges a message with this number or a higher one has read it
}

// addLost notes that a filter was lost, and that nobody was told. mu is held.
func (per *persistent) addLost(filter string, seq int64) {
	for i := range per.lost {
		if x := &per.lost[i]; x.Filter == filter && !x.Reported { // once is enough: it is told with the last number
			x.Seq = max(x.Seq, seq)
			return
		}
	}
	per.lost = append(per.lost, mqttstore.LostFilter{Filter: filter, Seq: seq})
}

// unreportedLosses returns the losses that the client was not told. One whose filter stands again
// needs no telling: who subscribed anew knew of it. mu is held.
func (st *sessionState) unreportedLosses() (lost []mqttstore.LostFilter) {
	per := st.persistent
	for i := range per.lost {
		x := &per.lost[i]
		if x.Reported {
			continue
		}
		if x.Reported = st.isSubscribed(x.Filter); !x.Reported {
			lost = append(lost, *x)
		}
	}
	return lost
}

func (st *sessionState) isSubscribed(filter string) bool {
	for _, s := range st.subs {
		if s.Filter == filter {
			return true
		}
	}
	return false
}

// lostFilters returns the filters of some losses, each once.
func lostFilters(lost []mqttstore.LostFilter) (out []string) {
	for _, x := range lost {
		if !slices.Contains(out, x.Filter) {
			out = append(out, x.Filter)
		}
	}
	return out
}

// mayReportTo reports whether who comes back is who held the session: a token that states
// all topics that policy gives, or any that may resume where the session began with a narrowed
// one. To another nothing is told of losses, and nothing counts as told. mu is held.
func (per *persistent) mayReportTo(a *session.Authority) bool {
	switch {
	case !per.narrowed && per.dropped == 0 && !slices.ContainsFunc(per.lost, func(x mqttstore.LostFilter) bool { return !x.Reported }):
		return true // there is nothing to tell
	case a.CoversPolicyTopics():
		per.narrowed = false
		return true
	}
	return per.narrowed
}

// addReport notes a report that goes out; after is as in [lossReport]. mu is held.
func (c *conn) addReport(r lossReport, after int64) {
	if len(r.lost) > 0 || r.dropped > 0 {
		r.confirmedBySeq = after
		c.pendingReports = append(c.pendingReports, r)
	}
}

// withdrawConnackReport is for a CONNACK that went without the report.
func (c *conn) withdrawConnackReport() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.pendingReports = nil
}

// confirmReports is told that the client acknowledged the message with that number. mu is held.
func (c *conn) confirmReports(seq int64) {
	rest := c.pendingReports[:0]
	for _, r := range c.pendingReports {
		if r.confirmedBySeq > seq {
			rest = append(rest, r)
			continue
		}
		c.markReported(r)
	}
	if c.pendingReports = rest; len(rest) == 0 {
		c.pendingReports = nil
	}
}

// handlePingreq is told of PINGREQ: where nothing waits to be written, all was written before.
func (c *conn) handlePingreq() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if len(c.pendingReports) > 0 && c.session.conn == c && c.out.connackSent && !c.out.writing && len(c.out.responses) == 0 {
		for _, r := range c.pendingReports {
			c.markReported(r)
		}
		c.pendingReports = nil
	}
}

// markReported notes that the client knows what is in a report. mu is held.
func (c *conn) markReported(r lossReport) {
	per := c.session.persistent
	if per == nil {
		return
	}
	for i := range per.lost {
		x := &per.lost[i]
		if slices.ContainsFunc(r.lost, func(y mqttstore.LostFilter) bool { return y.Filter == x.Filter && y.Seq == x.Seq }) {
			x.Reported = true
		}
	}
	per.dropped = max(0, per.dropped-r.dropped)
	c.session.markChanged()
}
