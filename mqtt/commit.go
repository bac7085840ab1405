package mqtt

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqttstore"
)

// Store keeps what must survive this process. It is a cellar.
type Store interface {
	Sessions(ctx context.Context, session func(mqttstore.Session) error, message func(mqttstore.Message) error) error
	RetainedMessages(ctx context.Context, message func(mqttstore.Retained) error) error
	Messages(ctx context.Context, ids []int64) ([]mqttstore.Message, error)
	// Wills calls will with each will that is stored, in no order, and ends with its error.
	Wills(ctx context.Context, will func(mqttstore.Will) error) error
	WriteMQTT(ctx context.Context, c mqttstore.Changes) error
}

// committer writes what must survive: what many do at once goes to the disk at once.
// Messages are written or refused; what clients and topics are is written until it is
// on the disk, since it is what it is.
type committer struct {
	store Store // nil: nothing survives
	log   *slog.Logger

	mu             lockrank.Mutex[journalLock]
	open           *commit // what is collected
	wake           chan struct{}
	nextMessageID  int64                 // the id of the next message
	failure        atomic.Pointer[error] // why nothing can be written at this moment
	storedMessages atomic.Int64          // messages on the shelf
	storedBytes    atomic.Int64
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
	messages        []*storedMessage
	deletedMessages []int64
	clients         []*sessionState
	deletedSessions []int64
	retained        map[retainedKey]struct{}
	wills           map[*will]struct{}
	waiters         []*conn
}

// Done and Err are those of [bus.Commit].
func (c *commit) Done() <-chan struct{} { return c.ended }

// Err returns why it is not on the disk. Code: unavailable.
func (c *commit) Err() error {
	if c.written() {
		return nil
	}
	return watchword.Refuse(watchword.Unavailable, "this cannot be kept at the moment for those who are away")
}

// Commit has the message written for those who wait for it, and gives up the publisher's reference; see [bus.Stored].
func (k *storedMessage) Commit() bus.Commit {
	at := k.journal.add(change{message: k})
	k.journal.release(k)
	return at // sessions wait for messages only where there is a store
}

func newCommit() *commit { return &commit{ended: make(chan struct{})} }

// written reports whether it is on the disk.
func (c *commit) written() bool { return c.state.Load() == commitWritten }

func (c *commit) empty() bool {
	return len(c.messages)+len(c.deletedMessages)+len(c.clients)+len(c.deletedSessions)+len(c.retained)+len(c.wills)+len(c.waiters) == 0
}

// storedMessage is a message that sessions wait for.
type storedMessage struct { // in this order it takes 96 bytes
	journal         *committer
	id              int64
	size            int
	body            atomic.Pointer[message]
	receivers       []byte          // until it is written
	wakeWhenWritten []*sessionState // under journal.mu: who may have it only when it is written
	refs            atomic.Int32    // sessions that wait, and who publishes it
	durable         atomic.Bool
	failed          atomic.Bool
	collected       bool // under journal.mu: it is on the disk, or about to be
	counted         bool // under journal.mu: in count and bytes
}

func newJournal(o *Options, store Store) *committer {
	return &committer{store: store, log: o.Log, open: newCommit(), wake: make(chan struct{}, 1), nextMessageID: 1}
}

// change is what one act adds to the commit that is collected.
type change struct {
	message        *storedMessage
	client         *sessionState // its mu is held
	deletedSession int64         // a session
	retained       *retainedKey
	will           *will
}

// add returns the commit with which all of it will be written, nil where nothing
// survives.
func (j *committer) add(a change) *commit {
	if j.store == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.open
	if a.message != nil {
		c.messages = append(c.messages, a.message)
	}
	if a.client != nil && a.client.persistent.rowChanged.joins(c) {
		c.clients = append(c.clients, a.client)
	}
	if a.deletedSession != 0 {
		c.deletedSessions = append(c.deletedSessions, a.deletedSession)
	}
	if a.retained != nil {
		if k := *a.retained; c.addRetained(k) {
			k.tenant.bus.ToBeWritten(k.subject, k.topic, false)
		}
	}
	if a.will != nil {
		c.addWill(a.will)
	}
	j.wakeUp()
	return c
}

func (j *committer) wakeUp() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// newStored makes the record of a message that the first session waits for. The caller
// holds one reference more than there are sessions, until it has been added.
func (j *committer) newStored(m *message) *storedMessage {
	k := &storedMessage{journal: j, size: m.size()}
	k.body.Store(m)
	k.refs.Store(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	k.id = j.nextMessageID
	j.nextMessageID++
	// It counts from here on: a disk that is slow does not make room.
	k.counted = true
	j.storedMessages.Add(1)
	j.storedBytes.Add(int64(k.size))
	return k
}

// release gives up one reference.
func (j *committer) release(k *storedMessage) {
	if k.refs.Add(-1) > 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.uncount(k)
	if k.collected && !k.failed.Load() {
		j.open.deletedMessages = append(j.open.deletedMessages, k.id)
		j.wakeUp()
	}
}

// uncount takes k out of what is counted, once; mu is held.
func (j *committer) uncount(k *storedMessage) {
	if k.counted {
		k.counted = false
		j.storedMessages.Add(-1)
		j.storedBytes.Add(-int64(k.size))
	}
}

// whenWritten wakes a client that may have k only then: with QoS 2.
func (j *committer) wakeWhenWritten(k *storedMessage, st *sessionState) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !k.durable.Load() && !k.failed.Load() {
		k.wakeWhenWritten = append(k.wakeWhenWritten, st)
	}
}

// wait puts c among those who hear of the end of at. It reports false where the end
// has come.
func (j *committer) wait(at *commit, c *conn) bool {
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

// unavailable says why nothing can be kept at this moment, nil where it can.
func (j *committer) unavailable() error {
	if e := j.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// run writes until ctx ends, and then what is left.
func (j *committer) run(ctx context.Context) {
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
		if j.writeOnce() {
			continue
		}
		select {
		case <-time.After(commitRetryDelay):
		case <-ctx.Done():
		}
	}
}

// finish writes what is left, and has everything that comes later fail at once.
func (j *committer) finish() {
	j.writeOnce()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open.state.Store(commitFailed)
	close(j.open.ended)
	e := error(watchword.Refuse(watchword.Unavailable, "the server is going down"))
	j.failure.Store(&e)
}

// commitRetryDelay is how long a store that could not write is left alone.
const commitRetryDelay = 250 * time.Millisecond

// writeOnce writes what was collected, and reports whether it could.
func (j *committer) writeOnce() bool {
	j.mu.Lock()
	c := j.open
	if c.empty() {
		j.failure.Store(nil) // the next message finds out
		j.mu.Unlock()
		return true
	}
	j.open = newCommit()
	j.mu.Unlock()
	w := transaction{commit: c}
	w.build(j)
	var err error
	if !w.changes.Empty() {
		lockrank.Block()
		err = j.store.WriteMQTT(context.Background(), w.changes) // it is not given up in the middle
	}
	var waiters []*conn
	var eager []*sessionState
	j.mu.Lock()
	if err == nil {
		j.failure.Store(nil)
		for key := range c.retained {
			key.tenant.bus.ToBeWritten(key.subject, key.topic, true)
		}
		waiters, eager = j.end(c, w.messages, commitWritten)
		j.mu.Unlock()
	} else {
		e := watchword.Wrap(err, watchword.Unavailable, "what must survive cannot be written")
		if j.failure.Swap(&e) == nil {
			j.log.Error("messages are not kept", slog.Any("err", err))
		}
		// What came meanwhile must not be heard where what came before it is not.
		behind := j.open
		j.open = newCommit()
		j.carryOver(c)
		j.carryOver(behind)
		for _, st := range behind.clients {
			w.clients = append(w.clients, clientRow{st: st})
		}
		waiters, eager = j.end(c, w.messages, commitFailed)
		w2, e2 := j.end(behind, behind.messages, commitFailed)
		waiters, eager = append(waiters, w2...), append(eager, e2...)
		j.mu.Unlock()
		w.markChangedAgain()
		j.wakeUp()
	}
	for _, c := range waiters {
		c.releaseResponses()
	}
	for _, st := range eager {
		st.wakeWriter()
	}
	return err == nil
}

// end is the end of a commit, one way or the other, and of the messages in it. It returns
// who is to hear of it. mu is held.
func (j *committer) end(c *commit, messages []*storedMessage, state int32) (waiters []*conn, eager []*sessionState) {
	for _, k := range messages {
		if state == commitWritten {
			k.durable.Store(true)
		} else {
			k.failed.Store(true)
			j.uncount(k)
		}
		k.body.Store(nil)
		k.receivers = nil
		eager = append(eager, k.wakeWhenWritten...)
		k.wakeWhenWritten = nil
	}
	c.state.Store(state)
	close(c.ended)
	waiters = c.waiters
	// Sessions and identifiers name a commit for longer than it takes: nothing stays with it.
	c.messages, c.deletedMessages, c.clients, c.deletedSessions, c.retained, c.wills, c.waiters = nil, nil, nil, nil, nil, nil, nil
	return waiters, eager
}

// carryOver takes what is to be written all the same from a commit that failed; clients
// come by themselves. mu is held.
func (j *committer) carryOver(failed *commit) {
	j.open.deletedMessages = append(j.open.deletedMessages, failed.deletedMessages...)
	j.open.deletedSessions = append(j.open.deletedSessions, failed.deletedSessions...)
	for key := range failed.retained {
		if !j.open.addRetained(key) {
			key.tenant.bus.ToBeWritten(key.subject, key.topic, true)
		}
	}
	for w := range failed.wills {
		j.open.addWill(w)
	}
}

func (c *commit) addWill(w *will) {
	if c.wills == nil {
		c.wills = map[*will]struct{}{}
	}
	c.wills[w] = struct{}{}
}

// addRetained has the retained message of a topic written. It reports false where it is to be
// already.
func (c *commit) addRetained(key retainedKey) bool {
	if _, known := c.retained[key]; known {
		return false
	}
	if c.retained == nil {
		c.retained = map[retainedKey]struct{}{}
	}
	c.retained[key] = struct{}{}
	return true
}

// transaction is a commit on its way to the disk.
type transaction struct {
	commit   *commit
	changes  mqttstore.Changes
	messages []*storedMessage
	clients  []clientRow
}

// clientRow is what of a client is written, so that it can be written again.
type clientRow struct {
	st             *sessionState
	rowChanged     bool
	changedFilters map[string]struct{}
}

// build turns what was collected into what is written. What is over by now is left out.
func (w *transaction) build(j *committer) {
	c := w.commit
	for _, st := range c.clients {
		w.addClient(st)
	}
	w.changes.DeletedSessions, w.changes.DeletedMessages = c.deletedSessions, c.deletedMessages
	for key := range c.retained {
		w.changes.Retained = append(w.changes.Retained, key.row())
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
		k.collected = true
		m := k.body.Load()
		w.messages = append(w.messages, k)
		w.changes.Messages = append(w.changes.Messages, mqttstore.Message{ID: k.id, Packet: m.encodeStored(), Expires: m.expires(), Receivers: k.receivers})
	}
}

func (w *transaction) addClient(st *sessionState) {
	st.mu.Lock()
	defer st.mu.Unlock()
	per := st.persistent
	if st.removed || per == nil {
		return
	}
	p := st.progress(w.commit)
	s := mqttstore.Session{ID: st.number, Progress: p.Append(nil)}
	all, filters := per.rowChanged.take()
	w.clients = append(w.clients, clientRow{st, all, filters})
	for name := range filters {
		f := mqttstore.SessionSubscription{Session: st.number, Subscription: mqttstore.Subscription{Filter: name}}
		sub := st.subs[name]
		if sub == nil {
			w.changes.Unsubscribed = append(w.changes.Unsubscribed, f)
			continue
		}
		f.Options, f.Identifier = sub.options(), sub.identifier
		w.changes.Subscribed = append(w.changes.Subscribed, f)
	}
	if !all {
		w.changes.Progress = append(w.changes.Progress, s)
		return
	}
	s.Tenant, s.Client, s.Subject, s.Incarnation = st.tenant.id, st.id, st.owner.subject, st.owner.incarnation
	s.Expiry, s.DisconnectedAt = per.expiry, per.offline.since
	w.changes.Sessions = append(w.changes.Sessions, s)
}

// markChangedAgain has clients written another time, since they were not.
func (w *transaction) markChangedAgain() {
	for _, x := range w.clients {
		x.st.mu.Lock()
		if per := x.st.persistent; per != nil && !x.st.removed {
			per.rowChanged.restore(x.rowChanged, x.changedFilters)
			x.st.markChanged()
		}
		x.st.mu.Unlock()
	}
}
