package session

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/policy"
)

// Principal is one subject as it is now: the subject, its compiled policies and its keys. It is
// immutable and safe for concurrent use; what it points to must not be changed.
type Principal struct {
	Subject *watchword.Subject
	// Policies is the set that Grant was compiled from.
	Policies *policy.Set
	Grant    *policy.Grant
	Keys     *Keys
}

// NewPrincipal compiles the policies of set for s.
func NewPrincipal(s *watchword.Subject, set *policy.Set) *Principal {
	return &Principal{Subject: s, Policies: set, Grant: set.GrantFor(PolicySubject(s)), Keys: NewKeys(s.Keys)}
}

// WithPolicies returns p with another set of policies.
func (p *Principal) WithPolicies(set *policy.Set) *Principal {
	return &Principal{Subject: p.Subject, Policies: set, Grant: set.GrantFor(PolicySubject(p.Subject)), Keys: p.Keys}
}

// PolicySubject is s as policies see it.
func PolicySubject(s *watchword.Subject) policy.Subject {
	return policy.Subject{ID: s.ID, Kind: s.Kind, Role: s.Role, Labels: s.Labels}
}

// Memory of a principal beside its texts: its structures, one parsed key, and one label.
const (
	principalBytes = 1024
	keyBytes       = 1024
	labelBytes     = 96
)

// Bytes estimates the memory of p with all keys parsed. The shared policies do not count.
func (p *Principal) Bytes() int {
	n := principalBytes + p.Grant.Bytes()
	for _, k := range p.Subject.Keys {
		n += keyBytes + len(k.ID) + len(k.JWK)
	}
	for name, value := range p.Subject.Labels {
		n += labelBytes + len(name) + len(value)
	}
	return n
}

// Keys is the public keys of one subject, each parsed on first use. It is safe for concurrent use.
// nil has no keys.
type Keys struct {
	keys    []watchword.Key
	parsed  []atomic.Pointer[jose.PublicKey] // of keys
	signing atomic.Pointer[map[watchword.KeyID]*jose.PublicKey]
}

// NewKeys returns the current and former keys of a subject.
func NewKeys(keys []watchword.Key) *Keys {
	return &Keys{keys: keys, parsed: make([]atomic.Pointer[jose.PublicKey], len(keys))}
}

// Key returns one key in any state. Codes: key_unknown for a key of another subject; internal for
// one that is damaged in the store.
func (k *Keys) Key(id watchword.KeyID) (*jose.PublicKey, error) {
	if k != nil {
		for i := range k.keys {
			if k.keys[i].ID == id {
				return k.key(i)
			}
		}
	}
	return nil, watchword.Refuse(watchword.KeyUnknown, "kid %s is not a key of the subject", id)
}

func (k *Keys) key(i int) (*jose.PublicKey, error) {
	if pub := k.parsed[i].Load(); pub != nil {
		return pub, nil
	}
	use := jose.ForSigning
	if k.keys[i].Purpose == watchword.Seal {
		use = jose.ForEncryption
	}
	pub, err := jose.ParseJWK(k.keys[i].JWK, use)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.Internal, "stored key %s", k.keys[i].ID)
	}
	k.parsed[i].Store(pub)
	return pub, nil
}

// ActiveSigningKeys returns the signing keys that are valid now, by id. The map is shared and must not be changed. Code:
// internal for a key that is damaged in the store.
func (k *Keys) ActiveSigningKeys(now time.Time) (map[watchword.KeyID]*jose.PublicKey, error) {
	if k == nil {
		return nil, nil
	}
	if all := k.signing.Load(); all != nil {
		return *all, nil
	}
	all, err := k.signed(func(key *watchword.Key) bool { return key.ValidAt(now) })
	if err == nil && !slices.ContainsFunc(k.keys, func(key watchword.Key) bool { return !key.Ends.IsZero() }) {
		k.signing.Store(&all) // they are the same at any time
	}
	return all, err
}

// VerificationKeys returns the keys whose earlier signatures are valid now: active and retired signing keys, not revoked ones,
// nor those whose end has passed. Code: internal for a key that is damaged in the store.
func (k *Keys) VerificationKeys(now time.Time) (map[watchword.KeyID]*jose.PublicKey, error) {
	return k.signed(func(key *watchword.Key) bool { return key.State != watchword.KeyRevoked && !key.EndedAt(now) })
}

func (k *Keys) signed(such func(*watchword.Key) bool) (map[watchword.KeyID]*jose.PublicKey, error) {
	all := map[watchword.KeyID]*jose.PublicKey{}
	if k == nil {
		return all, nil
	}
	for i := range k.keys {
		if k.keys[i].Purpose != watchword.Sign || !such(&k.keys[i]) {
			continue
		}
		pub, err := k.key(i)
		if err != nil {
			return nil, err
		}
		all[k.keys[i].ID] = pub
	}
	return all, nil
}
