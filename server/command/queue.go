package command

import (
	"bytes"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
)

// MaxQueued is how many commands of one device may be unfinished (in no final state).
const MaxQueued = 1000

// Bounds is how many commands may be unfinished, beside [MaxQueued] of each device. 0 means no bound.
type Bounds struct {
	PerOrderer int64 // of one subject that ordered them, for whatever devices
	Total      int64 // of all subjects together
}

// Queue is what a transaction knows of a device to which a command is added.
type Queue struct {
	// Device is the device: its ID, Kind, State and Incarnation alone.
	Device watchword.Subject
	Seq    int64 // the number of the command that is added
	// The commands that are unfinished: of the device, of the subject that orders, of all subjects.
	OfDevice, OfOrderer, Total int64
}

// Add returns r as it enters the queue, with its number and the device's incarnation. A device that is new or suspended takes
// commands; a revoked one does not. Codes: subject_revoked; busy, with the bound that was met in Detail.
func (q Queue) Add(r Row, b Bounds) (Row, error) {
	switch {
	case q.Device.State == watchword.Revoked:
		return r, q.Device.CheckActive()
	case q.OfDevice >= MaxQueued:
		return r, watchword.Refuse(watchword.Busy, "%q has %d queued commands, which is the limit of one device", r.Device, q.OfDevice)
	case b.PerOrderer > 0 && q.OfOrderer >= b.PerOrderer:
		return r, watchword.Refuse(watchword.Busy, "unfinished commands: 1 more would exceed the limit of %d for one ordering subject (limits.subject_commands)", b.PerOrderer)
	case b.Total > 0 && q.Total >= b.Total:
		return r, watchword.Refuse(watchword.Busy, "unfinished commands: 1 more would exceed the limit of %d for all subjects together (limits.commands)", b.Total)
	}
	r.Seq, r.Incarnation, r.State = q.Seq, q.Device.Incarnation, watchword.Queued
	return r, nil
}

// Idempotency is what a caller sends so that a repeated request acts once.
type Idempotency struct {
	Caller watchword.SubjectID
	Key    string   // at most 128 bytes; empty means none was sent
	Hash   [32]byte // of the request: the same key with another request is a conflict
}

// idempotencyLife is how long a repeated request is known: longer than a command lives.
const idempotencyLife = 48 * time.Hour

// Until returns how long a key that was sent at that time is remembered.
func (i Idempotency) Until(sent time.Time) time.Time { return sent.Add(idempotencyLife) }

// Repeats refuses a request whose key came with a request of another hash before. Code: conflict.
func (i Idempotency) Repeats(hash []byte) error {
	if bytes.Equal(hash, i.Hash[:]) {
		return nil
	}
	return watchword.Refuse(watchword.Conflict, "Idempotency-Key was used before with another request: use a new one")
}

// Acknowledgement is what a device says that it holds, all in one epoch.
type Acknowledgement struct {
	Epoch int64   // of the commands' numbers
	UpTo  int64   // every command up to this number; 0 for none
	Each  []int64 // and each of these numbers
}

// has reports whether a names r.
func (a Acknowledgement) has(r Row) bool {
	return r.Epoch == a.Epoch && (r.Seq <= a.UpTo || slices.Contains(a.Each, r.Seq))
}
