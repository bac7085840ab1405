package registry

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// directoryCacheBytes is how much memory the principals that a directory remembers may take.
const directoryCacheBytes = 256 << 20

// DirectoryStore is what a [Directory] reads of the store of record.
type DirectoryStore interface {
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
	// Policies returns all policies of a tenant, by name.
	Policies(ctx context.Context, t watchword.TenantID) ([]policy.Stored, error)
	// PolicyVersion grows with each change of a policy, and when issuer keys change.
	PolicyVersion(ctx context.Context, t watchword.TenantID) (int64, error)
	// CheckToken refuses a token that was revoked, or whose issuer key was. Codes: token_revoked,
	// issuer_revoked, unavailable.
	CheckToken(ctx context.Context, t watchword.TenantID, jti string, signedBy watchword.KeyID) error
}

// Directory answers who a subject of a tenant is now, what policy gives it, and its keys, from memory where it can. It is
// safe for concurrent use. After Forget or Renew returned, no answer is older than that.
type Directory struct {
	store DirectoryStore

	reloadMu sync.Mutex // held while policies are read from the store
	policies atomic.Pointer[map[watchword.TenantID]*policy.Set]

	mu         sync.Mutex
	generation uint64 // grows with each Forget, so that a read begun before it is not remembered after
	cache      *recent.Sized[subjectRef, *session.Principal]
}

type subjectRef struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// NewDirectory returns a directory over st. The policies of a tenant are read when they are first asked for.
func NewDirectory(st DirectoryStore) *Directory {
	d := &Directory{store: st, cache: recent.NewSized[subjectRef, *session.Principal](directoryCacheBytes)}
	d.policies.Store(&map[watchword.TenantID]*policy.Set{})
	return d
}

// Policies returns a tenant's policies as they are now. Code: unavailable.
func (d *Directory) Policies(ctx context.Context, t watchword.TenantID) (*policy.Set, error) {
	if set := (*d.policies.Load())[t]; set != nil {
		return set, nil
	}
	d.reloadMu.Lock()
	defer d.reloadMu.Unlock()
	if set := (*d.policies.Load())[t]; set != nil {
		return set, nil
	}
	return d.reloadPolicies(ctx, t)
}

// put is called with reading held.
func (d *Directory) put(t watchword.TenantID, set *policy.Set) {
	all := maps.Clone(*d.policies.Load())
	all[t] = set
	d.policies.Store(&all)
}

// reloadPolicies reads the policies of a tenant, and puts them in force where they are newer. It is called with reading held.
func (d *Directory) reloadPolicies(ctx context.Context, t watchword.TenantID) (*policy.Set, error) {
	set, err := loadPolicies(ctx, d.store, t)
	if err != nil {
		return nil, err
	}
	if known := (*d.policies.Load())[t]; known != nil && known.Version() >= set.Version() {
		return known, nil
	}
	d.put(t, set)
	return set, nil
}

// installPolicies puts a set in force that was made from the one before by one change. Where another
// change came between (of another node, or of an issuer key) the store is read instead.
func (d *Directory) installPolicies(ctx context.Context, t watchword.TenantID, before, set *policy.Set) error {
	d.reloadMu.Lock()
	defer d.reloadMu.Unlock()
	now := (*d.policies.Load())[t]
	switch {
	case now.Version() >= set.Version(): // read from the store meanwhile
		return nil
	case now == before && set.Version() == before.Version()+1:
		d.put(t, set)
		return nil
	}
	_, err := d.reloadPolicies(ctx, t)
	if err != nil {
		// What is known of the change is in force for live sessions all the same. Under the version of
		// before no act commits on it until the store was read.
		d.put(t, set.At(now.Version()))
	}
	return err
}

// Refresh makes the next answer of [Directory.Principal] about a subject, and the policies, at least as new
// as the store is now, and refuses a token that is not valid any more there: an act that was decided on
// something older is decided again. Codes: token_revoked, issuer_revoked, unavailable.
func (d *Directory) Refresh(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, jti string, signedBy watchword.KeyID) error {
	d.Invalidate(t, id)
	if err := d.store.CheckToken(ctx, t, jti, signedBy); err != nil {
		return err
	}
	version, err := d.store.PolicyVersion(ctx, t)
	if err != nil || d.hasVersion(t, version) {
		return err
	}
	d.reloadMu.Lock()
	defer d.reloadMu.Unlock()
	if d.hasVersion(t, version) {
		return nil
	}
	_, err = d.reloadPolicies(ctx, t)
	return err
}

// hasVersion reports whether the policies of t that are in force are of a version or a later one. Those that were never read
// are read when they are asked for.
func (d *Directory) hasVersion(t watchword.TenantID, version int64) bool {
	set := (*d.policies.Load())[t]
	return set == nil || version <= set.Version()
}

// Invalidate drops a subject that has changed in the store.
func (d *Directory) Invalidate(t watchword.TenantID, id watchword.SubjectID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.generation++
	d.cache.Delete(subjectRef{t, id})
}

// Principal returns the subject with its keys and what policy gives it. Codes: not_found, unavailable.
func (d *Directory) Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	set := (*d.policies.Load())[t]
	if set == nil {
		var err error
		if set, err = d.Policies(ctx, t); err != nil {
			return nil, err
		}
	}
	k := subjectRef{t, id}
	d.mu.Lock()
	p, ok := d.cache.Get(k)
	generation := d.generation
	d.mu.Unlock()
	switch {
	case ok && p.Policies == set:
		return p, nil
	case ok:
		p = p.Under(set)
	default:
		s, err := d.store.Subject(ctx, t, id)
		if err != nil {
			return nil, err
		}
		p = session.NewPrincipal(&s, set)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.generation == generation {
		d.cache.Put(k, p, p.Bytes())
	}
	return p, nil
}
