package mqtt

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/shelf"
)

// sessionState is the Session State of one client identifier (MQTT 5.0 §4.1). A connection
// refers to it as [conn.session]; with a session expiry it outlives the connection. Methods
// that say so are called with mu held.
type sessionState struct {
	broker *Broker
	world  *world // nil before CONNECT
	number int64  // no other client has it, nor ever had
	id     string // the client identifier
	owner  owner

	// receiving is held from the look whether a PUBLISH with QoS 2 was received before until it is noted as
	// received, and while an operator's end of the session is recorded: no other connection resumes the
	// session in between.
	receiving lockrank.Mutex[receivingLock]

	mu    lockrank.Mutex[sessionLock]
	conn  *conn // nil while it has none
	over  bool  // it is no more
	ended bool  // it lasted, and is over

	subs    map[string]*subscription // by their filter as the client wrote it
	will    *will                    // of its connection; one that waits for its time is in wills alone
	queue   []item                   // from head on; to be sent
	head    int
	bytes   int   // of the queue
	charged int64 // what its subject is charged for the queue; see chargeQueue
	kept    int64 // bytes of all that waits on the shelf, with what is moving to others

	keptCharged int64 // what its subject is charged for that; see chargeKept

	flights  []flight           // in the order in which they were sent; a part of ground
	ground   []flight           // see takeOff
	seq      int64              // the number of the last message with QoS 1 or 2
	received map[uint16]*commit // publishes with QoS 2 that were not released; see [sessionState.receive]
	lasting  *lasting           // nil where it ends with its connection
	load     atomic.Int32       // see weigh
	grouped  bool               // it is, or was, in a group
	shares   []*group           // that it is in
	counted  bool               // under world.mu: against the bound of its subject

	mostReceived    int // identifiers that were in received at once since it was made
	receivedCharged charged
}

// owner is whose client it is: a subject, in one of its lives.
type owner struct {
	subject     watchword.SubjectID
	incarnation int64
}

// lasting is what a client has whose state outlives a connection. All of it is under
// the client's mu.
type lasting struct {
	expiry uint32 // seconds after the end of the connection
	left   time.Time
	clock  *time.Timer      // of the end, while there is no connection
	again  *time.Timer      // of the question that nobody could answer, likewise
	hold   *session.Session // likewise
	turn   int              // counts connections and their ends
	paused bool             // its subject may have nothing at this moment

	backlog []entry // what waits and is not in the queue, in order
	loading bool    // some of it is on its way there
	weight  int     // bytes of all that waits, in backlog, queue and flights
	waiting int     // messages
	sent    int64   // the highest number that was sent
	gone    spans   // what was not sent and never will be
	lost    []shelf.Lost
	dropped int64 // found no room
	narrow  bool  // it began with a narrowed token, and nobody had a whole one since

	dirty     *commit             // in which it is written next
	unwritten bool                // when its connection came, something was not on the disk yet
	moving    []entry             // what is being handed to other members of a group
	floor     int64               // what has a number up to here is of a session that was
	row       bool                // all of it is to be written, not only how far it has come
	changed   map[string]struct{} // subscriptions to be written
}

// entry is one message that waits on the shelf.
type entry struct {
	k           *kept // nil where the receiver has the message, and is to be told PUBREL
	identifiers *[]uint32
	seq         int64
	size        uint32
	qos         byte
	retain      bool
	released    bool
	shared      *group // that it was picked from, or one of that name
}

func entryOf(it *item) entry {
	e := entry{k: it.x.k, seq: it.x.seq, size: it.x.counted, qos: it.qos, retain: it.flag&1 != 0, shared: it.x.shared}
	if it.x.identifiers != nil {
		e.identifiers = &it.x.identifiers
	}
	return e
}

// weightOf is what one message that waits counts beside its bytes.
const weightOf = 64

// away reports whether the client has no connection; called with mu held.
func (st *sessionState) away() bool { return st.conn == nil }

// room reports whether one more message of that many bytes may wait on the shelf.
func (st *sessionState) room(size int) bool {
	l, o := st.lasting, &st.broker.options
	return l.waiting < o.QueueMessages && l.weight+size+weightOf <= o.QueueBytes
}

// waits counts a message in that waits on the shelf; [sessionState.finished] counts it out. Code:
// busy where its subject has no room for it, only where it is bounded. mu is held.
func (st *sessionState) waits(size int, bounded bool) error {
	if err := st.chargeKept(size+weightOf, bounded); err != nil {
		return err
	}
	st.lasting.waiting++
	st.lasting.weight += size + weightOf
	return nil
}

// finished is called once for each message that waited on the shelf and is done, or
// never will be: size is what it counted. mu is held.
func (st *sessionState) finished(k *kept, seq int64, size int) {
	st.dischargeKept(size + weightOf)
	if l := st.lasting; l != nil {
		l.waiting--
		l.weight -= size + weightOf
		if seq > l.sent {
			l.gone.add(seq, seq)
		}
		st.touch()
	}
	if k != nil {
		st.broker.journal.release(k)
	}
}

// touch sees to it that how far the client has come is written, and returns with what.
// mu is held.
func (st *sessionState) touch() *commit {
	if st.lasting == nil {
		return nil
	}
	return st.broker.journal.add(adding{client: st})
}

// pack takes what the client's connection held back to the shelf, in order, when it
// ends. What does not wait there is lost, as it may be: QoS 0, and what the server
// says to one connection. mu is held.
func (st *sessionState) pack() {
	l := st.lasting
	var first []entry
	for _, f := range st.flights {
		if f.counts {
			first = append(first, f.entry())
		}
	}
	for i := st.head; i < len(st.queue); i++ {
		if it := &st.queue[i]; it.x != nil && it.x.k != nil {
			first = append(first, entryOf(it))
		}
	}
	l.backlog = append(first, l.backlog...)
	slices.SortStableFunc(l.backlog, func(a, b entry) int { return cmp.Compare(a.seq, b.seq) })
	st.queue, st.head, st.bytes, st.flights, st.ground = nil, 0, 0, nil, nil
	st.dischargeQueue()
	l.loading = false
	for i := range l.backlog {
		l.backlog[i].waitsForGroup(st)
	}
}

// unpack puts what its receiver has already, and is to be told PUBREL, among the
// flights of a new connection. mu is held.
func (st *sessionState) unpack() {
	l := st.lasting
	rest := l.backlog[:0]
	for _, e := range l.backlog {
		if e.released {
			st.takeOff(flight{seq: e.seq, qos: 2, released: true, size: e.size, counts: true})
			continue
		}
		rest = append(rest, e)
	}
	clear(l.backlog[len(rest):])
	l.backlog = rest
}

// progress is how far the client has come, for the commit c. mu is held.
func (st *sessionState) progress(c *commit) shelf.Progress {
	l := st.lasting
	p := shelf.Progress{Next: st.seq, Sent: l.sent, Dropped: l.dropped, Narrow: l.narrow}
	first := st.seq + 1 // the lowest that is not done
	for _, f := range st.flights {
		if f.counts {
			p.Open = append(p.Open, shelf.Open{Seq: f.seq, Released: f.released})
			first = min(first, f.seq)
		}
	}
	open := func(seq int64, released bool) {
		if first = min(first, seq); seq <= l.sent { // what was not sent yet is open by itself
			p.Open = append(p.Open, shelf.Open{Seq: seq, Released: released})
		}
	}
	for _, e := range l.backlog {
		open(e.seq, e.released)
	}
	for _, e := range l.moving {
		if e.seq > l.floor {
			open(e.seq, e.released)
		}
	}
	for i := st.head; i < len(st.queue); i++ {
		if it := &st.queue[i]; it.x != nil && it.x.k != nil {
			open(it.x.seq, false)
		}
	}
	l.gone.after(l.sent)
	p.Gone = slices.Clone(l.gone)
	l.lost = slices.DeleteFunc(l.lost, func(x shelf.Lost) bool { return x.Told && x.Seq < first })
	p.Lost = slices.Clone(l.lost)
	for id, at := range st.received {
		if at != nil && at.over() {
			st.received[id] = nil // nobody needs it any more
		}
		if at == nil || at == c || at.over() {
			p.Received = append(p.Received, id)
		}
	}
	return p
}

// lose takes away the subscriptions that a does not allow, and what waits by them. It
// returns which. mu is held.
func (st *sessionState) lose(a *session.Authority) (lost []string, orphans []orphan) {
	for name, s := range st.subs {
		if a.Subscribe(name).Allowed {
			continue
		}
		lost = append(lost, name)
		st.unsubscribeOne(s)
		if s.memberOf != nil {
			orphans = append(orphans, st.orphans(s)...)
		}
		if l := st.lasting; l != nil {
			l.lose(s.Filter, st.seq)
			st.touch()
		}
	}
	if len(lost) > 0 {
		st.drop(func(it *item) bool {
			return it.sub != nil && it.sub.dead && !st.wanted(it) || it.sub == nil && st.lostTo(it.m.topic, it.number()) && !st.wanted(it)
		})
	}
	if st.head < len(st.queue) { // what came by a subscription that the client gave up itself
		st.drop(func(it *item) bool {
			return (it.sub == nil || it.sub.dead) && it.m.private == nil && !a.Subscribe(it.m.topic).Allowed
		})
	}
	return lost, orphans
}

// lostTo reports whether a message that waits came by what was lost since. mu is held.
func (st *sessionState) lostTo(topic string, seq int64) bool {
	return slices.ContainsFunc(st.lasting.lost, func(l shelf.Lost) bool { return seq <= l.Seq && matches(l.Filter, topic) })
}

// wanted reports whether a queued message is still under another subscription. It is
// called with mu held.
func (st *sessionState) wanted(it *item) bool {
	if it.m.command() > 0 {
		return false
	}
	for _, s := range st.subs {
		if matches(s.Filter, it.m.topic) {
			it.sub = s
			return true
		}
	}
	return false
}

// drop takes what is queued and gone away again. It is called with mu held.
func (st *sessionState) drop(gone func(*item) bool) {
	stays := st.queue[:0]
	for i := range st.queue[st.head:] {
		it := st.queue[st.head+i]
		if gone(&it) {
			st.bytes -= it.size()
			if it.x != nil && it.x.k != nil {
				st.finished(it.x.k, it.x.seq, int(it.x.counted))
			}
			if n := it.m.command(); n > 0 && st.conn != nil && st.conn.pump != nil {
				st.conn.pump.returned(n)
			}
			continue
		}
		stays = append(stays, it)
	}
	clear(st.queue[len(stays):])
	st.queue, st.head = stays, 0
	st.dischargeQueue()
}

// reset takes everything away that the client has. mu is held.
func (st *sessionState) reset() {
	st.unsubscribeAll()
	st.drop(func(*item) bool { return true })
	l := st.lasting
	for _, f := range st.flights {
		if f.counts {
			st.finished(f.k, f.seq, int(f.size))
		}
	}
	st.flights, st.ground = nil, nil
	st.unreceiveAll()
	if l == nil {
		return
	}
	for _, e := range l.backlog {
		st.finished(e.k, e.seq, int(e.size))
	}
	l.backlog, l.lost, l.gone = nil, nil, nil // what is moving goes on
	l.sent, l.floor = st.seq, st.seq
	st.touch()
}

// forget ends the state of a client that was to last. mu is held.
func (st *sessionState) forget() {
	st.reset()
	l := st.lasting
	l.stop()
	st.lasting = nil
	st.broker.lasting.Add(-1)
	st.ended = true
}

// stop stops the clocks of a client without a connection.
func (l *lasting) stop() {
	if l.clock != nil {
		l.clock.Stop()
	}
	if l.again != nil {
		l.again.Stop()
	}
	l.clock, l.again = nil, nil
}
