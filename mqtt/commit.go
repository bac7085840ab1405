package mqtt

import (
	"context"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
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

// change is what one act adds to the commit that is collected.
type change struct {
	message        *storedMessage
	client         *sessionState // its mu is held
	deletedSession int64         // a session
	retained       *retainedKey
	will           *will
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
