package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// lossReport is the report of lost subscriptions and dropped messages over one connection, in CONNACK or in
// $watchword/auth. It counts as read once the client acknowledges a message that was sent after it, or sends PINGREQ after
// all of it was written. Until then the next CONNACK repeats it.
type lossReport struct {
	lost           []mqttstore.LostFilter
	dropped        int64
	confirmedBySeq int64 // acknowledging a message with this or a higher number confirms it
}

// losses is what a persistent session lost while its client could not be notified.
type losses struct {
	lost     []mqttstore.LostFilter // subscriptions
	dropped  int64                  // messages dropped for lack of room
	narrowed bool                   // the session began with a narrowed token, and no full one was used since
}

// add records a lost subscription that was not reported to its client. Its messages have numbers up to seq.
func (l *losses) add(filter string, seq int64) {
	for i := range l.lost {
		if x := &l.lost[i]; x.Filter == filter && !x.Reported { // one report is enough, with the last seq
			x.Seq = max(x.Seq, seq)
			return
		}
	}
	l.lost = append(l.lost, mqttstore.LostFilter{Filter: filter, Seq: seq})
}

// affects reports whether a message of the backlog may have come by a subscription that was lost since.
func (l *losses) affects(topic string, seq int64) bool {
	return slices.ContainsFunc(l.lost, func(x mqttstore.LostFilter) bool { return seq <= x.Seq && policy.Match(x.Filter, topic) })
}

// unreported returns the lost subscriptions that were not reported to the client. If the client has subscribed to the same
// filter again, the loss counts as reported.
func (l *losses) unreported(subscribed func(filter string) bool) (lost []mqttstore.LostFilter) {
	for i := range l.lost {
		x := &l.lost[i]
		if x.Reported {
			continue
		}
		if x.Reported = subscribed(x.Filter); !x.Reported {
			lost = append(lost, *x)
		}
	}
	return lost
}

// pruneReported removes the lost subscriptions that were reported to the client and of which no message from seq on can
// exist, and returns the others.
func (l *losses) pruneReported(seq int64) []mqttstore.LostFilter {
	l.lost = slices.DeleteFunc(l.lost, func(x mqttstore.LostFilter) bool { return x.Reported && x.Seq < seq })
	return slices.Clone(l.lost)
}

// markReported notes that the client knows what is in a report.
func (l *losses) markReported(r lossReport) {
	for i := range l.lost {
		x := &l.lost[i]
		if slices.ContainsFunc(r.lost, func(y mqttstore.LostFilter) bool { return y.Filter == x.Filter && y.Seq == x.Seq }) {
			x.Reported = true
		}
	}
	l.dropped = max(0, l.dropped-r.dropped)
}

// mayReportTo reports whether a client with that authority is the holder of the session: its token states all topics that
// policy gives, or it may resume a session that began with a narrowed token. To another one no losses are reported, and
// none counts as reported.
func (l *losses) mayReportTo(a *session.Authority) bool {
	switch {
	case !l.narrowed && l.dropped == 0 && !slices.ContainsFunc(l.lost, func(x mqttstore.LostFilter) bool { return !x.Reported }):
		return true // there is nothing to report
	case a.CoversPolicyTopics():
		l.narrowed = false
		return true
	}
	return l.narrowed
}

// unreportedLosses is [losses.unreported] of the session. mu is held.
func (st *sessionState) unreportedLosses() []mqttstore.LostFilter {
	return st.persistent.losses.unreported(st.isSubscribed)
}

func (st *sessionState) isSubscribed(filter string) bool {
	for _, s := range st.subs {
		if s.Filter == filter {
			return true
		}
	}
	return false
}

// lostFilters returns the distinct filters of losses.
func lostFilters(lost []mqttstore.LostFilter) (out []string) {
	for _, x := range lost {
		if !slices.Contains(out, x.Filter) {
			out = append(out, x.Filter)
		}
	}
	return out
}

// addReport records a report that is being sent; after is as in [lossReport]. mu is held.
func (c *conn) addReport(r lossReport, after int64) {
	if len(r.lost) > 0 || r.dropped > 0 {
		r.confirmedBySeq = after
		c.pendingReports = append(c.pendingReports, r)
	}
}

// withdrawConnackReport withdraws the report of a CONNACK that was sent without it.
func (c *conn) withdrawConnackReport() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.pendingReports = nil
}

// confirmReports is called when the client acknowledges the message with that number. mu is held.
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

// markReportedByPing notes that the client has read all reports, if nothing waits to be written: PINGREQ
// shows that the client is alive, and all of them were written before.
func (c *conn) markReportedByPing() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if len(c.pendingReports) > 0 && c.session.conn == c && c.out.connackSent && !c.out.writing && len(c.out.responses) == 0 {
		for _, r := range c.pendingReports {
			c.markReported(r)
		}
		c.pendingReports = nil
	}
}

// markReported is [losses.markReported] of the session. mu is held.
func (c *conn) markReported(r lossReport) {
	if p := c.session.persistent; p != nil {
		p.losses.markReported(r)
		c.session.markChanged()
	}
}
