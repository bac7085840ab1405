package watchword

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// The methods of this file decide how a subject changes. They read and write nothing: a store calls them between loading and
// writing, in one transaction. Each returns the subject as it is to be written; the one that it got does not change. changed
// is false where the subject is already as it is to be: then nothing is written, and nothing logged.

// Added returns a subject as it is added, with version and incarnation 1.
func (s Subject) Added() Subject {
	s.Version, s.Incarnation = 1, 1
	return s
}

// AddedAfter returns a subject as it is added where a deleted one had its id. Its version and incarnation go on from those of the
// deleted one, so that nothing that was of that one counts for it. Code: conflict, unless the deleted one was forgotten and of the same kind.
func (s Subject) AddedAfter(t Tombstone) (Subject, error) {
	if !t.Forgotten || t.Kind != s.Kind {
		return s, IDTaken(s.ID)
	}
	s.Version, s.Incarnation = t.Version+1, t.Incarnation+1
	return s, nil
}

// Tombstone is what is stored of a deleted subject.
type Tombstone struct {
	Kind                 Kind
	Version, Incarnation int64
	Forgotten            bool // its id may be assigned again
}

// Forget makes the id of a deleted device free. Code: conflict for an operator or a service: the audit log names their ids as actors.
func (t Tombstone) Forget(id SubjectID) (_ Tombstone, changed bool, err error) {
	if t.Kind != Device {
		return t, false, Refuse(Conflict, "%q was a %s: only the id of a deleted device can be assigned again", id, t.Kind)
	}
	changed = !t.Forgotten
	t.Forgotten = true
	return t, changed, nil
}

// IDTaken is the refusal of a subject whose id another one of the tenant has, or a deleted one had.
func IDTaken(id SubjectID) error {
	return Refuse(Conflict, "id %q is in use, or a deleted subject had it; \"device forget\" makes the id of a deleted device free", id)
}

// ErrKeyUsed is the refusal of a key that a subject of the tenant has or had.
var ErrKeyUsed = Refuse(Conflict, "keys.sign and keys.seal must not have been used before: generate new keys")

// Suspend moves a new or active subject to suspended. Code: conflict for a revoked one.
func (s Subject) Suspend(now time.Time) (_ Subject, changed bool, err error) {
	switch s.State {
	case Suspended:
		return s, false, nil
	case Revoked:
		return s, false, Refuse(Conflict, "%q is revoked", s.ID)
	}
	return s.nextVersion(Suspended, now), true, nil
}

// Resume moves a suspended subject to active if it has a valid signing key, else to new. Code: conflict for a revoked one.
func (s Subject) Resume(now time.Time) (_ Subject, changed bool, err error) {
	switch s.State {
	case New, Active:
		return s, false, nil
	case Revoked:
		return s, false, Refuse(Conflict, "%q is revoked; it can enroll again with a new link", s.ID)
	}
	to := New
	if s.SignKeys(now) > 0 {
		to = Active
	}
	return s.nextVersion(to, now), true, nil
}

// Revoke moves a subject to revoked, and its keys with it.
func (s Subject) Revoke(now time.Time) (_ Subject, changed bool) {
	if s.State == Revoked {
		return s, false
	}
	return s.withRevokedKeys(now), true
}

// Delete returns what is left of a subject that is deleted: revoked, without labels and name. Its id is not free until
// [Tombstone.Forget].
func (s Subject) Delete(now time.Time) Subject {
	s.Labels, s.Name = nil, ""
	return s.withRevokedKeys(now)
}

func (s Subject) withRevokedKeys(now time.Time) Subject {
	s.Keys = slices.Clone(s.Keys)
	for i := range s.Keys {
		s.Keys[i].State = KeyRevoked
	}
	return s.nextVersion(Revoked, now)
}

// MayEnroll refuses a subject that has keys which may count. Code: conflict.
func (s *Subject) MayEnroll() error {
	if s.State == New || s.State == Revoked {
		return nil
	}
	return Refuse(Conflict, "%q is %s: only a new or revoked one can enroll; revoke it first", s.ID, s.State)
}

// Enroll gives a new or revoked subject its keys, and makes it active. The incarnation of a revoked one grows. Only a device
// needs a sealing key; seal is the zero Key for none. Codes: conflict; bad_request for a device without a sealing key; rate_limited.
func (s Subject) Enroll(sign, seal Key, now time.Time) (Subject, error) {
	if err := s.MayEnroll(); err != nil {
		return s, err
	}
	if s.Kind == Device && seal.ID == "" {
		return s, RefuseField("keys.seal", "must be a public JWK on P-256 or X25519: a device needs a sealing key")
	}
	s, err := s.addKeys(ByAnother, now, sign, seal) // a subject without a valid key gives itself none
	if err != nil {
		return s, err
	}
	if s.State == Revoked {
		s.Incarnation++
	}
	return s.nextVersion(Active, now), nil
}

// How many keys a subject may get within a time, in whichever way, so that what the store remembers of it does not grow without
// end. A subject gets no key from itself once it has [MaxNewKeys], and none from others once it has [MaxNewKeysByOthers]: the thief
// of its key cannot use up what an operator needs to give it a new one.
const (
	MaxNewKeys         = 32
	MaxNewKeysByOthers = 2 * MaxNewKeys
	NewKeysWindow      = 24 * time.Hour
)

// The newest MaxNewKeysByOthers keys come with a subject.
var _ [MaxKeysReturned - MaxNewKeysByOthers]struct{}

// KeyGiver says on whose authority a subject gets a key.
type KeyGiver bool

// The givers of keys. A process with access to the data folder is another one.
const (
	ByAnother KeyGiver = false
	ByItself  KeyGiver = true
)

// CheckNewKeys refuses a further key to a subject that got as many within [NewKeysWindow] as that giver may bring it to. Code:
// rate_limited, with RetryAfter.
func (s *Subject) CheckNewKeys(by KeyGiver, now time.Time) error {
	limit := MaxNewKeysByOthers
	if by == ByItself {
		limit = MaxNewKeys
	}
	if n := len(s.Keys); n >= limit {
		if free := s.Keys[n-limit].Added.Add(NewKeysWindow); free.After(now) {
			return &Error{Code: RateLimited, Detail: fmt.Sprintf("%q got %d keys within 24 hours, which is the limit", s.ID, limit), RetryAfter: free.Sub(now)}
		}
	}
	return nil
}

// addKeys gives a subject further keys; those without an id are none. It is the only way in which a subject gets a key. Code:
// rate_limited.
func (s Subject) addKeys(by KeyGiver, now time.Time, keys ...Key) (Subject, error) {
	keys = slices.DeleteFunc(keys, func(k Key) bool { return k.ID == "" })
	if len(keys) > 0 {
		if err := s.CheckNewKeys(by, now); err != nil {
			return s, err
		}
	}
	s.Keys = append(slices.Clip(s.Keys), keys...)
	return s, nil
}

// MaxSignKeys is how many valid signing keys an operator or a service may have.
const MaxSignKeys = 8

// AddSigningKey gives an active operator or service a further signing key. Code: conflict for a device, for a subject that is
// not active, and for one that has [MaxSignKeys] valid keys; rate_limited.
func (s Subject) AddSigningKey(k Key, by KeyGiver, now time.Time) (Subject, error) {
	if err := s.MayAddKey(by, now); err != nil {
		return s, err
	}
	s, err := s.addKeys(by, now, k)
	if err != nil {
		return s, err
	}
	return s.nextVersion(s.State, now), nil
}

// MayAddKey refuses what [Subject.AddSigningKey] refuses. Codes: conflict, rate_limited.
func (s *Subject) MayAddKey(by KeyGiver, now time.Time) error {
	switch {
	case s.Kind == Device:
		return Refuse(Conflict, "%q is a device, which has one signing key; revoke it first, or let it replace its keys", s.ID)
	case s.State != Active:
		return Refuse(Conflict, "%q is %s: only an active %s gets a further key", s.ID, s.State, s.Kind)
	case s.SignKeys(now) >= MaxSignKeys:
		return Refuse(Conflict, "%q has %d keys, which is the limit: revoke one first", s.ID, MaxSignKeys)
	}
	return s.CheckNewKeys(by, now)
}

// RevokeKey revokes one signing key of an operator or a service. Codes: conflict for a device; not_found.
func (s Subject) RevokeKey(id KeyID, now time.Time) (_ Subject, changed bool, err error) {
	if s.Kind == Device {
		return s, false, Refuse(Conflict, "%q is a device, which has one signing key: revoke the device", s.ID)
	}
	i := slices.IndexFunc(s.Keys, func(k Key) bool { return k.ID == id && k.Purpose == Sign })
	switch {
	case i < 0:
		return s, false, Refuse(NotFound, "%q has no key with this id", s.ID)
	case s.Keys[i].State == KeyRevoked:
		return s, false, nil
	}
	s.Keys = slices.Clone(s.Keys)
	s.Keys[i].State = KeyRevoked
	return s.nextVersion(s.State, now), true, nil
}

// SetKeyEnd sets the end of a valid signing key of an operator or a service, in whole seconds: an end that it has becomes earlier, never
// later, so that the end of a key limits what its holder can do. Codes: conflict for a device, for a key that is not valid and for a
// later end; not_found; bad_request for an end that has passed.
func (s Subject) SetKeyEnd(id KeyID, end, now time.Time) (_ Subject, changed bool, err error) {
	if s.Kind == Device {
		return s, false, Refuse(Conflict, "%q is a device, whose keys have no end: revoke the device, or let it replace its keys", s.ID)
	}
	i := slices.IndexFunc(s.Keys, func(k Key) bool { return k.ID == id && k.Purpose == Sign })
	switch end = end.Truncate(time.Second); {
	case i < 0:
		return s, false, Refuse(NotFound, "%q has no key with this id", s.ID)
	case !s.Keys[i].ValidAt(now):
		return s, false, Refuse(Conflict, "the key is not valid any more")
	case !end.After(now):
		return s, false, RefuseField("ends_at", "must be in the future: to end the key now, revoke it")
	case s.Keys[i].Ends.Equal(end):
		return s, false, nil
	case !EarlierEnd(s.Keys[i].Ends, end).Equal(end):
		return s, false, Refuse(Conflict, "the key ends at %s, and an end can only become earlier: make a link for another key", s.Keys[i].Ends.UTC().Format(time.RFC3339))
	}
	s.Keys = slices.Clone(s.Keys)
	s.Keys[i].Ends = end
	return s.nextVersion(s.State, now), true, nil
}

// RetireEndedKeys retires the active keys whose end has passed, as of their ends.
func (s Subject) RetireEndedKeys(now time.Time) (_ Subject, changed bool) {
	s.Keys = slices.Clone(s.Keys)
	for i := range s.Keys {
		if k := &s.Keys[i]; k.State == KeyActive && k.EndedAt(now) {
			k.State, k.Retired, changed = KeyRetired, k.Ends, true
		}
	}
	if !changed {
		return s, false
	}
	return s.nextVersion(s.State, now), true
}

// ReplaceKeys makes sign and seal the active keys; the other active ones are retired as of now. A key that is active already
// stays as it is. seal is the zero Key for a subject without a sealing key. A key that replaces one with an end has the same end. Code:
// rate_limited.
func (s Subject) ReplaceKeys(sign, seal Key, now time.Time) (Subject, error) {
	s.Keys = slices.Clone(s.Keys)
	for i := range s.Keys {
		if k := &s.Keys[i]; k.State == KeyActive && k.ID != sign.ID && k.ID != seal.ID {
			k.State, k.Retired = KeyRetired, now
			for _, next := range []*Key{&sign, &seal} {
				if next.Purpose == k.Purpose {
					next.Ends = EarlierEnd(next.Ends, k.Ends)
				}
			}
		}
	}
	added := slices.DeleteFunc([]Key{sign, seal}, func(k Key) bool {
		return slices.ContainsFunc(s.Keys, func(old Key) bool { return old.ID == k.ID && old.State == KeyActive })
	})
	s, err := s.addKeys(ByItself, now, added...)
	if err != nil {
		return s, err
	}
	return s.nextVersion(s.State, now), nil
}

// Relabel replaces the labels. ifVersion is the version that the labels were decided on, 0 for any. Code: precondition_failed.
func (s Subject) Relabel(l Labels, ifVersion int64, now time.Time) (_ Subject, changed bool, err error) {
	if ifVersion != 0 && ifVersion != s.Version {
		return s, false, Refuse(PreconditionFailed, "If-Match must be the current version, %d", s.Version)
	}
	if maps.Equal(s.Labels, l) {
		return s, false, nil
	}
	s.Labels = l
	return s.nextVersion(s.State, now), true, nil
}

// Rename gives the subject another name for people; empty for none.
func (s Subject) Rename(name string, now time.Time) (_ Subject, changed bool) {
	if s.Name == name {
		return s, false
	}
	s.Name = name
	return s.nextVersion(s.State, now), true
}

// SetRole gives an operator another role. Code: conflict for another kind of subject.
func (s Subject) SetRole(role string, now time.Time) (_ Subject, changed bool, err error) {
	if s.Kind != Operator {
		return s, false, Refuse(Conflict, "%q is a %s: only operators have roles", s.ID, s.Kind)
	}
	if s.Role == role {
		return s, false, nil
	}
	s.Role = role
	return s.nextVersion(s.State, now), true, nil
}

// EarlierEnd returns the earlier end of two; zero is no end.
func EarlierEnd(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// ErrLastOwner is the refusal of an act that would leave a tenant without an owner who can act, now and later.
var ErrLastOwner = Refuse(Conflict, "this is the last owner with a valid key that has no end: make another owner first, with operator invite NAME --role owner")

// OwnerRole is the role of operators who may do everything (package policy).
const OwnerRole = "owner"

// IsOwner reports whether the subject is an operator who may do everything.
func (s *Subject) IsOwner() bool { return s.Kind == Operator && s.Role == OwnerRole }

// HasPermanentKey reports whether the subject is active and has a valid signing key without an end.
func (s *Subject) HasPermanentKey() bool {
	return s.State == Active && slices.ContainsFunc(s.Keys, func(k Key) bool { return k.Purpose == Sign && k.State == KeyActive && k.Ends.IsZero() })
}

// SetProof says whether the subject gets anything without a proof of its key: proof is [RequireProof] or empty.
func (s Subject) SetProof(proof string, now time.Time) (_ Subject, changed bool) {
	if s.Proof == proof {
		return s, false
	}
	s.Proof = proof
	return s.nextVersion(s.State, now), true
}

// nextVersion returns the next version of the subject, in that state.
func (s Subject) nextVersion(to State, now time.Time) Subject {
	s.State, s.Changed = to, now
	s.Version++
	return s
}
