package mqtt

import (
	"context"
	"log/slog"
	"slices"

	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqttstore"
	"github.com/watchword-iot/watchword/policy"
)

// Restore takes in what earlier lives of the server left behind: sessions with their
// subscriptions and messages, and retained messages. It is called once, before the
// first connection.
func (b *Broker) Restore(ctx context.Context) error {
	store := b.journal.store
	if store == nil {
		return nil
	}
	l := restorer{broker: b, clients: map[int64]*sessionState{}, inflight: map[int64][]mqttstore.Inflight{}}
	if err := store.Sessions(ctx, l.restoreSession, l.restoreMessage); err != nil {
		return err
	}
	if err := store.RetainedMessages(ctx, func(r mqttstore.Retained) error {
		m, err := decodeStored(r.Packet, r.Expires)
		if err != nil {
			return err
		}
		if !b.acceptsText(m.topic) {
			b.options.Log.WarnContext(ctx, "a retained message is not given: its topic holds control characters", slog.String("topic", clipLogText(m.topic)))
			return nil
		}
		b.tenant(r.Tenant).bus.Retained.Load(retainedOf(r.Packet, m.expiresAt), bus.Owner{Subject: r.Subject, Incarnation: r.Incarnation})
		return nil
	}); err != nil {
		return err
	}
	now := b.options.Now()
	if err := store.Wills(ctx, func(r mqttstore.Will) error { return b.wills.restore(r, now) }); err != nil {
		return err
	}
	for _, tn := range b.allTenants() {
		b.enqueueUndecided(tn)
	}
	// What nobody waits for any more goes before anything new comes: a number is never
	// used again while something names it.
	if err := store.WriteMQTT(ctx, mqttstore.Changes{DeletedMessages: l.finishedMessages}); err != nil {
		return err
	}
	b.clientSequence.Store(l.maxClientNumber)
	b.journal.nextMessageID = l.maxMessageID + 1
	l.start(ctx)
	return nil
}

// restorer is what [Broker.Restore] gathers.
type restorer struct {
	broker           *Broker
	clients          map[int64]*sessionState
	maxClientNumber  int64 // the highest that a client has, or had
	maxMessageID     int64 // the highest of a message
	finishedMessages []int64
	inflight         map[int64][]mqttstore.Inflight // what each had been sent and was not done with
}

func (l *restorer) restoreSession(s mqttstore.Session) error {
	b := l.broker
	p, err := mqttstore.ParseProgress(s.Progress)
	if err != nil {
		return err
	}
	tn := b.tenant(s.Tenant)
	if old := tn.clients[s.Client]; old != nil { // this one began in its place, and its end was not written any more
		delete(l.clients, old.number)
		old.endState()
	}
	st := &sessionState{broker: b, tenant: tn, number: s.ID, id: s.Client, owner: owner{s.Subject, s.Incarnation}, lastSeq: p.Next}
	st.load.Store(offlineLoad)
	st.persistent = &persistent{
		expiry: s.Expiry, generation: 1, offline: offline{since: s.DisconnectedAt},
		backlog: backlog{lastSent: p.Sent}, losses: losses{lost: p.Lost, dropped: p.Dropped, narrowed: p.Narrowed},
	}
	if s.DisconnectedAt.IsZero() { // it had its connection to the last
		st.persistent.offline.since, st.persistent.rowChanged.allChanged = b.options.Now(), true
	}
	for _, s := range p.Skipped {
		st.persistent.backlog.skipped.add(s.From, s.To)
	}
	for _, id := range p.Received {
		_ = st.reserveReceived(false) // never refused: it does not ask
		st.addReceived(id, nil)
	}
	for _, o := range p.Inflight {
		if o.Released {
			st.persistent.backlog.push(backlogEntry{seq: o.Seq, released: true, qos: 2})
			_ = st.countOffline(0, false) // never refused: it does not ask
		}
	}
	for _, x := range s.Subscriptions {
		_, filter, shared, err := policy.Share(x.Filter)
		if err != nil {
			return err
		}
		sub := newSubscription(st, x.Filter, filter)
		sub.qos, sub.noLocal, sub.retainAsPublished, sub.identifier = x.Options&3, x.Options&4 != 0, x.Options&8 != 0, x.Identifier
		_ = st.addSubscription(sub, shared, false) // never refused: it does not ask
	}
	st.persistent.rowChanged.filters = nil // what was loaded is in the store
	b.persistentCount.Add(1)
	st.tenant.putClient(st)
	l.clients[s.ID] = st
	l.maxClientNumber = max(l.maxClientNumber, s.ID)
	l.inflight[s.ID] = p.Inflight
	return nil
}

func (l *restorer) restoreMessage(m mqttstore.Message) error {
	l.maxMessageID = max(l.maxMessageID, m.ID)
	j := l.broker.journal
	k := &storedMessage{journal: j, id: m.ID, size: storedSize(m.Size), collected: true, counted: true}
	k.durable.Store(true)
	err := mqttstore.Receivers(m.Receivers, func(r mqttstore.Receiver) {
		l.maxClientNumber = max(l.maxClientNumber, r.Session)
		st := l.clients[r.Session]
		if st == nil || !l.isWaiting(r, st) {
			return
		}
		size := k.size + sizeOfIdentifiers(r.Identifiers)
		e := backlogEntry{stored: k, seq: r.Seq, size: uint32(size), qos: r.QoS, retain: r.Retain, group: st.tenant.findGroup(r.Group)}
		if r.Identifiers != nil {
			e.identifiers = &r.Identifiers
		}
		k.refs.Add(1)
		e.markGroupWaiting(st)
		st.persistent.backlog.push(e)
		_ = st.countOffline(size, false) // likewise
		st.lastSeq = max(st.lastSeq, r.Seq)
	})
	if k.refs.Load() == 0 {
		l.finishedMessages = append(l.finishedMessages, m.ID)
		return err
	}
	j.storedMessages.Add(1)
	j.storedBytes.Add(int64(k.size))
	return err
}

// isWaiting reports whether a session still waits for a message.
func (l *restorer) isWaiting(r mqttstore.Receiver, st *sessionState) bool {
	if r.Seq > st.persistent.backlog.lastSent {
		return !st.persistent.backlog.skipped.has(r.Seq)
	}
	return slices.ContainsFunc(l.inflight[r.Session], func(o mqttstore.Inflight) bool { return o.Seq == r.Seq && !o.Released })
}

// start starts the clocks of those who are away, and has the guard say what they may.
func (l *restorer) start(ctx context.Context) {
	all := make([]*sessionState, 0, len(l.clients))
	for _, st := range l.clients {
		st.mu.Lock()
		st.persistent.backlog.sort()
		st.startTimers(l.broker.options.Now())
		if st.persistent.rowChanged.allChanged {
			st.markChanged()
		}
		st.mu.Unlock()
		all = append(all, st)
	}
	l.broker.background.Go(func() {
		for _, st := range all {
			if ctx := l.broker.ctx; ctx.Err() == nil {
				st.watchOffline(ctx, 1)
			}
		}
		l.broker.wills.watchAll(l.broker.ctx)
	})
}
