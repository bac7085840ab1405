package enroll

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/server/audit"
)

// The life and the pace of a pairing (RFC 8628 §3.2), by default, and
// its bounds.
const (
	DefaultPairingLifetime  = 10 * time.Minute
	DefaultPairingInterval  = 5 * time.Second
	ApprovedPairingLifetime = 24 * time.Hour // how long an approved one answers, as a used link does
	MaxPairings             = 1000           // that wait for an operator, in a tenant
	MaxPairingsPerNetwork   = 16             // of those, from one network
)

// The same for the login of an operator, whose client waits beside the person: see [Service.RequestLogin].
const (
	LoginLifetime         = 10 * time.Minute
	ApprovedLoginLifetime = 5 * time.Minute
	MaxLogins             = 1000 // that wait for an approver, in a tenant; pairings of devices do not count
	MaxLoginsPerNetwork   = 8    // of those, from one network
)

// pairingBounds limits the pairings of one kind that wait. The kinds do not count towards each other's bounds, so that a flood of
// one does not stop the other.
type pairingBounds struct {
	all, perNetwork int
	what            string // in refusals
}

func boundsOf(k watchword.Kind) pairingBounds {
	if k == watchword.Operator {
		return pairingBounds{MaxLogins, MaxLoginsPerNetwork, "logins"}
	}
	return pairingBounds{MaxPairings, MaxPairingsPerNetwork, "pairings"}
}

// PairingState says what became of a pairing. An expired one has no state: it
// is gone.
type PairingState string

// The states of a pairing.
const (
	PairingPending  PairingState = "pending"
	PairingApproved PairingState = "approved"
	PairingRejected PairingState = "rejected"
)

// Pairing is a client with keys and no code, that waits for an operator's approval (RFC 8628): a device, or the client of a
// person who is to be an operator (a login). Its keys never change; the approval is for these keys.
type Pairing struct {
	Tenant   watchword.TenantID
	Kind     watchword.Kind // Device or Operator: what it can become, and which operations find it
	ID       string         // "pair_" and 26 characters that sort by time
	Hash     [32]byte       // SHA-256 of the device code's 22 characters; the device code itself is nowhere
	UserCode string         // 8 characters of [userCodeAlphabet], without the dash
	// RequestedID is the id that the device would like; empty if it has no wish. A login requests nothing.
	RequestedID watchword.SubjectID
	Sign        watchword.Key
	Seal        watchword.Key // the zero Key for a login
	Remote      string        // the address that asked
	Network     string        // the network that limits count the address with
	State       PairingState
	Subject     watchword.SubjectID // the device or operator whose keys these are; empty until approved
	By          watchword.SubjectID // the operator that decided; empty until then
	Created     time.Time
	Decided     time.Time
	Expires     time.Time
}

// CheckPending refuses a pairing that is decided. Code: conflict.
func (p *Pairing) CheckPending() error {
	if p.State == PairingPending {
		return nil
	}
	return watchword.Refuse(watchword.Conflict, "this pairing was %s already, by %s", p.State, p.By)
}

// clientID is what the device calls itself in client_id (RFC 8628 §3.1): its
// wish, or else its signing key.
func (p *Pairing) clientID() watchword.SubjectID {
	if p.RequestedID == "" {
		return watchword.SubjectID(p.Sign.ID)
	}
	return p.RequestedID
}

// PairingStore is what pairing needs from the store.
type PairingStore interface {
	// AddPairing stores p. ErrUserCodeTaken: another pairing of the tenant has its user code.
	AddPairing(ctx context.Context, p Pairing, now time.Time) (Pairing, error)
	// These read pairings of one kind; one of the other kind is not found.
	PairingByDeviceCode(ctx context.Context, t watchword.TenantID, k watchword.Kind, device [32]byte, now time.Time) (Pairing, error)
	PairingByUserCode(ctx context.Context, t watchword.TenantID, k watchword.Kind, userCode string, now time.Time) (Pairing, error)
	Pairings(ctx context.Context, t watchword.TenantID, k watchword.Kind, before string, limit int, now time.Time) ([]Pairing, error)
	ApprovePairing(ctx context.Context, by audit.Actor, a Approval, now time.Time, entries func(before, after watchword.Subject) []audit.Entry) (watchword.Subject, error)
	RejectPairing(ctx context.Context, by audit.Actor, id string, now time.Time, entry audit.EntryOf[Pairing]) (Pairing, error)
}

// Approval is an operator's decision that the keys of one pairing are those of Subject.
type Approval struct {
	Pairing     string            // its id
	Subject     watchword.Subject // with tenant, id, and labels where it is added
	Create      bool              // the subject is added; else it is there already
	KeyName     string            // [watchword.Key.Name] of the signing key
	KeyEnds     time.Time         // [watchword.Key.Ends] of the signing key, in whole seconds; zero for none
	AnswerUntil time.Time         // how long the device may fetch its answer
}

// pollLimiter remembers how often a device may ask, and when it asked last.
type pollLimiter struct {
	interval time.Duration
	mu       sync.Mutex
	byDevice *cache.Map[[32]byte, pollState] // by the hash of the device code
}

type pollState struct {
	last     time.Time
	interval time.Duration
}

// slowDownStep is what RFC 8628 §3.5 adds for each poll that came too early.
const slowDownStep = 5 * time.Second

// newPollLimiter returns one for at most max pairings that wait.
func newPollLimiter(first time.Duration, max int) *pollLimiter {
	return &pollLimiter{interval: first, byDevice: cache.New[[32]byte, pollState](2 * max)}
}

// poll counts one, and refuses it where it came too early. Code: pairing_slow.
func (p *pollLimiter) poll(device [32]byte, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, known := p.byDevice.Get(device)
	early := known && now.Before(v.last.Add(v.interval))
	if !known {
		v.interval = p.interval
	}
	if early {
		v.interval += slowDownStep
	}
	v.last = now
	p.byDevice.Put(device, v)
	if early {
		return &watchword.Error{Code: watchword.PairingSlow, Detail: "the request came before the interval ended: wait 5 seconds longer between requests from now on", RetryAfter: v.interval}
	}
	return nil
}
