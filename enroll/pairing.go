package enroll

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/recent"
)

// The life and the pace of a pairing (RFC 8628 §3.2), unless told otherwise, and
// its bounds.
const (
	PairingLife       = 10 * time.Minute
	PairingInterval   = 5 * time.Second
	PairingAnswer     = 24 * time.Hour // how long an approved one answers, as a used link does
	MaxPairings       = 1000           // that wait for an operator, in a tenant
	MaxPairingsNearby = 16             // of those, from one network
)

// PairingState says what became of a pairing. One that is over is no state: it
// is gone.
type PairingState string

// The states of a pairing.
const (
	PairingPending  PairingState = "pending"
	PairingApproved PairingState = "approved"
	PairingRejected PairingState = "rejected"
)

// Pairing is a stranger with two keys and no code, who waits for an operator's
// word (RFC 8628). Its keys never change: what an operator approves is them.
type Pairing struct {
	Tenant   watchword.TenantID
	ID       string   // "pair_" and 26 characters that sort by time
	Hash     [32]byte // SHA-256 of the device code's 22 characters; the device code itself is nowhere
	UserCode string   // 8 characters of [userAlphabet], without the dash
	// Wish is the id that the device would like; empty if it has no wish.
	Wish    watchword.SubjectID
	Sign    watchword.Key
	Seal    watchword.Key
	Remote  string // the address that asked
	Network string // whom that address is counted with
	State   PairingState
	Subject watchword.SubjectID // who it became; empty until approved
	By      watchword.SubjectID // who decided; empty until then
	Created time.Time
	Decided time.Time
	Expires time.Time
}

// Waits refuses a pairing that somebody has decided on. Code: conflict.
func (p *Pairing) Waits() error {
	if p.State == PairingPending {
		return nil
	}
	return watchword.Refuse(watchword.Conflict, "this pairing was %s already, by %s", p.State, p.By)
}

// clientID is what the device calls itself in client_id (RFC 8628 §3.1): its
// wish, or else its signing key.
func (p *Pairing) clientID() watchword.SubjectID {
	if p.Wish == "" {
		return watchword.SubjectID(p.Sign.ID)
	}
	return p.Wish
}

// Pairings is what pairing needs of the cellar.
type Pairings interface {
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
	// AskPairing stores p. ErrUserCodeTaken: another pairing of the tenant has its user code.
	AskPairing(ctx context.Context, p Pairing, now time.Time) (Pairing, error)
	PairingOf(ctx context.Context, t watchword.TenantID, device [32]byte, now time.Time) (Pairing, error)
	PairingFor(ctx context.Context, t watchword.TenantID, userCode string, now time.Time) (Pairing, error)
	Pairings(ctx context.Context, t watchword.TenantID, before string, limit int, now time.Time) ([]Pairing, error)
	ApprovePairing(ctx context.Context, by audit.Actor, a Approval, now time.Time, entries func(before, after watchword.Subject) []audit.Entry) (watchword.Subject, error)
	RejectPairing(ctx context.Context, by audit.Actor, id string, now time.Time, entry audit.EntryOf[Pairing]) (Pairing, error)
}

// Approval is an operator's word that the keys of one pairing are those of Subject.
type Approval struct {
	Pairing string            // its id
	Subject watchword.Subject // with tenant, id, and labels where it is added
	Add     bool              // the subject is added; else it is there already
	Until   time.Time         // how long the device may fetch its answer
}

// paces remembers how often a device may ask, and when it asked last.
type paces struct {
	first time.Duration
	mu    sync.Mutex
	by    *recent.Map[[32]byte, pace]
}

type pace struct {
	last     time.Time
	interval time.Duration
}

// slower is what RFC 8628 §3.5 adds for each poll that came too early.
const slower = 5 * time.Second

func newPaces(first time.Duration) *paces {
	return &paces{first: first, by: recent.New[[32]byte, pace](2 * MaxPairings)}
}

// poll counts one, and refuses it where it came too early. Code: pairing_slow.
func (p *paces) poll(device [32]byte, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, known := p.by.Get(device)
	early := known && now.Before(v.last.Add(v.interval))
	if !known {
		v.interval = p.first
	}
	if early {
		v.interval += slower
	}
	v.last = now
	p.by.Put(device, v)
	if early {
		return &watchword.Error{Code: watchword.PairingSlow, Detail: "asked too early: wait 5 s longer from now on", RetryAfter: v.interval}
	}
	return nil
}
