package bus

import (
	"context"
	"maps"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
)

// Owner is the publisher of a retained message: a subject in one incarnation. The zero value is the server itself.
type Owner struct {
	Subject     watchword.SubjectID
	Incarnation int64
}

// PublishAuthority is what a subject may publish today.
type PublishAuthority interface{ MayPublish(topic string) bool }

// OwnerAuthority returns what an owner may publish today. Codes: subject_suspended and subject_new, if nothing is delivered
// for now; subject_revoked and token_revoked, if it is never delivered again; others if the authority is unknown.
type OwnerAuthority func(ctx context.Context, who Owner) (PublishAuthority, error)

// RetainedOwner is a subject in one incarnation that has retained messages. They no longer depend on a token, so today's
// policy decides whether they are delivered. The decision is cached until policy or the subject changes. All fields but who
// are guarded by RetainedStore.mu. nil is the owner of the server's messages, and of those stored before owners were
// recorded.
type RetainedOwner struct {
	owner   Owner
	records int

	checked   bool
	authority PublishAuthority // nil: nothing of it is delivered
	changes   int64            // counts changes of its authority
	removed   bool             // the subject was revoked, deleted or enrolled again: its messages are removed
}

// ownerBytes is the memory of an owner: itself, its authority, and its accounts.
const ownerBytes = 592

// identity returns the owner, the zero one for nil.
func (o *RetainedOwner) identity() Owner {
	if o == nil {
		return Owner{}
	}
	return o.owner
}

func (o *RetainedOwner) isRemoved() bool { return o != nil && o.removed }

// invalidate invalidates the decision about o.
func (o *RetainedOwner) invalidate() {
	o.checked, o.authority = false, nil
	o.changes++
}

// owners is all owners of one tenant. It is under RetainedStore.mu.
type owners struct {
	bySubject map[watchword.SubjectID][]*RetainedOwner // usually one
	peak      int                                      // most owners since the map was made
}

// acquire returns the owner of one more record.
func (s *owners) acquire(who Owner) *RetainedOwner {
	if who.Subject == "" {
		return nil
	}
	for _, o := range s.bySubject[who.Subject] {
		if o.owner == who {
			o.records++
			return o
		}
	}
	if s.bySubject == nil {
		s.bySubject = map[watchword.SubjectID][]*RetainedOwner{}
	}
	o := &RetainedOwner{owner: who, records: 1}
	s.bySubject[who.Subject] = append(s.bySubject[who.Subject], o)
	s.peak = max(s.peak, len(s.bySubject))
	return o
}

// release takes one record from an owner.
func (s *owners) release(o *RetainedOwner) {
	if o == nil {
		return
	}
	if o.records--; o.records > 0 {
		return
	}
	rest := slices.DeleteFunc(s.bySubject[o.owner.Subject], func(x *RetainedOwner) bool { return x == o })
	if s.bySubject[o.owner.Subject] = rest; len(rest) == 0 {
		delete(s.bySubject, o.owner.Subject)
		if s.peak > 64 && len(s.bySubject) < s.peak/2 { // Go maps do not shrink
			s.bySubject, s.peak = maps.Collect(maps.All(s.bySubject)), len(s.bySubject)
		}
	}
}

// mayDeliver reports whether o may publish to topic today; known, whether that is decided.
func (o *RetainedOwner) mayDeliver(topic []byte) (may, known bool) {
	if o == nil {
		return true, true
	}
	return o.authority != nil && o.authority.MayPublish(string(topic)), o.checked || o.removed
}

// CheckOwner asks what of an owner may be given today, where that is not known: then it is, unless something changed
// meanwhile. Code: that of authorityOf.
func (r *RetainedStore) CheckOwner(ctx context.Context, o *RetainedOwner, authorityOf OwnerAuthority) error {
	r.mu.RLock()
	decided, changes := o.checked || o.removed, o.changes
	r.mu.RUnlock()
	if decided {
		return nil
	}
	lockrank.Block()
	a, err := authorityOf(ctx, o.owner)
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.changes != changes {
		return nil
	}
	switch watchword.CodeOf(err) {
	case "", watchword.SubjectSuspended, watchword.SubjectNew:
		o.checked, o.authority = true, a
	case watchword.SubjectRevoked, watchword.TokenRevoked:
		o.removed = true
		select {
		case r.quota.ownersRemoved <- struct{}{}:
		default: // it has a value already
		}
	default:
		return err
	}
	return nil
}

// OwnerChanged is called for each change of a subject's authority ("": of all, since policy changed): once it returns, no
// message is delivered that its owner may no longer publish. It returns the owners of that subject.
func (r *RetainedStore) OwnerChanged(id watchword.SubjectID) (some []*RetainedOwner) {
	r.mu.Lock() // waits for deliveries in progress
	defer r.mu.Unlock()
	if id == "" {
		for _, list := range r.owners.bySubject {
			for _, o := range list {
				o.invalidate()
			}
		}
		return nil
	}
	for _, o := range r.owners.bySubject[id] {
		o.invalidate()
		some = append(some, o)
	}
	return some
}

// UncheckedOwners returns the owners with unknown authority: at the start, after a change of policy, and if it could not be
// read.
func (r *RetainedStore) UncheckedOwners() (some []*RetainedOwner) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, list := range r.owners.bySubject {
		for _, o := range list {
			if !o.checked && !o.removed {
				some = append(some, o)
			}
		}
	}
	return some
}

// HasRemovedOwners reports whether there are retained messages of owners that are gone.
func (r *RetainedStore) HasRemovedOwners() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, list := range r.owners.bySubject {
		if slices.ContainsFunc(list, (*RetainedOwner).isRemoved) {
			return true
		}
	}
	return false
}

// Owner returns the owner's identity.
func (o *RetainedOwner) Owner() Owner { return o.identity() }
