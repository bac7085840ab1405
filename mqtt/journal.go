package mqtt

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/shelf"
)

// Store keeps what must survive this process. It is a cellar.
type Store interface {
	Shelf(ctx context.Context, session func(shelf.Session) error, message func(shelf.Message) error) error
	Retained(ctx context.Context, message func(shelf.Retained) error) error
	ShelfMessages(ctx context.Context, ids []int64) ([]shelf.Message, error)
	// Wills calls will with each will that is stored, in no order, and ends with its error.
	Wills(ctx context.Context, will func(shelf.Will) error) error
	KeepOnShelf(ctx context.Context, c shelf.Changes) error
}

// journal writes what must survive: what many do at once goes to the disk at once.
// Messages are written or refused; what clients and topics are is written until it is
// on the disk, since it is what it is.
type journal struct {
	store  Store // nil: nothing survives
	log    *slog.Logger
	retain *retainQuota

	mu    lockrank.Mutex[journalLock]
	open  *commit // what is collected
	wake  chan struct{}
	next  int64                 // the id of the next message
	sick  atomic.Pointer[error] // why nothing can be written at this moment
	count atomic.Int64          // messages on the shelf
	bytes atomic.Int64
}

// The states of a commit.
const (
	commitOpen = iota
	commitWritten
	commitFailed
)

// commit is what is written in one transaction.
type commit struct {
	state atomic.Int32
	ended chan struct{}

	// Under journal.mu until it is taken to be written; nothing once it has ended.
	messages []*kept
	done     []int64
	clients  []*sessionState
	dropped  []int64
	retained map[retainKey]struct{}
	wills    map[*will]struct{}
	waiters  []*conn
}

// Done and Err are those of [bus.Commit].
func (c *commit) Done() <-chan struct{} { return c.ended }

// Err returns why it is not on the disk. Code: unavailable.
func (c *commit) Err() error {
	if c.over() {
		return nil
	}
	return watchword.Refuse(watchword.Unavailable, "this cannot be kept at the moment for those who are away")
}

// Commit has the message written for those who wait for it, and gives up the publisher's reference; see [bus.Stored].
func (k *kept) Commit() bus.Commit {
	at := k.journal.add(adding{message: k})
	k.journal.release(k)
	return at // sessions wait for messages only where there is a store
}

func newCommit() *commit { return &commit{ended: make(chan struct{})} }

// over reports whether it is on the disk.
func (c *commit) over() bool { return c.state.Load() == commitWritten }

func (c *commit) empty() bool {
	return len(c.messages)+len(c.done)+len(c.clients)+len(c.dropped)+len(c.retained)+len(c.wills)+len(c.waiters) == 0
}

// kept is a message that sessions wait for.
type kept struct { // in this order it takes 96 bytes
	journal   *journal
	id        int64
	size      int
	body      atomic.Pointer[message]
	receivers []byte          // until it is written
	eager     []*sessionState // under journal.mu: who may have it only when it is written
	refs      atomic.Int32    // sessions that wait, and who publishes it
	durable   atomic.Bool
	failed    atomic.Bool
	included  bool // under journal.mu: it is on the disk, or about to be
	counted   bool // under journal.mu: in count and bytes
}

func newJournal(o *Options, store Store, q *retainQuota) *journal {
	return &journal{store: store, log: o.Log, retain: q, open: newCommit(), wake: make(chan struct{}, 1), next: 1}
}

// adding is what one act adds to the commit that is collected.
type adding struct {
	message  *kept
	client   *sessionState // its mu is held
	drop     int64         // a session
	retained *retainKey
	will     *will
}

// add returns the commit with which all of it will be written, nil where nothing
// survives.
func (j *journal) add(a adding) *commit {
	if j.store == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.open
	if a.message != nil {
		c.messages = append(c.messages, a.message)
	}
	if a.client != nil && a.client.lasting.dirty != c {
		a.client.lasting.dirty = c
		c.clients = append(c.clients, a.client)
	}
	if a.drop != 0 {
		c.dropped = append(c.dropped, a.drop)
	}
	if a.retained != nil {
		if k := *a.retained; c.retains(k) {
			j.retain.bytes.Add(k.account(), k.bytes())
		}
	}
	if a.will != nil {
		c.write(a.will)
	}
	j.nudge()
	return c
}

func (j *journal) nudge() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// keep makes the record of a message that the first session waits for. The caller
// holds one reference more than there are sessions, until it has been added.
func (j *journal) keep(m *message) *kept {
	k := &kept{journal: j, size: m.size()}
	k.body.Store(m)
	k.refs.Store(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	k.id = j.next
	j.next++
	// It counts from here on: a disk that is slow does not make room.
	k.counted = true
	j.count.Add(1)
	j.bytes.Add(int64(k.size))
	return k
}

// release gives up one reference.
func (j *journal) release(k *kept) {
	if k.refs.Add(-1) > 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.forget(k)
	if k.included && !k.failed.Load() {
		j.open.done = append(j.open.done, k.id)
		j.nudge()
	}
}

// forget takes k out of what is counted, once; mu is held.
func (j *journal) forget(k *kept) {
	if k.counted {
		k.counted = false
		j.count.Add(-1)
		j.bytes.Add(-int64(k.size))
	}
}

// whenWritten wakes a client that may have k only then: with QoS 2.
func (j *journal) whenWritten(k *kept, st *sessionState) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !k.durable.Load() && !k.failed.Load() {
		k.eager = append(k.eager, st)
	}
}

// wait puts c among those who hear of the end of at. It reports false where the end
// has come.
func (j *journal) wait(at *commit, c *conn) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if at.state.Load() != commitOpen {
		return false
	}
	if n := len(at.waiters); n == 0 || at.waiters[n-1] != c {
		at.waiters = append(at.waiters, c)
	}
	return true
}

// refusal says why nothing can be kept at this moment, nil where it can.
func (j *journal) refusal() error {
	if e := j.sick.Load(); e != nil {
		return *e
	}
	return nil
}

// run writes until ctx ends, and then what is left.
func (j *journal) run(ctx context.Context) {
	if j.store == nil {
		return
	}
	for {
		select {
		case <-j.wake:
		case <-ctx.Done():
			j.finish()
			return
		}
		if j.step() {
			continue
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
		}
	}
}

// finish writes what is left, and has everything that comes later fail at once.
func (j *journal) finish() {
	j.step()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open.state.Store(commitFailed)
	close(j.open.ended)
	e := error(watchword.Refuse(watchword.Unavailable, "the server is going down"))
	j.sick.Store(&e)
}

// retryAfter is how long a store that could not write is left alone.
const retryAfter = 250 * time.Millisecond

// step writes what was collected, and reports whether it could.
func (j *journal) step() bool {
	j.mu.Lock()
	c := j.open
	if c.empty() {
		j.sick.Store(nil) // the next message finds out
		j.mu.Unlock()
		return true
	}
	j.open = newCommit()
	j.mu.Unlock()
	w := writing{commit: c}
	w.build(j)
	var err error
	if !w.changes.Empty() {
		lockrank.Block()
		err = j.store.KeepOnShelf(context.Background(), w.changes) // it is not given up in the middle
	}
	var waiters []*conn
	var eager []*sessionState
	j.mu.Lock()
	if err == nil {
		j.sick.Store(nil)
		for key := range c.retained {
			j.retain.bytes.Give(key.account(), key.bytes())
		}
		waiters, eager = j.end(c, w.messages, commitWritten)
		j.mu.Unlock()
	} else {
		e := watchword.Because(err, watchword.Unavailable, "what must survive cannot be written")
		if j.sick.Swap(&e) == nil {
			j.log.Error("messages are not kept", slog.Any("err", err))
		}
		// What came meanwhile must not be heard where what came before it is not.
		behind := j.open
		j.open = newCommit()
		j.inherit(c)
		j.inherit(behind)
		for _, st := range behind.clients {
			w.clients = append(w.clients, written{st: st})
		}
		waiters, eager = j.end(c, w.messages, commitFailed)
		w2, e2 := j.end(behind, behind.messages, commitFailed)
		waiters, eager = append(waiters, w2...), append(eager, e2...)
		j.mu.Unlock()
		w.again()
		j.nudge()
	}
	for _, c := range waiters {
		c.release()
	}
	for _, st := range eager {
		st.wakeUp()
	}
	return err == nil
}

// end is the end of a commit, one way or the other, and of the messages in it. It returns
// who is to hear of it. mu is held.
func (j *journal) end(c *commit, messages []*kept, state int32) (waiters []*conn, eager []*sessionState) {
	for _, k := range messages {
		if state == commitWritten {
			k.durable.Store(true)
		} else {
			k.failed.Store(true)
			j.forget(k)
		}
		k.body.Store(nil)
		k.receivers = nil
		eager = append(eager, k.eager...)
		k.eager = nil
	}
	c.state.Store(state)
	close(c.ended)
	waiters = c.waiters
	// Sessions and identifiers name a commit for longer than it takes: nothing stays with it.
	c.messages, c.done, c.clients, c.dropped, c.retained, c.wills, c.waiters = nil, nil, nil, nil, nil, nil, nil
	return waiters, eager
}

// inherit takes what is to be written all the same from a commit that failed; clients
// come by themselves. mu is held.
func (j *journal) inherit(failed *commit) {
	j.open.done = append(j.open.done, failed.done...)
	j.open.dropped = append(j.open.dropped, failed.dropped...)
	for key := range failed.retained {
		if !j.open.retains(key) {
			j.retain.bytes.Give(key.account(), key.bytes())
		}
	}
	for w := range failed.wills {
		j.open.write(w)
	}
}

func (c *commit) write(w *will) {
	if c.wills == nil {
		c.wills = map[*will]struct{}{}
	}
	c.wills[w] = struct{}{}
}

// retains has the retained message of a topic written. It reports false where it is to be
// already.
func (c *commit) retains(key retainKey) bool {
	if _, known := c.retained[key]; known {
		return false
	}
	if c.retained == nil {
		c.retained = map[retainKey]struct{}{}
	}
	c.retained[key] = struct{}{}
	return true
}

// writing is a commit on its way to the disk.
type writing struct {
	commit   *commit
	changes  shelf.Changes
	messages []*kept
	clients  []written
}

// written is what of a client is written, so that it can be written again.
type written struct {
	st      *sessionState
	row     bool
	changed map[string]struct{}
}

// build turns what was collected into what is written. What is over by now is left out.
func (w *writing) build(j *journal) {
	c := w.commit
	for _, st := range c.clients {
		w.client(st)
	}
	w.changes.Dropped, w.changes.Done = c.dropped, c.done
	for key := range c.retained {
		w.changes.Retained = append(w.changes.Retained, key.world.retained.row(key))
	}
	for x := range c.wills {
		w.changes.Wills = append(w.changes.Wills, x.row())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range c.messages {
		if k.refs.Load() == 0 {
			k.body.Store(nil)
			continue
		}
		k.included = true
		m := k.body.Load()
		w.messages = append(w.messages, k)
		w.changes.Messages = append(w.changes.Messages, shelf.Message{ID: k.id, Packet: m.stored(), Expires: m.expires(), Receivers: k.receivers})
	}
}

func (w *writing) client(st *sessionState) {
	st.mu.Lock()
	defer st.mu.Unlock()
	l := st.lasting
	if st.over || l == nil {
		return
	}
	p := st.progress(w.commit)
	s := shelf.Session{ID: st.number, Progress: p.Append(nil)}
	w.clients = append(w.clients, written{st, l.row, l.changed})
	for name := range l.changed {
		f := shelf.Filter{Session: st.number, Subscription: shelf.Subscription{Filter: name}}
		sub := st.subs[name]
		if sub == nil {
			w.changes.Unsubscribed = append(w.changes.Unsubscribed, f)
			continue
		}
		f.Options, f.Identifier = sub.options(), sub.identifier
		w.changes.Subscribed = append(w.changes.Subscribed, f)
	}
	l.changed = nil
	if !l.row {
		w.changes.Progress = append(w.changes.Progress, s)
		return
	}
	l.row = false
	s.Tenant, s.Client, s.Subject, s.Incarnation = st.world.tenant, st.id, st.owner.subject, st.owner.incarnation
	s.Expiry, s.Left = l.expiry, l.left
	w.changes.Sessions = append(w.changes.Sessions, s)
}

// again has clients written another time, since they were not.
func (w *writing) again() {
	for _, x := range w.clients {
		x.st.mu.Lock()
		if l := x.st.lasting; l != nil && !x.st.over {
			l.row = l.row || x.row
			for name := range x.changed {
				l.change(name)
			}
			x.st.touch()
		}
		x.st.mu.Unlock()
	}
}

func (l *lasting) change(name string) {
	if l.changed == nil {
		l.changed = map[string]struct{}{}
	}
	l.changed[name] = struct{}{}
}
