package mqtt

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
)

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

func newJournal(o *Options, store Store) *committer {
	return &committer{store: store, log: o.Log, open: newCommit(), wake: make(chan struct{}, 1), nextMessageID: 1}
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

// wakeWhenWritten wakes the client of st once k is written: with QoS 2 it gets k only then.
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
