package mqtt

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/session"
)

// retainedOwner is a subject, in one of its lives, that has retained messages. Nobody shows
// a token for them any more, so today's policy decides whether they are given; that is
// asked once and holds until policy or the subject changes. All but who is under
// retained.mu. nil owns what the server made, and what was stored before owners were kept.
type retainedOwner struct {
	id      owner
	records int

	decided   bool
	authority *session.Authority // nil where nothing of it is given
	changes   int64              // of what decides, as they were told
	removed   bool               // the subject is revoked or deleted, or lives anew: nothing of it comes back
}

// ownerBytes is what an owner takes of memory: itself, its authority, and its accounts.
const ownerBytes = 544

// ownerID returns the owner, the zero one for nil.
func (o *retainedOwner) ownerID() owner {
	if o == nil {
		return owner{}
	}
	return o.id
}

func (o *retainedOwner) isRemoved() bool { return o != nil && o.removed }

// changed has it asked again what of o may be given.
func (o *retainedOwner) changed() {
	o.decided, o.authority = false, nil
	o.changes++
}

// retainedOwners is all owners in one world. It is under retained.mu.
type retainedOwners struct {
	bySubject map[watchword.SubjectID][]*retainedOwner // one as a rule
	peak      int                                      // how many there were since of was made
}

// acquire returns the owner of one more record.
func (s *retainedOwners) acquire(who owner) *retainedOwner {
	if who.subject == "" {
		return nil
	}
	for _, o := range s.bySubject[who.subject] {
		if o.id == who {
			o.records++
			return o
		}
	}
	if s.bySubject == nil {
		s.bySubject = map[watchword.SubjectID][]*retainedOwner{}
	}
	o := &retainedOwner{id: who, records: 1}
	s.bySubject[who.subject] = append(s.bySubject[who.subject], o)
	s.peak = max(s.peak, len(s.bySubject))
	return o
}

// release takes one record from an owner.
func (s *retainedOwners) release(o *retainedOwner) {
	if o == nil {
		return
	}
	if o.records--; o.records > 0 {
		return
	}
	rest := slices.DeleteFunc(s.bySubject[o.id.subject], func(x *retainedOwner) bool { return x == o })
	if s.bySubject[o.id.subject] = rest; len(rest) == 0 {
		delete(s.bySubject, o.id.subject)
		if s.peak > 64 && len(s.bySubject) < s.peak/2 { // a map does not shrink by itself
			s.bySubject, s.peak = maps.Collect(maps.All(s.bySubject)), len(s.bySubject)
		}
	}
}

// mayDeliver reports whether o may publish to topic today; known, whether that is decided.
func (o *retainedOwner) mayDeliver(topic string) (may, known bool) {
	if o == nil {
		return true, true
	}
	return o.authority != nil && decidePublish(o.authority, topic).decision.Allowed, o.decided || o.removed
}

// decideOwner asks what of o may be given today, where that is not known: then it is, unless
// something changed meanwhile. Code: that of a store that cannot be asked.
func (b *Broker) decideOwner(ctx context.Context, tn *tenant, o *retainedOwner) error {
	r := &tn.retained
	r.mu.RLock()
	decided, changes := o.decided || o.removed, o.changes
	r.mu.RUnlock()
	if decided {
		return nil
	}
	lockrank.Block()
	a, err := b.deps.Guard.OfflineAuthority(ctx, tn.id, o.id.subject, o.id.incarnation)
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.changes != changes {
		return nil
	}
	switch watchword.CodeOf(err) {
	case "", watchword.SubjectSuspended, watchword.SubjectNew:
		o.decided, o.authority = true, a
	case watchword.SubjectRevoked, watchword.TokenRevoked:
		o.removed = true
		b.retainedPurge.wakeUp()
	default:
		return err
	}
	return nil
}

// authorityChanged is the guard's: before it returns, nobody is given anything more that
// an owner may no longer publish. id is empty where policy changed.
func (b *Broker) authorityChanged(t watchword.TenantID, id watchword.SubjectID) {
	tn := b.tenant(t)
	r := &tn.retained
	r.mu.Lock() // waits for who is giving
	defer r.mu.Unlock()
	if id == "" {
		for _, some := range r.owners.bySubject {
			for _, o := range some {
				o.changed()
			}
		}
		return
	}
	for _, o := range r.owners.bySubject[id] {
		o.changed()
		b.retainedPurge.enqueue(tn, o)
	}
}

// retainedPurge finds owners of whom nothing may come back, and takes away what they retained.
type retainedPurge struct {
	wake chan struct{}

	mu      lockrank.Mutex[purgeLock]
	pending []purgeCandidate // owners of whom it is to be asked
}

type purgeCandidate struct {
	world *tenant
	owner *retainedOwner
}

func (p *retainedPurge) enqueue(tn *tenant, some ...*retainedOwner) {
	p.mu.Lock()
	for _, o := range some {
		p.pending = append(p.pending, purgeCandidate{tn, o})
	}
	p.mu.Unlock()
	p.wakeUp()
}

func (p *retainedPurge) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *retainedPurge) takePending() []purgeCandidate {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.pending
	p.pending = nil
	return asked
}

// purgeRetained does so until the broker ends.
func (b *Broker) purgeRetained() {
	for {
		select {
		case <-b.retainedPurge.wake:
		case <-b.ctx.Done():
			return
		}
		for _, d := range b.retainedPurge.takePending() {
			if err := b.decideOwner(b.ctx, d.world, d.owner); err != nil && b.ctx.Err() == nil {
				b.options.Log.Warn("the owner of retained messages cannot be asked for", slog.String("subject", string(d.owner.id.subject)), slog.Any("err", err))
			}
		}
		for _, tn := range b.allTenants() {
			if tn.retained.owners.anyRemoved(&tn.retained.mu) {
				b.forgetRetained(tn, func(x *retainedRecord) bool { return x.owner.isRemoved() })
			}
		}
	}
}

func (s *retainedOwners) anyRemoved(mu *lockrank.RWMutex[retainedLock]) bool {
	mu.RLock()
	defer mu.RUnlock()
	for _, some := range s.bySubject {
		if slices.ContainsFunc(some, (*retainedOwner).isRemoved) {
			return true
		}
	}
	return false
}

// enqueueUndecided has those owners asked for of whom nothing is known: at the start, after a
// change of policy, and where the store could not be asked.
func (b *Broker) enqueueUndecided(tn *tenant) {
	r := &tn.retained
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, some := range r.owners.bySubject {
		for _, o := range some {
			if !o.decided && !o.removed {
				b.retainedPurge.enqueue(tn, o)
			}
		}
	}
}
