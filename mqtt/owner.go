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

// retainOwner is a subject, in one of its lives, that has retained messages. Nobody shows
// a token for them any more, so today's policy decides whether they are given; that is
// asked once and holds until policy or the subject changes. All but who is under
// retained.mu. nil owns what the server made, and what was stored before owners were kept.
type retainOwner struct {
	who     owner
	records int

	decided   bool
	authority *session.Authority // nil where nothing of it is given
	changes   int64              // of what decides, as they were told
	dead      bool               // the subject is revoked or deleted, or lives anew: nothing of it comes back
}

// ownerBytes is what an owner takes of memory: itself, its authority, and its accounts.
const ownerBytes = 544

// whose returns the owner, the zero one for nil.
func (o *retainOwner) whose() owner {
	if o == nil {
		return owner{}
	}
	return o.who
}

func (o *retainOwner) isDead() bool { return o != nil && o.dead }

// changed has it asked again what of o may be given.
func (o *retainOwner) changed() {
	o.decided, o.authority = false, nil
	o.changes++
}

// owners is all owners in one world. It is under retained.mu.
type owners struct {
	of   map[watchword.SubjectID][]*retainOwner // one as a rule
	most int                                    // how many there were since of was made
}

// take returns the owner of one more record.
func (s *owners) take(who owner) *retainOwner {
	if who.subject == "" {
		return nil
	}
	for _, o := range s.of[who.subject] {
		if o.who == who {
			o.records++
			return o
		}
	}
	if s.of == nil {
		s.of = map[watchword.SubjectID][]*retainOwner{}
	}
	o := &retainOwner{who: who, records: 1}
	s.of[who.subject] = append(s.of[who.subject], o)
	s.most = max(s.most, len(s.of))
	return o
}

// drop takes one record from an owner.
func (s *owners) drop(o *retainOwner) {
	if o == nil {
		return
	}
	if o.records--; o.records > 0 {
		return
	}
	rest := slices.DeleteFunc(s.of[o.who.subject], func(x *retainOwner) bool { return x == o })
	if s.of[o.who.subject] = rest; len(rest) == 0 {
		delete(s.of, o.who.subject)
		if s.most > 64 && len(s.of) < s.most/2 { // a map does not shrink by itself
			s.of, s.most = maps.Collect(maps.All(s.of)), len(s.of)
		}
	}
}

// mayBeGiven reports whether o may publish to topic today; known, whether that is decided.
func (o *retainOwner) mayBeGiven(topic string) (may, known bool) {
	if o == nil {
		return true, true
	}
	return o.authority != nil && judge(o.authority, topic).decision.Allowed, o.decided || o.dead
}

// decide asks what of o may be given today, where that is not known: then it is, unless
// something changed meanwhile. Code: that of a store that cannot be asked.
func (b *Broker) decide(ctx context.Context, w *world, o *retainOwner) error {
	r := &w.retained
	r.mu.RLock()
	decided, changes := o.decided || o.dead, o.changes
	r.mu.RUnlock()
	if decided {
		return nil
	}
	lockrank.Block()
	a, err := b.deps.Guard.Absent(ctx, w.tenant, o.who.subject, o.who.incarnation)
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.changes != changes {
		return nil
	}
	switch watchword.CodeOf(err) {
	case "", watchword.SubjectSuspended, watchword.SubjectNew:
		o.decided, o.authority = true, a
	case watchword.SubjectRevoked, watchword.TokenRevoked:
		o.dead = true
		b.purge.wakeUp()
	default:
		return err
	}
	return nil
}

// authorityChanged is the guard's: before it returns, nobody is given anything more that
// an owner may no longer publish. id is empty where policy changed.
func (b *Broker) authorityChanged(t watchword.TenantID, id watchword.SubjectID) {
	w := b.world(t)
	r := &w.retained
	r.mu.Lock() // waits for who is giving
	defer r.mu.Unlock()
	if id == "" {
		for _, some := range r.owners.of {
			for _, o := range some {
				o.changed()
			}
		}
		return
	}
	for _, o := range r.owners.of[id] {
		o.changed()
		b.purge.ask(w, o)
	}
}

// purge finds owners of whom nothing may come back, and takes away what they retained.
type purge struct {
	wake chan struct{}

	mu    lockrank.Mutex[purgeLock]
	asked []doubt // owners of whom it is to be asked
}

type doubt struct {
	world *world
	owner *retainOwner
}

func (p *purge) ask(w *world, some ...*retainOwner) {
	p.mu.Lock()
	for _, o := range some {
		p.asked = append(p.asked, doubt{w, o})
	}
	p.mu.Unlock()
	p.wakeUp()
}

func (p *purge) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *purge) take() []doubt {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.asked
	p.asked = nil
	return asked
}

// purgeRetained does so until the broker ends.
func (b *Broker) purgeRetained() {
	for {
		select {
		case <-b.purge.wake:
		case <-b.ctx.Done():
			return
		}
		for _, d := range b.purge.take() {
			if err := b.decide(b.ctx, d.world, d.owner); err != nil && b.ctx.Err() == nil {
				b.options.Log.Warn("the owner of retained messages cannot be asked for", slog.String("subject", string(d.owner.who.subject)), slog.Any("err", err))
			}
		}
		for _, w := range b.allWorlds() {
			if w.retained.owners.anyDead(&w.retained.mu) {
				b.forgetRetained(w, func(x *record) bool { return x.owner.isDead() })
			}
		}
	}
}

func (s *owners) anyDead(mu *lockrank.RWMutex[retainedLock]) bool {
	mu.RLock()
	defer mu.RUnlock()
	for _, some := range s.of {
		if slices.ContainsFunc(some, (*retainOwner).isDead) {
			return true
		}
	}
	return false
}

// undecided has those owners asked for of whom nothing is known: at the start, after a
// change of policy, and where the store could not be asked.
func (b *Broker) undecided(w *world) {
	r := &w.retained
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, some := range r.owners.of {
		for _, o := range some {
			if !o.decided && !o.dead {
				b.purge.ask(w, o)
			}
		}
	}
}
