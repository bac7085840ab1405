package registry

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
	"github.com/watchword-iot/watchword/policy"
)

// cacheSize is how many subjects are remembered at least; at most twice as many.
const cacheSize = 32 << 10

// Truth is what a [Roll] reads of the store of record.
type Truth interface {
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
	// Policies returns all policies of a tenant, by name.
	Policies(ctx context.Context, t watchword.TenantID) ([]policy.Stored, error)
	// PolicyVersion grows with each change of a policy, and when issuer keys change.
	PolicyVersion(ctx context.Context, t watchword.TenantID) (int64, error)
	// TokenCounts refuses a token that was revoked, or whose issuer key was. Codes: token_revoked,
	// issuer_revoked, unavailable.
	TokenCounts(ctx context.Context, t watchword.TenantID, jti string, signedBy watchword.KeyID) error
}

// Roll answers what stands today, from memory where it can: who a subject is
// and what policy gives it. It is safe for concurrent use. After Forget or Renew
// returned, no answer is older than that.
type Roll struct {
	store Truth
	set   atomic.Pointer[policy.Set]

	reading sync.Mutex // held while policies are read from the store

	mu         sync.Mutex
	generation uint64 // grows with each Forget, so that a read begun before it is not remembered after
	entries    *recent.Map[rollKey, *rollEntry]
}

type rollKey struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// rollEntry is one remembered subject. grant is compiled from set when first asked for.
type rollEntry struct {
	subject watchword.Subject
	grant   atomic.Pointer[compiled]
}

type compiled struct {
	set   *policy.Set
	grant *policy.Grant
}

// NewRoll returns a roll over st with these policies.
func NewRoll(st Truth, set *policy.Set) *Roll {
	r := &Roll{store: st, entries: recent.New[rollKey, *rollEntry](cacheSize)}
	r.set.Store(set)
	return r
}

// Policies returns today's policies.
func (r *Roll) Policies() *policy.Set { return r.set.Load() }

// advance puts a set in force that was made from the one before by one change. Where another
// change came between (of another node, or of an issuer key) the store is read instead.
func (r *Roll) advance(ctx context.Context, t watchword.TenantID, before, set *policy.Set) error {
	r.reading.Lock()
	defer r.reading.Unlock()
	switch now := r.set.Load(); {
	case now.Version() >= set.Version(): // read from the store meanwhile
		return nil
	case now == before && set.Version() == before.Version()+1:
		r.set.Store(set)
		return nil
	}
	err := r.read(ctx, t)
	if err != nil {
		// What is known of the change is in force for live sessions all the same. Under the version of
		// before no act commits on it until the store was read.
		r.set.Store(set.At(r.set.Load().Version()))
	}
	return err
}

// read is called with reading held.
func (r *Roll) read(ctx context.Context, t watchword.TenantID) error {
	set, err := LoadPolicies(ctx, r.store, t)
	if err == nil && set.Version() > r.set.Load().Version() {
		r.set.Store(set)
	}
	return err
}

// Renew makes the next answer of [Roll.Today] about a subject, and the policies, at least as new
// as the store is now, and refuses a token that counts no more there: an act that was decided on
// something older is decided again. Codes: token_revoked, issuer_revoked, unavailable.
func (r *Roll) Renew(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, jti string, signedBy watchword.KeyID) error {
	r.Forget(t, id)
	if err := r.store.TokenCounts(ctx, t, jti, signedBy); err != nil {
		return err
	}
	version, err := r.store.PolicyVersion(ctx, t)
	if err != nil || version <= r.set.Load().Version() {
		return err
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	if version <= r.set.Load().Version() {
		return nil
	}
	return r.read(ctx, t)
}

// Forget drops a subject that has changed in the store.
func (r *Roll) Forget(t watchword.TenantID, id watchword.SubjectID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	r.entries.Delete(rollKey{t, id})
}

// Today returns the subject with its keys, which the caller must not change, and
// its compiled policy. Codes: not_found, unavailable.
func (r *Roll) Today(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*watchword.Subject, *policy.Grant, error) {
	e, err := r.entry(ctx, rollKey{t, id})
	if err != nil {
		return nil, nil, err
	}
	set := r.set.Load()
	c := e.grant.Load()
	if c == nil || c.set != set {
		c = &compiled{set, set.For(who(&e.subject))}
		e.grant.Store(c)
	}
	return &e.subject, c.grant, nil
}

func who(s *watchword.Subject) policy.Who {
	return policy.Who{ID: s.ID, Kind: s.Kind, Labels: s.Labels}
}

func (r *Roll) entry(ctx context.Context, k rollKey) (*rollEntry, error) {
	r.mu.Lock()
	e, ok := r.entries.Get(k)
	generation := r.generation
	r.mu.Unlock()
	if ok {
		return e, nil
	}
	s, err := r.store.Subject(ctx, k.tenant, k.id)
	if err != nil {
		return nil, err
	}
	e = &rollEntry{subject: s}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.generation == generation {
		r.entries.Put(k, e)
	}
	return e, nil
}
