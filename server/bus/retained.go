package bus

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
)

// retainedQuota counts retained messages of all tenants: what each subject has, and what
// all have together.
type retainedQuota struct {
	messages      *quota.Ledger[quota.Key]
	bytes         *quota.Ledger[quota.Key] // memory in bytes
	ownersRemoved chan struct{}            // see [Bus.OwnersRemoved]
}

func newRetainedQuota(o Options) *retainedQuota {
	of := func(unit string, subject, total int) *quota.Ledger[quota.Key] {
		return quota.New[quota.Key](quota.Resource{
			Name: "retained messages", Unit: unit,
			Subject: quota.Bound{Max: int64(subject), Name: "limits.subject_retained_" + unit},
			Total:   quota.Bound{Max: int64(total), Name: "limits.retained_" + unit},
		})
	}
	return &retainedQuota{
		of("messages", cmp.Or(o.SubjectRetainedMessages, 5000), cmp.Or(o.RetainedMessages, 1_000_000)),
		of("bytes", cmp.Or(o.SubjectRetainedBytes, 1<<20), cmp.Or(o.RetainedBytes, 256<<20)),
		make(chan struct{}, 1),
	}
}

// Retained returns how many retained messages there are, and the memory that they take, of all tenants.
func (b *Bus) Retained() (messages, bytes int64) {
	return b.retained.messages.Total(), b.retained.bytes.Total()
}

// OwnersRemoved has a value when owners of retained messages were found to be gone: what they retained is to be forgotten,
// see [RetainedStore.HasRemovedOwners].
func (b *Bus) OwnersRemoved() <-chan struct{} { return b.retained.ownersRemoved }

// ChargePendingWrite counts memory that a topic takes in the account of a subject ("": of the server) until its retained
// message is written; n below zero gives it back.
func (t *Tenant) ChargePendingWrite(subject watchword.SubjectID, topic string, written bool) {
	by, n := quota.KeyOf(t.id, subject), pendingBytes+int64(len(topic))
	if written {
		t.bus.retained.bytes.Release(by, n)
	} else {
		t.bus.retained.bytes.Add(by, n)
	}
}

// pendingBytes is what a topic whose retained message is to be written takes beside its name.
const pendingBytes = 128

// Retained is one retained message (MQTT 5.0 §3.3.1.3) as it is in memory: encoded by its transport, as a store has it
// too, with what is looked at without decoding it. A topic of many levels takes no more than its bytes.
type Retained struct {
	encoded []byte // its capacity is what it takes
	expires int64  // Unix time in nanoseconds; 0: never
	number  int64  // in the order in which retained messages were set
	owner   *RetainedOwner

	topicAt  uint8 // where the topic begins in encoded
	topicLen uint16
	removed  bool // it is not retained any more; under the store's mu
	refused  bool // its publish was refused after all; likewise
}

// retainedBytes is what a retained message takes beside its encoding: itself, and its place in the list, which is
// between half full and full.
const retainedBytes = 64 + 16

// NewRetained makes a retained message of its encoding, which it copies. The topic has topicLen bytes from topicAt on,
// which is below 256. expires is Unix time in nanoseconds, 0 for never.
func NewRetained(encoded []byte, topicAt, topicLen int, expires int64) *Retained {
	return &Retained{encoded: append([]byte(nil), encoded...), expires: expires, topicAt: uint8(topicAt), topicLen: uint16(topicLen)}
}

// Topic returns the topic, which must not be changed.
func (x *Retained) Topic() []byte { return x.encoded[x.topicAt:][:x.topicLen] }

// TopicEnd returns where the topic ends in the encoding.
func (x *Retained) TopicEnd() int { return int(x.topicAt) + int(x.topicLen) }

// Encoded returns the encoding, which must not be changed.
func (x *Retained) Encoded() []byte { return x.encoded }

// Expires returns the end of its life as Unix time in nanoseconds, 0 for never.
func (x *Retained) Expires() int64 { return x.expires }

// Bytes is what it takes of memory.
func (x *Retained) Bytes() int64 { return retainedBytes + int64(cap(x.encoded)) }

// Expired reports whether its life has ended at a moment in nanoseconds of Unix time.
func (x *Retained) Expired(nano int64) bool { return x.expires != 0 && nano >= x.expires }

// OwnerRemoved reports whether its owner is revoked or deleted. It is for the condition of [RetainedStore.Forget].
func (x *Retained) OwnerRemoved() bool { return x.owner.isRemoved() }

// RetainedStore has the retained messages of one tenant. Delivering one to a subscriber holds mu for reading until it is
// queued, and setting one holds mu for writing before it is published: so no subscriber gets an older message after a newer
// one.
type RetainedStore struct {
	tenant watchword.TenantID
	quota  *retainedQuota

	mu      lockrank.RWMutex[retainedLock]
	records records
	number  int64 // number of the last message that was set
	owners  owners
}

// set replaces the retained message of name with now, published by who; nil removes it (MQTT 5.0 §3.3.1.3). undo restores
// the previous one, unless another was set meanwhile. Code: busy, if the subject or the server has no room for it;
// subject_revoked.
func (r *RetainedStore) set(name string, now *Retained, who Owner) (undo func(), err error) {
	topic := []byte(name)
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.records.find(topic)
	if old == nil && now == nil {
		// It is written all the same: an earlier removal may not be committed yet.
		by, n := quota.KeyOf(r.tenant, who.Subject), pendingBytes+int64(len(topic))
		if err := r.quota.bytes.Reserve(by, n); err != nil {
			return nil, err
		}
		r.quota.bytes.Release(by, n) // see ChargePendingWrite
		return func() {}, nil
	}
	if now != nil {
		if now.owner = r.owners.acquire(who); now.owner.isRemoved() {
			r.owners.release(now.owner)
			return nil, watchword.Refuse(watchword.SubjectRevoked, "subject %q was deleted", who.Subject)
		}
		if err := r.moveCharge(old, now, true); err != nil {
			r.owners.release(now.owner)
			return nil, err
		}
	} else {
		_ = r.moveCharge(old, nil, false) // never refused without limits
	}
	r.replace(old, now)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if now != nil {
			now.refused = true
		}
		if r.records.find(topic) != now {
			return // another one was set meanwhile
		}
		back := old
		if old != nil && (old.refused || old.owner.isRemoved()) {
			back = nil
		}
		if back != nil {
			back.owner = r.owners.acquire(back.owner.identity())
		}
		_ = r.moveCharge(now, back, false) // never refused without limits
		r.replace(now, back)
	}, nil
}

// moveCharge moves the charge from the account of old to that of now; either may be nil. now's owner is
// acquired already, so an owner of both has two records. mu is held.
func (r *RetainedStore) moveCharge(old, now *Retained, bounded bool) error {
	from, to := r.accountOf(old), r.accountOf(now)
	var had, has, hadBytes, hasBytes int64
	if old != nil {
		had, hadBytes = 1, old.Bytes()
		if old.owner != nil && old.owner.records == 1 {
			hadBytes += ownerBytes
		}
	}
	if now != nil {
		has, hasBytes = 1, now.Bytes()
		if now.owner != nil && now.owner.records == 1 {
			hasBytes += ownerBytes
		}
	}
	if !bounded {
		r.quota.messages.Release(from, had)
		r.quota.bytes.Release(from, hadBytes)
		r.quota.messages.Add(to, has)
		r.quota.bytes.Add(to, hasBytes)
		return nil
	}
	if err := r.quota.messages.Move(from, had, to, has); err != nil {
		return err
	}
	if err := r.quota.bytes.Move(from, hadBytes, to, hasBytes); err != nil {
		r.quota.messages.Release(to, has)
		r.quota.messages.Add(from, had)
		return err
	}
	return nil
}

func (r *RetainedStore) accountOf(x *Retained) quota.Key {
	if x == nil {
		return quota.Key{}
	}
	return quota.KeyOf(r.tenant, x.owner.identity().Subject)
}

// replace replaces old by now, either of which may be nil, and releases old's owner. mu is held.
func (r *RetainedStore) replace(old, now *Retained) {
	if old != nil {
		old.removed = true
		r.owners.release(old.owner)
	}
	switch {
	case now == nil:
		r.records.remove(old)
		return
	case now.number == 0:
		r.number++
		now.number = r.number
	}
	now.removed = false
	r.records.put(now)
}

// Load takes in x, which a store has for an owner, whatever the limits are.
func (r *RetainedStore) Load(x *Retained, who Owner) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x.owner = r.owners.acquire(who)
	_ = r.moveCharge(nil, x, false) // never refused without limits
	r.replace(nil, x)
}

// Forget takes out what f says of those that are there, in steps, and calls done with the
// topics of each.
func (r *RetainedStore) Forget(f func(*Retained) bool, done func(topics []string)) {
	const step = 1024
	for after := []byte(nil); ; {
		var some []*Retained
		last := after
		r.mu.RLock()
		p, found := r.records.seek(after)
		if found {
			p = r.records.after(p)
		}
		n := 0
		for ; n < step; n++ {
			x := r.records.at(p)
			if x == nil {
				break
			}
			if last = x.Topic(); f(x) {
				some = append(some, x)
			}
			p = r.records.after(p)
		}
		after = slices.Clone(last)
		r.mu.RUnlock()
		if topics := r.removeAll(some); len(topics) > 0 {
			done(topics)
		}
		if n < step {
			return
		}
	}
}

func (r *RetainedStore) removeAll(some []*Retained) (topics []string) {
	if len(some) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range some {
		if !x.removed {
			_ = r.moveCharge(x, nil, false) // never refused without limits
			r.replace(x, nil)
			topics = append(topics, string(x.Topic()))
		}
	}
	return topics
}

// LastNumber is the number of the last message that was set.
func (r *RetainedStore) LastNumber() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.number
}

// Page returns what is retained by an owner ("": by any) for topics of a filter ("": for
// all) that come after one, n at most, and where to go on; nil where there is nothing
// more. It may be short, or empty, before the end: others do not wait for long.
func (r *RetainedStore) Page(filter string, by watchword.SubjectID, after []byte, n int, now time.Time) (out []*Retained, last []byte) {
	const looked = 4096
	nano := now.UnixNano()
	r.mu.RLock()
	defer r.mu.RUnlock()
	last = r.records.scan(filter, after, looked, func(x *Retained) bool {
		if !x.Expired(nano) && (by == "" || x.owner.identity().Subject == by) {
			out = append(out, x)
		}
		return len(out) < n
	})
	return out, slices.Clone(last)
}

// StoredForm returns what is to be written of a topic now: encoded is nil where nothing is retained for it.
func (r *RetainedStore) StoredForm(topic string) (encoded []byte, expires int64, who Owner) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if x := r.records.find([]byte(topic)); x != nil {
		return x.encoded, x.expires, x.owner.identity()
	}
	return nil, 0, Owner{}
}

// Message returns what is retained for a topic, nil for nothing.
func (r *RetainedStore) Message(topic string, now time.Time) *Retained {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if x := r.records.find([]byte(topic)); x != nil && !x.Expired(now.UnixNano()) {
		return x
	}
	return nil
}

// Delete removes what is retained for a topic.
func (r *RetainedStore) Delete(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.records.find([]byte(topic)); x != nil {
		_ = r.moveCharge(x, nil, false) // never refused without limits
		r.replace(x, nil)
	}
}

// DeliverIfAllowed calls offer, which queues x for a subscriber and does not wait, if the owner of x may publish it at this moment,
// and unless another took its place, or it was set after the one of number latest: that came to the subscriber by
// its subscription, or is about to. Nor is it called if the authority of s does not allow it now. Code:
// that of authorityOf.
func (r *RetainedStore) DeliverIfAllowed(ctx context.Context, x *Retained, s *Subscription, latest int64, authorityOf OwnerAuthority, offer func()) error {
	for {
		r.mu.RLock()
		owner := x.owner
		may, known := owner.mayDeliver(x.Topic())
		if x.removed || x.number > latest {
			may, known = false, true
		}
		if may && s.mayRead() {
			offer()
		}
		r.mu.RUnlock()
		if known {
			return nil
		}
		if err := r.CheckOwner(ctx, owner, authorityOf); err != nil {
			return err
		}
	}
}

// IsDeliverable returns the owner of x, and whether new subscribers are given it. Code: that of authorityOf.
func (r *RetainedStore) IsDeliverable(ctx context.Context, x *Retained, authorityOf OwnerAuthority) (who Owner, given bool, err error) {
	for {
		r.mu.RLock()
		owner := x.owner
		given, known := owner.mayDeliver(x.Topic())
		r.mu.RUnlock()
		if known {
			return owner.identity(), given, nil
		}
		if err := r.CheckOwner(ctx, owner, authorityOf); err != nil {
			return owner.identity(), false, err
		}
	}
}
