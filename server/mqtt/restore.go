package mqtt

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/policy"
)

// Restore loads the state of earlier runs: sessions with subscriptions and messages, retained
// messages and wills. It is called once, before the first connection.
func (b *Broker) Restore(ctx context.Context) error {
	store := b.committer.store
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
			b.options.Log.WarnContext(ctx, "a retained message is not given: its topic holds control characters", slog.String("topic", truncate.LogText(m.topic)))
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
		b.enqueueUncheckedOwners(tn)
	}
	// Completed messages are deleted before new ones are stored, so that ids are never reused while
	// anything refers to them.
	if err := store.WriteMQTT(ctx, mqttstore.Changes{DeletedMessages: l.finishedMessages}); err != nil {
		return err
	}
	b.clientSequence.Store(l.maxClientNumber)
	b.committer.nextMessageID = l.maxMessageID + 1
	l.start(ctx)
	return nil
}

// restorer collects what [Broker.Restore] loads.
type restorer struct {
	broker           *Broker
	clients          map[int64]*sessionState
	maxClientNumber  int64 // highest client number
	maxMessageID     int64 // highest message id
	finishedMessages []int64
	inflight         map[int64][]mqttstore.Inflight // inflight messages of each session
}

func (l *restorer) restoreSession(s mqttstore.Session) error {
	b := l.broker
	p, err := mqttstore.ParseProgress(s.Progress)
	if err != nil {
		return err
	}
	tn := b.tenant(s.Tenant)
	if old := tn.clients[s.Client]; old != nil { // a newer session replaced it, and its deletion was not written
		delete(l.clients, old.number)
		old.endSession()
	}
	st := &sessionState{broker: b, tenant: tn, number: s.ID, id: s.Client, owner: owner{s.Subject, s.Incarnation}, lastSeq: p.Next}
	st.load.Store(bus.OfflineLoad)
	st.persistent = &persistent{
		expiry: s.Expiry, generation: 1, offline: offline{since: s.DisconnectedAt},
		backlog: backlog{lastSent: p.Sent}, losses: losses{lost: p.Lost, dropped: p.Dropped, narrowed: p.Narrowed},
	}
	if s.DisconnectedAt.IsZero() { // it was connected when the server stopped
		st.persistent.offline.since, st.persistent.rowChanged.allChanged = b.options.Now(), true
	}
	for _, s := range p.Skipped {
		st.persistent.backlog.skipped.add(s.From, s.To)
	}
	for _, id := range p.Received {
		_ = st.reserveReceived(false) // never refused without limits
		st.addReceived(id, nil)
	}
	for _, o := range p.Inflight {
		if o.Released {
			st.persistent.backlog.push(backlogEntry{seq: o.Seq, released: true, qos: 2})
			_ = st.countOffline(0, false) // never refused without limits
		}
	}
	for _, x := range s.Subscriptions {
		_, filter, shared, err := policy.Share(x.Filter)
		if err != nil {
			return err
		}
		sub := newSubscription(st, x.Filter, filter)
		sub.qos, sub.noLocal, sub.retainAsPublished, sub.identifier = x.Options&3, x.Options&4 != 0, x.Options&8 != 0, x.Identifier
		_ = st.addSubscription(sub, shared, false) // never refused without limits
	}
	st.persistent.rowChanged.filters = nil // what was loaded is in the store
	b.persistentCount.Add(1)
	st.tenant.putClient(st)
	st.tenant.offline.add(st)
	l.clients[s.ID] = st
	l.maxClientNumber = max(l.maxClientNumber, s.ID)
	l.inflight[s.ID] = p.Inflight
	return nil
}

func (l *restorer) restoreMessage(m mqttstore.Message) error {
	l.maxMessageID = max(l.maxMessageID, m.ID)
	j := l.broker.committer
	k := &storedMessage{committer: j, id: m.ID, size: storedSize(m.Size), collected: true, counted: true}
	k.durable.Store(true)
	err := mqttstore.Receivers(m.Receivers, func(r mqttstore.Receiver) {
		l.maxClientNumber = max(l.maxClientNumber, r.Session)
		st := l.clients[r.Session]
		if st == nil || !l.isWaiting(r, st) {
			return
		}
		size := k.size + sizeOfIdentifiers(r.Identifiers)
		e := backlogEntry{stored: k, seq: r.Seq, size: uint32(size), qos: r.QoS, retain: r.Retain, group: st.tenant.bus.Group(r.Group)}
		if r.Identifiers != nil {
			e.identifiers = &r.Identifiers
		}
		k.refs.Add(1)
		e.markGroupWaiting(st)
		st.persistent.backlog.push(e)
		_ = st.countOffline(size, false) // the same, by subject
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

// isWaiting reports whether a session still needs a message.
func (l *restorer) isWaiting(r mqttstore.Receiver, st *sessionState) bool {
	if r.Seq > st.persistent.backlog.lastSent {
		return !st.persistent.backlog.skipped.has(r.Seq)
	}
	return slices.ContainsFunc(l.inflight[r.Session], func(o mqttstore.Inflight) bool { return o.Seq == r.Seq && !o.Released })
}

// start starts the timers of offline sessions, and opens their sessions with the guard.
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
		// In the order of client identifiers, which most clients derive from their ids, so that the store reads what is near; shared
		// out over the processors.
		slices.SortFunc(all, func(a, b *sessionState) int { return strings.Compare(a.id, b.id) })
		var sharing sync.WaitGroup
		n := runtime.GOMAXPROCS(0)
		for some := range slices.Chunk(all, len(all)/n+1) {
			sharing.Go(func() {
				for _, st := range some {
					if ctx := l.broker.ctx; ctx.Err() == nil {
						st.watchAuthority(ctx, 1)
					}
				}
			})
		}
		sharing.Wait()
		l.broker.wills.watchAuthorities(l.broker.ctx)
	})
}
