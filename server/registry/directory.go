package registry

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// How much memory the principals that a directory remembers may take. It is sized by the sessions of the process: a change of the
// policies recomputes all of them, and reads from the store each subject that is not remembered.
const (
	minDirectoryBytes = 256 << 20
	maxDirectoryBytes = 1536 << 20
)

// boundBytes returns the bound for some sessions, with what the principals of the cache take on average. The cache has two
// generations, and keeps all of a set that it walks over again and again only if the set fits into one of them.
func (d *Directory) boundBytes(sessions, cached, bytes int) int {
	if cached == 0 {
		return d.minBytes
	}
	const spare = 1.1
	return int(min(max(2*spare*float64(sessions)*float64(bytes)/float64(cached), float64(d.minBytes)), maxDirectoryBytes))
}

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
	TokenRecord(ctx context.Context, t watchword.TenantID, jti string) (token.Record, error)
}

// Directory returns the current state of a tenant's subject, what policy gives it, and its keys, from memory if possible.
// It is safe for concurrent use. After Receive or Renew returned, no answer is older than that.
type Directory struct {
	store DirectoryStore

	policies atomic.Pointer[map[watchword.TenantID]*policy.Set] // in force; none of a tenant: they are read when requested

	reloadMu       sync.Mutex                                // held while policies are read from the store
	reloadPolicies map[watchword.TenantID]map[string]version // what was read last, by the policy's name

	mu         sync.Mutex
	generation uint64 // grows with each subject that is forgotten, so that a read begun before it is not remembered after
	cache      *cache.Sized[subjectRef, *session.Principal]
	minBytes   int        // minDirectoryBytes, but in tests
	sessions   func() int // how many sessions the process has; nil: none
}

// version is one version of a policy, parsed.
type version struct {
	number int64
	doc    *policy.Document
}

type subjectRef struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// NewDirectory returns a directory over st. The policies of a tenant are read when they are first asked for.
func NewDirectory(st DirectoryStore) *Directory {
	d := &Directory{store: st, reloadPolicies: map[watchword.TenantID]map[string]version{}, cache: cache.NewSized[subjectRef, *session.Principal](minDirectoryBytes), minBytes: minDirectoryBytes}
	d.policies.Store(&map[watchword.TenantID]*policy.Set{})
	return d
}

// SizeBySessions has the directory remember more subjects where there are more sessions: count returns how many there are now. It must not
// block. Call it before the directory is used.
func (d *Directory) SizeBySessions(count func() int) { d.sessions = count }

// Policies returns a tenant's current policies. A document that did not change is the same pointer in the next set. Code:
// unavailable.
func (d *Directory) Policies(ctx context.Context, t watchword.TenantID) (*policy.Set, error) {
	if set := (*d.policies.Load())[t]; set != nil {
		return set, nil
	}
	d.reloadMu.Lock()
	defer d.reloadMu.Unlock()
	if set := (*d.policies.Load())[t]; set != nil {
		return set, nil
	}
	return d.readPolicies(ctx, t)
}

// put is called with reloadMu held. nil has them read when they are asked for.
func (d *Directory) put(t watchword.TenantID, set *policy.Set) {
	all := maps.Clone(*d.policies.Load())
	if all[t] = set; set == nil {
		delete(all, t)
	}
	d.policies.Store(&all)
}

// readPolicies reads the policies of a tenant and puts them in force. It is called with reloadMu held.
func (d *Directory) readPolicies(ctx context.Context, t watchword.TenantID) (*policy.Set, error) {
	number, err := d.store.PolicyVersion(ctx, t)
	if err != nil {
		return nil, err
	}
	// Read after the version: what changes in between makes the set newer than it says, and it is read
	// again for the version that is found then.
	rows, err := d.store.Policies(ctx, t)
	if err != nil {
		return nil, err
	}
	last, read := d.reloadPolicies[t], make(map[string]version, len(rows))
	docs := make([]*policy.Document, len(rows))
	for i, row := range rows {
		v := last[row.Name]
		if v.doc == nil || v.number != row.Version {
			if v, err = parse(ctx, row); err != nil {
				return nil, err
			}
		}
		docs[i], read[row.Name] = v.doc, v
	}
	set := policy.NewSet(docs...).WithVersion(number)
	d.reloadPolicies[t] = read
	d.put(t, set)
	return set, nil
}

func parse(ctx context.Context, row policy.Stored) (version, error) {
	doc, unbounded, err := policy.ParseStored(row.Name, row.Source)
	if err != nil {
		return version{}, watchword.Wrap(err, watchword.Internal, "stored policy %s", row.Name)
	}
	if len(unbounded) > 0 {
		slog.WarnContext(ctx, "a policy has bounds on arguments that could take too long: its calls are refused until it is applied with others", slog.String("policy", row.Name), slog.Any("args", unbounded))
	}
	return version{row.Version, doc}, nil
}

// renewPolicies loads the policies of a version or a later one. If they cannot be read none are in force: every request is
// denied until they can.
func (d *Directory) renewPolicies(ctx context.Context, t watchword.TenantID, number int64) error {
	if d.hasVersion(t, number) {
		return nil
	}
	d.reloadMu.Lock()
	defer d.reloadMu.Unlock()
	if d.hasVersion(t, number) {
		return nil
	}
	d.put(t, nil)
	_, err := d.readPolicies(ctx, t)
	return err
}

// hasVersion reports whether no policies of t are in force that are older than a version.
func (d *Directory) hasVersion(t watchword.TenantID, number int64) bool {
	set := (*d.policies.Load())[t]
	return set == nil || number <= set.Version()
}

// HandleChange forgets what has changed: it is read from the store again. Code: unavailable where policies cannot be read.
func (d *Directory) HandleChange(ctx context.Context, c watchword.Change) error {
	switch c.Kind {
	case watchword.SubjectChanged, watchword.SubjectDeleted:
		d.forget(c.Tenant, watchword.SubjectID(c.ID))
	case watchword.PoliciesChanged:
		return d.renewPolicies(ctx, c.Tenant, c.Version)
	}
	return nil
}

// Refresh makes the next answer of [Directory.Principal] about a subject, and the policies, at least as new
// as the store is now, and refuses a token that is not valid any more there: an act that was decided on
// something older is decided again. Codes: token_revoked, issuer_revoked, unavailable.
func (d *Directory) Refresh(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, jti string, signedBy watchword.KeyID) error {
	d.forget(t, id)
	if err := d.store.CheckToken(ctx, t, jti, signedBy); err != nil {
		return err
	}
	number, err := d.store.PolicyVersion(ctx, t)
	if err != nil {
		return err
	}
	return d.renewPolicies(ctx, t, number)
}

// TokenSubject returns whose an access token is, as it is on record. Codes: not_found, unavailable.
func (d *Directory) TokenSubject(ctx context.Context, t watchword.TenantID, jti string) (watchword.SubjectID, error) {
	r, err := d.store.TokenRecord(ctx, t, jti)
	return r.Subject, err
}

func (d *Directory) forget(t watchword.TenantID, id watchword.SubjectID) {
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
		p = p.WithPolicies(set)
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
		if d.sessions != nil {
			d.cache.Resize(d.boundBytes(d.sessions(), d.cache.Len(), d.cache.Bytes()))
		}
		d.cache.Put(k, p, p.Bytes())
	}
	return p, nil
}
