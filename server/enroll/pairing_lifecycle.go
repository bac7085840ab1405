package enroll

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
)

// The functions of this file decide what becomes of a pairing. They read and write nothing: a store calls them between
// loading and writing, in one transaction.

// ErrPairing is the refusal of a pairing that there is not, or whose end has passed.
var ErrPairing = watchword.Refuse(watchword.NotFound, "no pending pairing has this user_code; it may have expired: request another")

// ErrUserCodeTaken says that another pairing of the tenant has the user code.
var ErrUserCodeTaken = watchword.Refuse(watchword.Conflict, "another pairing has this user code")

// PendingPairings is the pairings of one kind in a tenant that wait for an operator, as one transaction sees them.
type PendingPairings struct {
	All, SameNetwork                    int       // how many, and how many of them come from the network that asks
	FirstExpiry, FirstExpirySameNetwork time.Time // when the first of them ends; zero where there is none
}

// checkRoom refuses one more of kind k. Codes: rate_limited, busy; both with RetryAfter.
func (q PendingPairings) checkRoom(k watchword.Kind, now time.Time) error {
	switch b := boundsOf(k); {
	case q.SameNetwork >= b.perNetwork:
		return &watchword.Error{Code: watchword.RateLimited, Detail: fmt.Sprintf("too many %s from this network wait for an operator: the limit is %d", b.what, b.perNetwork), RetryAfter: q.FirstExpirySameNetwork.Sub(now)}
	case q.All >= b.all:
		return &watchword.Error{Code: watchword.Busy, Detail: fmt.Sprintf("too many %s wait for an operator: the limit is %d", b.what, b.all), RetryAfter: q.FirstExpiry.Sub(now)}
	}
	return nil
}

// PairingRequester is what a transaction knows of a client that asks to be paired.
type PairingRequester struct {
	KeysUsed    bool              // the tenant knows one of its keys as a subject's
	LastPairing Pairing           // the last pairing of its signing key, of either kind; zero where there is none
	Subject     watchword.Subject // that Last became; zero where it became none, or the subject was deleted
	Pending     PendingPairings   // without Last
}

// Request decides whether p is stored, in place of a.Last: as pending, or as approved where an operator has approved these keys
// and the device has lost its device code. Codes: conflict for a key that was used; rate_limited, busy.
func (p Pairing) Request(a PairingRequester, now time.Time) (Pairing, error) {
	if !a.KeysUsed {
		return p, a.Pending.checkRoom(p.Kind, now)
	}
	_, signs := a.Subject.SignKey(p.Sign.ID, now)
	if a.LastPairing.Kind != p.Kind || a.LastPairing.State != PairingApproved || !a.LastPairing.Expires.After(now) || a.LastPairing.Seal.ID != p.Seal.ID || !signs {
		return p, watchword.Refuse(watchword.Conflict, "keys.sign and keys.seal must not have been used before: generate new keys")
	}
	p.State, p.Subject, p.By, p.Decided, p.Expires = a.LastPairing.State, a.LastPairing.Subject, a.LastPairing.By, a.LastPairing.Decided, a.LastPairing.Expires
	return p, nil
}

// Approve makes the keys of a pending pairing those of s, and lets it answer until the end of a. An operator that is active gets
// the key beside those it has. Code: conflict where the pairing is decided, or s is of another kind; or s is active or suspended,
// but for an active operator.
func (p Pairing) Approve(a Approval, by watchword.SubjectID, s watchword.Subject, now time.Time) (Pairing, watchword.Subject, error) {
	if err := p.CheckPending(); err != nil {
		return p, s, err
	}
	if s.Kind != p.Kind {
		return p, s, watchword.Refuse(watchword.Conflict, "id %q exists already", s.ID)
	}
	p.Sign.State, p.Seal.State = watchword.KeyActive, watchword.KeyActive
	p.Sign.Added, p.Seal.Added, p.Sign.Name = now, now, a.KeyName
	p.Sign.Ends = a.KeyEnds
	var err error
	if s.Kind == watchword.Operator && s.State == watchword.Active {
		s, err = s.AddSigningKey(p.Sign, watchword.KeyGiver(by == s.ID), now)
	} else {
		s, err = s.Enroll(p.Sign, p.Seal, now)
	}
	if err != nil {
		return p, s, err
	}
	p.State, p.Subject, p.By, p.Decided, p.Expires = PairingApproved, s.ID, by, now, a.AnswerUntil
	return p, s, nil
}

// Reject turns a pending pairing down. Code: conflict where it is decided.
func (p Pairing) Reject(by watchword.SubjectID, now time.Time) (Pairing, error) {
	if err := p.CheckPending(); err != nil {
		return p, err
	}
	p.State, p.By, p.Decided = PairingRejected, by, now
	return p, nil
}
