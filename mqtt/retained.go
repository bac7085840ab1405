package mqtt

import (
	"maps"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/mqttstore"
)

// retainedQuota counts retained messages of all worlds: what each subject has, and what
// all have together.
type retainedQuota struct {
	messages *quota.Ledger[quota.Key]
	bytes    *quota.Ledger[quota.Key] // of memory
}

func newRetainedQuota(o *Options) *retainedQuota {
	of := func(unit string, subject, total int) *quota.Ledger[quota.Key] {
		return quota.New[quota.Key](quota.Resource{
			Name: "retained messages", Unit: unit,
			Subject: quota.Bound{Max: int64(subject), Name: "limits.subject_retained_" + unit},
			Total:   quota.Bound{Max: int64(total), Name: "limits.retained_" + unit},
		})
	}
	return &retainedQuota{of("messages", o.SubjectRetainedMessages, o.RetainedMessages), of("bytes", o.SubjectRetainedBytes, o.RetainedBytes)}
}

// retainedStore is the retained messages of one world. Who gives one out holds mu for reading
// until it is queued, and who sets one holds it for writing before it is routed: so
// nobody hears an older message after a newer one.
type retainedStore struct {
	tenant watchword.TenantID
	quota  *retainedQuota

	mu         lockrank.RWMutex[retainedLock]
	records    retainedIndex
	lastNumber int64 // of the last one that was set
	owners     retainedOwners
}

// retainedKey is one topic whose retained message is to be written, and in whose account
// it is until then.
type retainedKey struct {
	tenant  *tenant
	topic   string
	subject watchword.SubjectID
}

// bytes is what it takes until it is written.
func (k retainedKey) bytes() int64 { return retainedPendingBytes + int64(len(k.topic)) }

// retainedPendingBytes is what a topic whose retained message is to be written takes beside its name.
const retainedPendingBytes = 128

func (k retainedKey) account() quota.Key { return accountOf(k.tenant.id, k.subject) }

// accountOf returns the account of a subject; that of the server for none.
func accountOf(t watchword.TenantID, id watchword.SubjectID) quota.Key {
	if id == "" {
		return quota.Key{}
	}
	return quota.Key{Tenant: t, Subject: id}
}

// set puts m, which who publishes, in the place of the retained message of its topic; an
// empty payload removes it (MQTT 5.0 §3.3.1.3). undo puts what was there before in its
// place again, unless another came meanwhile. Code: busy, where the subject or the server
// has no room for it.
func (r *retainedStore) set(m *message, who owner) (undo func(), err error) {
	var now *retainedRecord
	if len(m.payload) > 0 {
		now = newRecord(&message{topic: m.topic, payload: m.payload, qos: m.qos, retain: true, props: m.props, expiresAt: m.expiresAt})
	}
	topic := []byte(m.topic)
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.records.find(topic)
	if old == nil && now == nil {
		// It is written all the same: that it was removed before may not be on the disk.
		by, n := accountOf(r.tenant, who.subject), retainedKey{topic: m.topic}.bytes()
		if err := r.quota.bytes.Reserve(by, n); err != nil {
			return nil, err
		}
		r.quota.bytes.Release(by, n) // the journal counts it
		return func() {}, nil
	}
	if now != nil {
		if now.owner = r.owners.acquire(who); now.owner.isRemoved() {
			r.owners.release(now.owner)
			return nil, watchword.Refuse(watchword.SubjectRevoked, "the subject %q is gone", who.subject)
		}
		if err := r.count(old, now, true); err != nil {
			r.owners.release(now.owner)
			return nil, err
		}
	} else {
		_ = r.count(old, nil, false) // never refused: it does not ask
	}
	r.replace(old, now)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if now != nil {
			now.undone = true
		}
		if r.records.find(topic) != now {
			return // another came meanwhile
		}
		back := old
		if old != nil && (old.undone || old.owner.isRemoved()) {
			back = nil
		}
		if back != nil {
			back.owner = r.owners.acquire(back.owner.ownerID())
		}
		_ = r.count(now, back, false) // never refused: it does not ask
		r.replace(now, back)
	}, nil
}

// count moves what is counted from the account of old to that of now, of which either may
// be nil; now's owner is taken already, so that an owner of both has two records. mu is
// held.
func (r *retainedStore) count(old, now *retainedRecord, bounded bool) error {
	from, to := r.accountOf(old), r.accountOf(now)
	var had, has, hadBytes, hasBytes int64
	if old != nil {
		had, hadBytes = 1, old.bytes()
		if old.owner != nil && old.owner.records == 1 {
			hadBytes += ownerBytes
		}
	}
	if now != nil {
		has, hasBytes = 1, now.bytes()
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

func (r *retainedStore) accountOf(x *retainedRecord) quota.Key {
	if x == nil {
		return quota.Key{}
	}
	return accountOf(r.tenant, x.owner.ownerID().subject)
}

// replace puts now in the place of old, of which either may be nil, and gives up old's
// owner. mu is held.
func (r *retainedStore) replace(old, now *retainedRecord) {
	if old != nil {
		old.removed = true
		r.owners.release(old.owner)
	}
	switch {
	case now == nil:
		r.records.remove(old)
		return
	case now.number == 0:
		r.lastNumber++
		now.number = r.lastNumber
	}
	now.removed = false
	r.records.put(now)
}

// load takes in m, which is a row of the store, whatever the bounds say.
func (r *retainedStore) load(m *message, row mqttstore.Retained) {
	x := recordOf(row.Packet, m.expiresAt)
	r.mu.Lock()
	defer r.mu.Unlock()
	x.owner = r.owners.acquire(owner{row.Subject, row.Incarnation})
	_ = r.count(nil, x, false) // never refused: it does not ask
	r.replace(nil, x)
}

// removeMatching takes out what f says of those that are there, in steps, and calls done with the
// topics of each.
func (r *retainedStore) removeMatching(f func(*retainedRecord) bool, done func(topics []string)) {
	const step = 1024
	for after := []byte(nil); ; {
		var some []*retainedRecord
		last := after
		r.mu.RLock()
		p, found := r.records.seek(after)
		if found {
			p = r.records.after(p)
		}
		n := 0
		for ; n < step; n++ {
			x := r.records.recordAt(p)
			if x == nil {
				break
			}
			if last = x.topic(); f(x) {
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

func (r *retainedStore) removeAll(some []*retainedRecord) (topics []string) {
	if len(some) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range some {
		if !x.removed {
			_ = r.count(x, nil, false) // never refused: it does not ask
			r.replace(x, nil)
			topics = append(topics, string(x.topic()))
		}
	}
	return topics
}

// lastSet is the number of the last message that was set.
func (r *retainedStore) lastSet() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.lastNumber
}

// page returns what is retained by an owner ("": by any) for topics of a filter ("": for
// all) that come after one, n at most, and where to go on; nil where there is nothing
// more. It may be short, or empty, before the end: others do not wait for long.
func (r *retainedStore) page(filter string, by watchword.SubjectID, after []byte, n int, now time.Time) (out []*retainedRecord, last []byte) {
	const looked = 4096
	nano := now.UnixNano()
	r.mu.RLock()
	defer r.mu.RUnlock()
	last = r.records.scan(filter, after, looked, func(x *retainedRecord) bool {
		if !x.expired(nano) && (by == "" || x.owner.ownerID().subject == by) {
			out = append(out, x)
		}
		return len(out) < n
	})
	return out, slices.Clone(last)
}

// row is what is to be written of a topic now.
func (r *retainedStore) row(k retainedKey) mqttstore.Retained {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := mqttstore.Retained{Tenant: k.tenant.id, Topic: k.topic}
	if x := r.records.find([]byte(k.topic)); x != nil {
		out.Packet, out.Expires = x.packet, unixNano(x.expiresAt)
		owner := x.owner.ownerID()
		out.Subject, out.Incarnation = owner.subject, owner.incarnation
	}
	return out
}

// retainedSweepInterval is how often retained messages whose life has ended are looked for.
const retainedSweepInterval = time.Minute

// sweepRetained forgets them.
func (b *Broker) sweepRetained() {
	for b.sleep(retainedSweepInterval) {
		for _, tn := range b.allTenants() {
			now := b.options.Now().UnixNano()
			b.forgetRetained(tn, func(x *retainedRecord) bool { return x.expired(now) })
			b.enqueueUndecided(tn)
		}
	}
}

func (b *Broker) allTenants() []*tenant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.tenants))
}

// forgetRetained takes out of memory and store what f says of a world's retained messages,
// in steps.
func (b *Broker) forgetRetained(tn *tenant, f func(*retainedRecord) bool) {
	tn.retained.removeMatching(f, func(topics []string) {
		var at *commit
		for _, topic := range topics {
			at = b.journal.add(change{retained: &retainedKey{tenant: tn, topic: topic}})
		}
		if at != nil {
			lockrank.Block()
			select {
			case <-at.ended:
			case <-b.ctx.Done():
			}
		}
	})
}
