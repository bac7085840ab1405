package mqtt

import (
	"github.com/watchword-iot/watchword/server/mqttstore"
)

// transaction is a commit that is being written.
type transaction struct {
	commit   *commit
	changes  mqttstore.Changes
	messages []*storedMessage
	clients  []clientRow
}

// clientRow records what is written of a session, so that it can be written again.
type clientRow struct {
	st             *sessionState
	rowChanged     bool
	changedFilters map[string]struct{}
}

// build collects the values to be written, without sessions that have ended since.
func (w *transaction) build(j *committer) {
	c := w.commit
	for _, st := range c.clients {
		w.addClient(st)
	}
	w.changes.DeletedSessions, w.changes.DeletedMessages = c.deletedSessions, c.deletedMessages
	for key := range c.retained {
		w.changes.Retained = append(w.changes.Retained, key.row())
	}
	for x := range c.wills {
		w.changes.Wills = append(w.changes.Wills, x.row())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range c.messages {
		if k.refs.Load() == 0 {
			k.body.Store(nil)
			continue
		}
		k.collected = true
		m := k.body.Load()
		w.messages = append(w.messages, k)
		w.changes.Messages = append(w.changes.Messages, mqttstore.Message{ID: k.id, Packet: m.encodeStored(), Expires: m.expires(), Receivers: k.receivers})
	}
}

func (w *transaction) addClient(st *sessionState) {
	st.mu.Lock()
	defer st.mu.Unlock()
	per := st.persistent
	if st.removed || per == nil {
		return
	}
	p := st.progress(w.commit)
	s := mqttstore.Session{ID: st.number, Progress: p.Append(nil)}
	all, filters := per.rowChanged.take()
	w.clients = append(w.clients, clientRow{st, all, filters})
	for name := range filters {
		f := mqttstore.SessionSubscription{Session: st.number, Subscription: mqttstore.Subscription{Filter: name}}
		sub := st.subs[name]
		if sub == nil {
			w.changes.Unsubscribed = append(w.changes.Unsubscribed, f)
			continue
		}
		f.Options, f.Identifier = sub.options(), sub.identifier
		w.changes.Subscribed = append(w.changes.Subscribed, f)
	}
	if !all {
		w.changes.Progress = append(w.changes.Progress, s)
		return
	}
	s.Tenant, s.Client, s.Subject, s.Incarnation = st.tenant.id, st.id, st.owner.subject, st.owner.incarnation
	s.Expiry, s.DisconnectedAt = per.expiry, per.offline.since
	w.changes.Sessions = append(w.changes.Sessions, s)
}

// markChangedAgain marks the sessions of a failed write as changed.
func (w *transaction) markChangedAgain() {
	for _, x := range w.clients {
		x.st.mu.Lock()
		if per := x.st.persistent; per != nil && !x.st.removed {
			per.rowChanged.restore(x.rowChanged, x.changedFilters)
			x.st.markChanged()
		}
		x.st.mu.Unlock()
	}
}
