package mqtt

import (
	"context"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqttstore"
)

// Store is the persistent storage of the engine.
type Store interface {
	Sessions(ctx context.Context, session func(mqttstore.Session) error, message func(mqttstore.Message) error) error
	RetainedMessages(ctx context.Context, message func(mqttstore.Retained) error) error
	Messages(ctx context.Context, ids []int64) ([]mqttstore.Message, error)
	// Wills calls will with each stored will, in any order, and stops at its error.
	Wills(ctx context.Context, will func(mqttstore.Will) error) error
	WriteMQTT(ctx context.Context, c mqttstore.Changes) error
}

// States of a commit.
const (
	commitOpen = iota
	commitWritten
	commitFailed
)

// commit is what one transaction writes.
type commit struct {
	state atomic.Int32
	ended chan struct{}

	// Protected by committer.mu until it is taken for writing; empty after its end.
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
	return watchword.Refuse(watchword.Unavailable, "the message cannot be stored for offline sessions now")
}

// Commit has the message written for the sessions that wait for it, and releases the publisher's reference; see
// [bus.Stored].
func (k *storedMessage) Commit() bus.Commit {
	at := k.committer.add(change{message: k})
	k.committer.release(k)
	return at // sessions wait for messages only where there is a store
}

// storedIn returns the copy of a publication for the sessions of this server; nil if none stores it.
func storedIn(o *bus.Result) *storedMessage {
	for _, s := range o.Stored {
		if k, ok := s.(*storedMessage); ok {
			return k
		}
	}
	return nil
}

func newCommit() *commit { return &commit{ended: make(chan struct{})} }

// written reports whether the commit is durable.
func (c *commit) written() bool { return c.state.Load() == commitWritten }

func (c *commit) empty() bool {
	return len(c.messages)+len(c.deletedMessages)+len(c.clients)+len(c.deletedSessions)+len(c.retained)+len(c.wills)+len(c.waiters) == 0
}

// storedMessage is a message that is stored for sessions.
type storedMessage struct { // in this order it takes 96 bytes
	committer       *committer
	id              int64
	size            int
	body            atomic.Pointer[message]
	receivers       []byte          // until it is written
	wakeWhenWritten []*sessionState // protected by committer.mu: sessions to be woken when it is written
	refs            atomic.Int32    // sessions that wait, and the publisher
	durable         atomic.Bool
	failed          atomic.Bool
	collected       bool // protected by committer.mu: it is written, or will be
	counted         bool // protected by committer.mu: included in the totals
}

// change is what one operation adds to the open commit.
type change struct {
	message        *storedMessage
	client         *sessionState // its mu is held
	deletedSession int64         // id of a session
	retained       *retainedKey
	will           *will
}

func (c *commit) addWill(w *will) {
	if c.wills == nil {
		c.wills = map[*will]struct{}{}
	}
	c.wills[w] = struct{}{}
}

// addRetained adds the retained message of a topic. It returns false if it is added already.
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
