package command

import (
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// The functions of this file and of queue.go decide what becomes of a command. They read and write nothing: a store calls
// them between loading and writing, in one transaction. Each returns the command as it is to be written; the command that it
// got does not change.

// Unfinished lists the states that are not final.
var Unfinished = []watchword.CommandState{watchword.Queued, watchword.Sent, watchword.Delivered, watchword.Accepted}

// Snapshot is a command and its device as one transaction sees them, beside one version of the command (a [Handover]).
type Snapshot struct {
	Row
	// Target is the device: its ID, Kind, State and Incarnation alone.
	Target       watchword.Subject
	Versions     int64 // how many versions were handed over
	VersionKnown bool  // the version that is asked for is one of them
	LoggedSeq    int64 // number of the log's entry of that version; 0 where it is not known
}

// HandOver decides whether the version h may be sent to the device. isNew says that h is to be stored, with its entry.
// Codes: conflict, busy (MaxHandovers), subject_new, subject_suspended, subject_revoked.
func (s Snapshot) HandOver(h Handover) (r Row, isNew bool, err error) {
	r = s.Row
	if r.State != watchword.Queued && r.State != watchword.Sent || !r.Expires.After(h.At) {
		return r, false, watchword.Refuse(watchword.Conflict, "command %q is %s", r.ID, r.State)
	}
	if err := s.Target.CheckActive(); err != nil {
		return r, false, err
	}
	if s.Target.Incarnation != r.Incarnation {
		return r, false, watchword.Refuse(watchword.Conflict, "command %q was sent to an earlier incarnation of the device", r.ID)
	}
	if !s.VersionKnown && s.Versions >= MaxHandovers {
		return r, false, watchword.Refuse(watchword.Busy, "command %q was delivered %d times, which is the limit", r.ID, s.Versions)
	}
	if r.State == watchword.Queued {
		r.State, r.SentAt = watchword.Sent, h.At
	}
	return r, !s.VersionKnown, nil
}

// Acknowledge notes that the device holds the command, where a says so: changed is false for a command that was not sent or is
// not among those of a, and where the device is not active.
func (s Snapshot) Acknowledge(a Acknowledgement, now time.Time) (r Row, changed bool) {
	r = s.Row
	if r.State != watchword.Sent || s.Target.CheckActive() != nil || !a.has(r) {
		return r, false
	}
	r.State, r.DeliveredAt = watchword.Delivered, now
	return r, true
}

// ApplyReceipt applies a receipt. The Entry of r is left to the store, which numbers the receipt's entry. changed is false where
// the same status was reported before.
//
// Codes: receipt_invalid where the receipt fits nothing that was handed over to this device in this life; conflict where
// the command's state takes no such receipt.
func (s Snapshot) ApplyReceipt(t ReceiptUpdate) (r Row, changed bool, err error) {
	r = s.Row
	if r.Device != t.Device || r.Incarnation != s.Target.Incarnation || r.Epoch != t.Epoch || r.Seq != t.Seq || !s.VersionKnown {
		return r, false, ErrReceiptMismatch
	}
	to, err := r.stateAfterReceipt(t)
	if err != nil || r.Status == t.Status {
		return r, false, err
	}
	r.State, r.Status, r.Receipt, r.ReceiptKey, r.Reason = to, t.Status, t.JWS, t.Key, nil
	if r.DeliveredAt.IsZero() {
		r.DeliveredAt = t.At // a device that answers holds the command
	}
	r.SettledAt = time.Time{}
	if to.Final() {
		r.SettledAt = t.At
	}
	return r, true, nil
}

// ErrReceiptMismatch is the refusal of a receipt that fits no command.
var ErrReceiptMismatch = watchword.Refuse(watchword.ReceiptInvalid, "seq, cid and ch of the receipt must be those of a command that was delivered to this device")

// stateAfterReceipt returns the state to which a receipt leads.
func (r Row) stateAfterReceipt(t ReceiptUpdate) (watchword.CommandState, error) {
	to, ok := t.Status.State()
	if !ok {
		return to, watchword.Refuse(watchword.ReceiptInvalid, "st of the receipt is required")
	}
	if r.Status == t.Status {
		return r.State, nil
	}
	takes := false
	switch r.State {
	case watchword.Sent, watchword.Delivered:
		takes = true
	case watchword.Accepted, watchword.Expired:
		takes = to != watchword.Accepted
	case watchword.Unknown, watchword.Undeliverable:
		takes = to != watchword.Accepted || r.Expires.After(t.At)
	}
	if !takes {
		return to, watchword.Refuse(watchword.Conflict, "command %q is %s", r.ID, r.State)
	}
	return to, nil
}

// MarkUndeliverable ends the command with u's reason. changed is false where it has ended, or the device has acknowledged it.
func (r Row) MarkUndeliverable(u UndeliverableUpdate) (_ Row, changed bool) {
	if r.State != watchword.Queued && r.State != watchword.Sent {
		return r, false
	}
	r.State, r.Reason, r.SentAt, r.SettledAt = watchword.Undeliverable, &u.Reason, u.SentAt, u.At
	return r, true
}

// Cancel takes back a queued command. Code: conflict in any other state.
func (r Row) Cancel(now time.Time) (Row, error) {
	if r.State != watchword.Queued {
		return r, watchword.Refuse(watchword.Conflict, "command %q is %s: only a queued one can be cancelled", r.ID, r.State)
	}
	r.State, r.SettledAt = watchword.Cancelled, now
	return r, nil
}

// LatestEnd returns the latest end that a command ordered by now can have. One with a later end was ordered while the clock was
// ahead, and cannot be signed.
func LatestEnd(now time.Time) time.Time { return now.Add(token.CommandLifetime + token.Skew) }

// Expire ends a command whose end is not after now, or after [LatestEnd]. changed is false where it has ended, or its end is to come.
func (r Row) Expire(now time.Time) (_ Row, changed bool) {
	if r.State.Final() || r.Expires.After(now) && !r.Expires.After(LatestEnd(now)) {
		return r, false
	}
	to := watchword.Expired
	if r.State == watchword.Delivered || r.State == watchword.Accepted {
		to = watchword.Unknown // the device may have acted
	}
	r.State, r.SettledAt = to, now
	return r, true
}

// StateWithoutDevice returns the state of a command whose device is revoked or deleted; final states stay.
func StateWithoutDevice(s watchword.CommandState) watchword.CommandState {
	switch s {
	case watchword.Queued, watchword.Sent:
		return watchword.Cancelled
	case watchword.Delivered, watchword.Accepted:
		return watchword.Unknown
	default:
		return s
	}
}

// StateAfterRestore returns the state of a command when the server is restored from a backup; final states stay. An unfinished
// one may have been delivered after the backup, so its end is not known: a receipt that fits a version that was kept still
// settles it.
func StateAfterRestore(s watchword.CommandState) watchword.CommandState {
	if s.Final() {
		return s
	}
	return watchword.Unknown
}
