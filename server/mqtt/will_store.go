package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/session"
)

// willStore holds all wills: of connections, and delayed ones that are not due yet. All are in the
// store too. It is safe for concurrent use.
type willStore struct {
	broker *Broker
	quota  *quota.Ledger[quota.Key] // bytes of wills

	mu      lockrank.Mutex[willsLock]
	lastID  int64 // highest id
	all     map[int64]*will
	waiting map[clientName][]*will // delayed wills
}

// clientName is a client identifier of a tenant.
type clientName struct {
	tenant watchword.TenantID
	id     string
}

func (st *sessionState) name() clientName { return clientName{st.tenant.id, st.id} }

func (ws *willStore) init(b *Broker) {
	ws.broker, ws.all, ws.waiting = b, map[int64]*will{}, map[clientName][]*will{}
	ws.quota = newWillQuota(&b.options)
}

// add adds a charged will, and returns the commit that will write it.
func (ws *willStore) add(w *will) *commit {
	ws.mu.Lock()
	ws.lastID++
	w.id = ws.lastID
	ws.all[w.id] = w
	ws.mu.Unlock()
	return ws.writeWill(w)
}

// writeWill adds the current row of a will to the open commit.
func (ws *willStore) writeWill(w *will) *commit { return ws.broker.committer.add(change{will: w}) }

// rebind binds a will to the new token of a refreshed session.
func (ws *willStore) rebind(w *will, p session.Credentials) {
	ws.mu.Lock()
	same := w.credentials.JTI == p.JTI
	w.credentials = p
	ws.mu.Unlock()
	if !same {
		ws.writeWill(w)
	}
}

// schedule sets when a will is due. The caller must call [willStore.watchAuthority].
func (ws *willStore) schedule(w *will, due, grace time.Time) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.finished {
		return
	}
	name := w.session.name()
	if w.timer == nil {
		ws.waiting[name] = append(ws.waiting[name], w)
	} else {
		w.timer.Stop()
	}
	w.due, w.graceUntil = due, grace
	w.timer = time.AfterFunc(due.Sub(ws.broker.options.Now()), func() { ws.publishDue(w) })
	ws.writeWill(w)
}

// clockAdvanced restarts the timers of delayed wills: see [Broker.clockAdvanced].
func (ws *willStore) clockAdvanced(now time.Time) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, list := range ws.waiting {
		for _, w := range list {
			w.timer.Reset(w.due.Sub(now))
		}
	}
}

// sessionEnded decides on a will whose session ended for cause. It returns the will if it is
// delayed; then the caller must call [willStore.watchAuthority].
func (ws *willStore) sessionEnded(w *will, cause error, delay time.Duration, now time.Time) *will {
	if cancelsWill(cause) {
		ws.cancel(w)
		return nil
	}
	ws.schedule(w, now.Add(max(delay, willGracePeriod)), now.Add(willGracePeriod))
	return w
}

// claim removes a delayed will in order to publish or cancel it. It returns false if another
// goroutine did.
func (ws *willStore) claim(w *will) bool {
	ws.mu.Lock()
	if w.finished {
		ws.mu.Unlock()
		return false
	}
	w.finished = true
	name := w.session.name()
	if list := slices.DeleteFunc(ws.waiting[name], func(x *will) bool { return x == w }); len(list) > 0 {
		ws.waiting[name] = list
	} else {
		delete(ws.waiting, name)
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	offlineSession := w.offline
	w.offline = nil
	ws.mu.Unlock()
	if offlineSession != nil {
		go offlineSession.End(nil) // the caller may hold its lock
	}
	return true
}

// remove deletes a claimed will. Its deletion and the writes of its publication are one commit, so
// that a crash publishes it once.
func (ws *willStore) remove(w *will, a change) *commit {
	ws.mu.Lock()
	delete(ws.all, w.id)
	ws.mu.Unlock()
	ws.releaseQuota(w)
	a.will = w
	return ws.broker.committer.add(a)
}

// cancel deletes a will without publishing it.
func (ws *willStore) cancel(w *will) {
	if ws.claim(w) {
		ws.remove(w, change{})
	}
}

// clientReturned is called for each accepted connection: it cancels the delayed will of the earlier
// connection (MQTT 5.0 §3.1.3.2.2). If the earlier session is not resumed, it ends now and its will
// is due, unless the will is in its grace period and the new connection may publish it: then it is
// cancelled.
func (ws *willStore) clientReturned(st *sessionState, a *session.Authority, goesOn bool, now time.Time) {
	ws.mu.Lock()
	some := slices.Clone(ws.waiting[st.name()])
	ws.mu.Unlock()
	for _, w := range some {
		switch {
		case goesOn && w.session == st:
			ws.cancel(w)
		case !now.Before(w.graceEnd()):
			go ws.publishDue(w)
		case decidePublish(a, w.message.topic).decision.Allowed:
			ws.cancel(w)
		}
	}
}

func (w *will) graceEnd() time.Time {
	ws := &w.session.broker.wills
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return w.graceUntil
}

// offlineSessionClosed is called when an operator ends an offline session: a delay of more than
// willGracePeriod is shortened to it.
func (ws *willStore) offlineSessionClosed(st *sessionState, now time.Time) {
	ws.mu.Lock()
	some := slices.Clone(ws.waiting[st.name()])
	ws.mu.Unlock()
	for _, w := range some {
		if w.session == st {
			ws.schedule(w, now.Add(willGracePeriod), now.Add(willGracePeriod))
		}
	}
}

// waitingTopics returns the topics of the delayed wills of a client.
func (ws *willStore) waitingTopics(st *sessionState) (topics []string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.waiting[st.name()] {
		if w.session == st {
			topics = append(topics, w.message.topic)
		}
	}
	return topics
}

// dueAt returns when the delayed will of a client is due; zero for none.
func (ws *willStore) dueAt(st *sessionState) time.Time {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.waiting[st.name()] {
		if w.session == st {
			return w.due
		}
	}
	return time.Time{}
}

// stopTimers stops the timers; the next start starts them again.
func (ws *willStore) stopTimers() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, list := range ws.waiting {
		for _, w := range list {
			w.timer.Stop()
		}
	}
}

// restore adds a will of an earlier run. All clients are about to reconnect, also its subscribers,
// so its client has willGracePeriod, as after any disconnect that it did not ask for. Wills are
// restored by id.
func (ws *willStore) restore(r mqttstore.Will, now time.Time) error {
	w, err := decodeStoredWill(r.Bytes)
	if err != nil {
		return err
	}
	b, tn := ws.broker, ws.broker.tenant(r.Tenant)
	who := owner{r.Subject, r.Incarnation}
	st := tn.clients[r.Client] // nothing else uses the tenant yet
	due := now.Add(willGracePeriod)
	at := r.Due
	if at.IsZero() {
		at = now.Add(w.delay)
	}
	if st == nil || st.owner != who {
		st = &sessionState{broker: b, tenant: tn, id: r.Client, owner: who, removed: true}
	} else if ends, ok := st.persistent.expiresAt(); ok && ends.Before(at) {
		at = ends
	}
	if at.After(due) {
		due = at
	}
	w.id, w.session = r.ID, st
	w.credentials = session.Credentials{Tenant: r.Tenant, Subject: r.Subject, Incarnation: r.Incarnation, Key: r.Key, JTI: r.Token, IssuerKey: r.IssuerKey, KeyProved: r.KeyProved}
	w.account = quota.Key{Tenant: r.Tenant, Subject: r.Subject}
	ws.quota.Add(w.account, w.size())
	ws.mu.Lock()
	ws.lastID = max(ws.lastID, r.ID)
	ws.all[w.id] = w
	older := slices.Clone(ws.waiting[st.name()])
	ws.mu.Unlock()
	for _, x := range older { // a later connection replaced it, and its deletion was not written
		ws.cancel(x)
	}
	ws.schedule(w, due, now.Add(willGracePeriod))
	return nil
}

// watchAuthorities calls watchAuthority for restored wills.
func (ws *willStore) watchAuthorities(ctx context.Context) {
	ws.mu.Lock()
	var all []*will
	for _, list := range ws.waiting {
		all = append(all, list...)
	}
	ws.mu.Unlock()
	for _, w := range all {
		if ctx.Err() != nil {
			return
		}
		ws.watchAuthority(ctx, w)
	}
}

// count returns the number of wills and their bytes.
func (ws *willStore) count() (n, size int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return int64(len(ws.all)), ws.quota.Total()
}
