package mqtt

import (
	"cmp"
	"context"
	"log/slog"
	"slices"

	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/shelf"
)

// Load takes in what earlier lives of the server left behind: sessions with their
// subscriptions and messages, and retained messages. It is called once, before the
// first connection.
func (b *Broker) Load(ctx context.Context) error {
	store := b.journal.store
	if store == nil {
		return nil
	}
	l := loading{broker: b, clients: map[int64]*sessionState{}, open: map[int64][]shelf.Open{}}
	if err := store.Shelf(ctx, l.session, l.message); err != nil {
		return err
	}
	if err := store.Retained(ctx, func(r shelf.Retained) error {
		m, err := unstored(r.Packet, r.Expires)
		if err != nil {
			return err
		}
		if !b.takes(m.topic) {
			b.options.Log.WarnContext(ctx, "a retained message is not given: its topic holds control characters", slog.String("topic", clip(m.topic)))
			return nil
		}
		b.world(r.Tenant).retained.load(m, r)
		return nil
	}); err != nil {
		return err
	}
	now := b.options.Now()
	if err := store.Wills(ctx, func(r shelf.Will) error { return b.wills.load(r, now) }); err != nil {
		return err
	}
	for _, w := range b.allWorlds() {
		b.undecided(w)
	}
	// What nobody waits for any more goes before anything new comes: a number is never
	// used again while something names it.
	if err := store.KeepOnShelf(ctx, shelf.Changes{Done: l.done}); err != nil {
		return err
	}
	b.sequence.Store(l.number)
	b.journal.next = l.id + 1
	l.settle(ctx)
	return nil
}

// loading is what [Broker.Load] gathers.
type loading struct {
	broker  *Broker
	clients map[int64]*sessionState
	number  int64 // the highest that a client has, or had
	id      int64 // the highest of a message
	done    []int64
	open    map[int64][]shelf.Open // what each had been sent and was not done with
}

func (l *loading) session(s shelf.Session) error {
	b := l.broker
	p, err := shelf.ParseProgress(s.Progress)
	if err != nil {
		return err
	}
	w := b.world(s.Tenant)
	if old := w.clients[s.Client]; old != nil { // this one began in its place, and its end was not written any more
		delete(l.clients, old.number)
		old.end()
	}
	st := &sessionState{broker: b, world: w, number: s.ID, id: s.Client, owner: owner{s.Subject, s.Incarnation}, seq: p.Next}
	st.load.Store(loadAway)
	st.lasting = &lasting{expiry: s.Expiry, left: s.Left, sent: p.Sent, lost: p.Lost, dropped: p.Dropped, narrow: p.Narrow, turn: 1}
	if s.Left.IsZero() { // it had its connection to the last
		st.lasting.left, st.lasting.row = b.options.Now(), true
	}
	for _, s := range p.Gone {
		st.lasting.gone.add(s.From, s.To)
	}
	for _, id := range p.Received {
		_ = st.roomForReceived(false) // never refused: it does not ask
		st.receive(id, nil)
	}
	for _, o := range p.Open {
		if o.Released {
			st.lasting.backlog = append(st.lasting.backlog, entry{seq: o.Seq, released: true, qos: 2})
			_ = st.waits(0, false) // never refused: it does not ask
		}
	}
	for _, x := range s.Subscriptions {
		_, filter, shared, err := policy.Share(x.Filter)
		if err != nil {
			return err
		}
		sub := newSubscription(st, x.Filter, filter)
		sub.qos, sub.noLocal, sub.asPublished, sub.identifier = x.Options&3, x.Options&4 != 0, x.Options&8 != 0, x.Identifier
		_ = st.stand(sub, shared, false) // never refused: it does not ask
	}
	st.lasting.changed = nil
	b.lasting.Add(1)
	st.world.put(st)
	l.clients[s.ID] = st
	l.number = max(l.number, s.ID)
	l.open[s.ID] = p.Open
	return nil
}

func (l *loading) message(m shelf.Message) error {
	l.id = max(l.id, m.ID)
	j := l.broker.journal
	k := &kept{journal: j, id: m.ID, size: sizeOfStored(m.Size), included: true, counted: true}
	k.durable.Store(true)
	err := shelf.Receivers(m.Receivers, func(r shelf.Receiver) {
		l.number = max(l.number, r.Session)
		st := l.clients[r.Session]
		if st == nil || !l.waits(r, st) {
			return
		}
		size := k.size + sizeOfIdentifiers(r.Identifiers)
		e := entry{k: k, seq: r.Seq, size: uint32(size), qos: r.QoS, retain: r.Retain, shared: st.world.groupOf(r.Group)}
		if r.Identifiers != nil {
			e.identifiers = &r.Identifiers
		}
		k.refs.Add(1)
		e.waitsForGroup(st)
		st.lasting.backlog = append(st.lasting.backlog, e)
		_ = st.waits(size, false) // likewise
		st.seq = max(st.seq, r.Seq)
	})
	if k.refs.Load() == 0 {
		l.done = append(l.done, m.ID)
		return err
	}
	j.count.Add(1)
	j.bytes.Add(int64(k.size))
	return err
}

// waits reports whether a session still waits for a message.
func (l *loading) waits(r shelf.Receiver, st *sessionState) bool {
	if r.Seq > st.lasting.sent {
		return !st.lasting.gone.has(r.Seq)
	}
	return slices.ContainsFunc(l.open[r.Session], func(o shelf.Open) bool { return o.Seq == r.Seq && !o.Released })
}

// settle starts the clocks of those who are away, and has the guard say what they may.
func (l *loading) settle(ctx context.Context) {
	all := make([]*sessionState, 0, len(l.clients))
	for _, st := range l.clients {
		st.mu.Lock()
		slices.SortFunc(st.lasting.backlog, func(a, b entry) int { return cmp.Compare(a.seq, b.seq) })
		st.arm(l.broker.options.Now())
		if st.lasting.row {
			st.touch()
		}
		st.mu.Unlock()
		all = append(all, st)
	}
	l.broker.upkeep.Go(func() {
		for _, st := range all {
			if ctx := l.broker.ctx; ctx.Err() == nil {
				st.watch(ctx, 1)
			}
		}
		l.broker.wills.watchAll(l.broker.ctx)
	})
}
