package mqtt

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
)

// committer writes persistent state in group commits. New messages are written or refused; changes
// of sessions and retained messages are retried until they are written, since they have happened.
type committer struct {
	store Store // nil: nothing is persistent
	log   *slog.Logger

	mu             lockrank.Mutex[committerLock]
	open           *commit // the commit that changes are added to
	wake           chan struct{}
	nextMessageID  int64                 // next message id
	failure        atomic.Pointer[error] // why the store cannot write now; nil if it can
	storedMessages atomic.Int64          // stored messages
	storedBytes    atomic.Int64
}

func newCommitter(o *Options, store Store) *committer {
	return &committer{store: store, log: o.Log, open: newCommit(), wake: make(chan struct{}, 1), nextMessageID: 1}
}

// add returns the commit that will write the change; nil if nothing is persistent.
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
			k.tenant.bus.ChargePendingWrite(k.subject, k.topic, false)
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

// newStored makes the record of a message for its first session. The caller holds one extra
// reference until the change is added.
func (j *committer) newStored(m *message) *storedMessage {
	k := &storedMessage{committer: j, size: m.size()}
	k.body.Store(m)
	k.refs.Store(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	k.id = j.nextMessageID
	j.nextMessageID++
	// It counts from here on: a slow disk must not lift the limit.
	k.counted = true
	j.storedMessages.Add(1)
	j.storedBytes.Add(int64(k.size))
	return k
}

// release drops one reference.
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

// uncount removes k from the totals, once; mu is held.
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

// wait registers c to be woken at the end of the commit. It returns false if the commit has ended.
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

// unavailable returns why nothing can be stored now; nil if it can.
func (j *committer) unavailable() error {
	if e := j.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// run writes commits until ctx ends, and then what is left.
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

// finish writes what is left; later changes fail at once.
func (j *committer) finish() {
	j.writeOnce()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open.state.Store(commitFailed)
	close(j.open.ended)
	e := error(watchword.Refuse(watchword.Unavailable, "the server is shutting down"))
	j.failure.Store(&e)
}

// commitRetryDelay is the pause after a failed write.
const commitRetryDelay = 250 * time.Millisecond

// writeOnce writes the open commit and reports whether it succeeded.
func (j *committer) writeOnce() bool {
	j.mu.Lock()
	c := j.open
	if c.empty() {
		j.failure.Store(nil) // the next message detects it
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
		err = j.store.WriteMQTT(context.Background(), w.changes) // a write in progress is not interrupted
	}
	var waiters []*conn
	var eager []*sessionState
	j.mu.Lock()
	if err == nil {
		j.failure.Store(nil)
		for key := range c.retained {
			key.tenant.bus.ChargePendingWrite(key.subject, key.topic, true)
		}
		waiters, eager = j.end(c, w.messages, commitWritten)
		j.mu.Unlock()
	} else {
		e := watchword.Wrap(err, watchword.Unavailable, "persistent state cannot be written")
		if j.failure.Swap(&e) == nil {
			j.log.Error("messages are not kept", slog.Any("err", err))
		}
		// Later changes must not be acknowledged before this one, so they fail too.
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

// end ends a commit and its messages, successful or not. It returns the waiters to wake. mu is held.
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
	// Sessions and identifiers refer to a commit after its end, so it must hold no memory.
	c.messages, c.deletedMessages, c.clients, c.deletedSessions, c.retained, c.wills, c.waiters = nil, nil, nil, nil, nil, nil, nil
	return waiters, eager
}

// carryOver moves the changes of a failed commit that must be written to the open one; sessions are
// added separately. mu is held.
func (j *committer) carryOver(failed *commit) {
	j.open.deletedMessages = append(j.open.deletedMessages, failed.deletedMessages...)
	j.open.deletedSessions = append(j.open.deletedSessions, failed.deletedSessions...)
	for key := range failed.retained {
		if !j.open.addRetained(key) {
			key.tenant.bus.ChargePendingWrite(key.subject, key.topic, true)
		}
	}
	for w := range failed.wills {
		j.open.addWill(w)
	}
}
