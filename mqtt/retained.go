package mqtt

import (
	"maps"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/shelf"
)

// retainQuota counts retained messages of all worlds: what each subject has, and what
// all have together.
type retainQuota struct {
	messages *quota.Ledger[quota.Key]
	bytes    *quota.Ledger[quota.Key] // of memory
}

func newRetainQuota(o *Options) *retainQuota {
	of := func(unit string, subject, total int) *quota.Ledger[quota.Key] {
		return quota.New[quota.Key](quota.Resource{
			Name: "retained messages", Unit: unit,
			Subject: quota.Bound{Max: int64(subject), Name: "limits.subject_retained_" + unit},
			Total:   quota.Bound{Max: int64(total), Name: "limits.retained_" + unit},
		})
	}
	return &retainQuota{of("messages", o.SubjectRetainedMessages, o.RetainedMessages), of("bytes", o.SubjectRetainedBytes, o.RetainedBytes)}
}

// retained is the retained messages of one world. Who gives one out holds mu for reading
// until it is queued, and who sets one holds it for writing before it is routed: so
// nobody hears an older message after a newer one.
type retained struct {
	tenant watchword.TenantID
	quota  *retainQuota

	mu      lockrank.RWMutex[retainedLock]
	records records
	number  int64 // of the last one that was set
	owners  owners
}

// retainKey is one topic whose retained message is to be written, and in whose account
// it is until then.
type retainKey struct {
	world *world
	topic string
	by    watchword.SubjectID
}

// bytes is what it takes until it is written.
func (k retainKey) bytes() int64 { return pendingBytes + int64(len(k.topic)) }

// pendingBytes is what a topic whose retained message is to be written takes beside its name.
const pendingBytes = 128

func (k retainKey) account() quota.Key { return accountOf(k.world.tenant, k.by) }

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
func (r *retained) set(m *message, who owner) (undo func(), err error) {
	var now *record
	if len(m.payload) > 0 {
		now = newRecord(&message{topic: m.topic, payload: m.payload, qos: m.qos, retain: true, props: m.props, ends: m.ends})
	}
	topic := []byte(m.topic)
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.records.find(topic)
	if old == nil && now == nil {
		// It is written all the same: that it was removed before may not be on the disk.
		by, n := accountOf(r.tenant, who.subject), retainKey{topic: m.topic}.bytes()
		if err := r.quota.bytes.Take(by, n); err != nil {
			return nil, err
		}
		r.quota.bytes.Give(by, n) // the journal counts it
		return func() {}, nil
	}
	if now != nil {
		if now.owner = r.owners.take(who); now.owner.isDead() {
			r.owners.drop(now.owner)
			return nil, watchword.Refuse(watchword.SubjectRevoked, "the subject %q is gone", who.subject)
		}
		if err := r.count(old, now, true); err != nil {
			r.owners.drop(now.owner)
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
		if old != nil && (old.undone || old.owner.isDead()) {
			back = nil
		}
		if back != nil {
			back.owner = r.owners.take(back.owner.whose())
		}
		_ = r.count(now, back, false) // never refused: it does not ask
		r.replace(now, back)
	}, nil
}

// count moves what is counted from the account of old to that of now, of which either may
// be nil; now's owner is taken already, so that an owner of both has two records. mu is
// held.
func (r *retained) count(old, now *record, bounded bool) error {
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
		r.quota.messages.Give(from, had)
		r.quota.bytes.Give(from, hadBytes)
		r.quota.messages.Add(to, has)
		r.quota.bytes.Add(to, hasBytes)
		return nil
	}
	if err := r.quota.messages.Move(from, had, to, has); err != nil {
		return err
	}
	if err := r.quota.bytes.Move(from, hadBytes, to, hasBytes); err != nil {
		r.quota.messages.Give(to, has)
		r.quota.messages.Add(from, had)
		return err
	}
	return nil
}

func (r *retained) accountOf(x *record) quota.Key {
	if x == nil {
		return quota.Key{}
	}
	return accountOf(r.tenant, x.owner.whose().subject)
}

// replace puts now in the place of old, of which either may be nil, and gives up old's
// owner. mu is held.
func (r *retained) replace(old, now *record) {
	if old != nil {
		old.gone = true
		r.owners.drop(old.owner)
	}
	switch {
	case now == nil:
		r.records.remove(old)
		return
	case now.number == 0:
		r.number++
		now.number = r.number
	}
	now.gone = false
	r.records.put(now)
}

// load takes in m, which is a row of the store, whatever the bounds say.
func (r *retained) load(m *message, row shelf.Retained) {
	x := recordOf(row.Packet, m.ends)
	r.mu.Lock()
	defer r.mu.Unlock()
	x.owner = r.owners.take(owner{row.Subject, row.Incarnation})
	_ = r.count(nil, x, false) // never refused: it does not ask
	r.replace(nil, x)
}

// forget takes out what f says of those that are there, in steps, and calls done with the
// topics of each.
func (r *retained) forget(f func(*record) bool, done func(topics []string)) {
	const step = 1024
	for after := []byte(nil); ; {
		var some []*record
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

func (r *retained) removeAll(some []*record) (topics []string) {
	if len(some) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range some {
		if !x.gone {
			_ = r.count(x, nil, false) // never refused: it does not ask
			r.replace(x, nil)
			topics = append(topics, string(x.topic()))
		}
	}
	return topics
}

// latest is the number of the last message that was set.
func (r *retained) latest() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.number
}

// page returns what is retained by an owner ("": by any) for topics of a filter ("": for
// all) that come after one, n at most, and where to go on; nil where there is nothing
// more. It may be short, or empty, before the end: others do not wait for long.
func (r *retained) page(filter string, by watchword.SubjectID, after []byte, n int, now time.Time) (out []*record, last []byte) {
	const looked = 4096
	nano := now.UnixNano()
	r.mu.RLock()
	defer r.mu.RUnlock()
	last = r.records.scan(filter, after, looked, func(x *record) bool {
		if !x.expired(nano) && (by == "" || x.owner.whose().subject == by) {
			out = append(out, x)
		}
		return len(out) < n
	})
	return out, slices.Clone(last)
}

// row is what is to be written of a topic now.
func (r *retained) row(k retainKey) shelf.Retained {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := shelf.Retained{Tenant: k.world.tenant, Topic: k.topic}
	if x := r.records.find([]byte(k.topic)); x != nil {
		out.Packet, out.Expires = x.packet, unixNano(x.ends)
		who := x.owner.whose()
		out.Subject, out.Incarnation = who.subject, who.incarnation
	}
	return out
}

// sweepEvery is how often retained messages whose life has ended are looked for.
const sweepEvery = time.Minute

// sweep forgets them.
func (b *Broker) sweep() {
	for b.sleep(sweepEvery) {
		for _, w := range b.allWorlds() {
			now := b.options.Now().UnixNano()
			b.forgetRetained(w, func(x *record) bool { return x.expired(now) })
			b.undecided(w)
		}
	}
}

func (b *Broker) allWorlds() []*world {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.worlds))
}

// forgetRetained takes out of memory and store what f says of a world's retained messages,
// in steps.
func (b *Broker) forgetRetained(w *world, f func(*record) bool) {
	w.retained.forget(f, func(topics []string) {
		var at *commit
		for _, topic := range topics {
			at = b.journal.add(adding{retained: &retainKey{world: w, topic: topic}})
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
