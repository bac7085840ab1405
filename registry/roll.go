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

// Subjects is what a [Roll] needs of the cellar.
type Subjects interface {
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
}

// Roll answers what stands today, from memory where it can: who a subject is
// and what policy gives it. It is safe for concurrent use. After Forget or
// SetPolicies returned, no answer is older than that.
type Roll struct {
	store Subjects
	set   atomic.Pointer[policy.Set]

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
func NewRoll(st Subjects, set *policy.Set) *Roll {
	r := &Roll{store: st, entries: recent.New[rollKey, *rollEntry](cacheSize)}
	r.set.Store(set)
	return r
}

// Policies returns today's policies.
func (r *Roll) Policies() *policy.Set { return r.set.Load() }

// SetPolicies puts other policies in force.
func (r *Roll) SetPolicies(set *policy.Set) { r.set.Store(set) }

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
