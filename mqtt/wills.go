package mqtt

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/shelf"
)

// wills is every will that stands: of connections, and of those that ended and whose
// will waits until it is due. All of them are in the store too. It is safe for concurrent
// use.
type wills struct {
	broker *Broker
	ledger *quota.Ledger[quota.Key] // their bytes

	mu      lockrank.Mutex[willsLock]
	last    int64 // the highest id
	all     map[int64]*will
	waiting map[clientName][]*will // those that have a time when they are due
}

// clientName is a client identifier of a tenant.
type clientName struct {
	tenant watchword.TenantID
	id     string
}

func (st *sessionState) name() clientName { return clientName{st.world.tenant, st.id} }

func (ws *wills) init(b *Broker) {
	ws.broker, ws.all, ws.waiting = b, map[int64]*will{}, map[clientName][]*will{}
	ws.ledger = quota.New[quota.Key](quota.Resource{
		Name: "wills", Unit: "bytes",
		Subject: quota.Bound{Max: b.options.SubjectWillBytes, Name: "limits.subject_will_bytes"},
		Total:   quota.Bound{Max: b.options.WillBytes, Name: "limits.will_bytes"},
	})
}

// reserve counts a will that is to stand; nil is none. Code: busy.
func (ws *wills) reserve(w *will, of quota.Key) error {
	if w == nil {
		return nil
	}
	w.of = of
	return ws.ledger.Take(of, w.size())
}

// giveBack is for a will that was counted and does not stand any more, or never will.
func (ws *wills) giveBack(w *will) {
	if w != nil {
		ws.ledger.Give(w.of, w.size())
	}
}

// add lets a will stand that is counted, and returns with what it will be written.
func (ws *wills) add(w *will) *commit {
	ws.mu.Lock()
	ws.last++
	w.id = ws.last
	ws.all[w.id] = w
	ws.mu.Unlock()
	return ws.write(w)
}

// write has the row of a will written as it will be then.
func (ws *wills) write(w *will) *commit { return ws.broker.journal.add(adding{will: w}) }

// stand ties a will to another token: its session was refreshed.
func (ws *wills) stand(w *will, p session.Papers) {
	ws.mu.Lock()
	same := w.papers.JTI == p.JTI
	w.papers = p
	ws.mu.Unlock()
	if !same {
		ws.write(w)
	}
}

// wait sets when a will is due. The caller owes [wills.watch].
func (ws *wills) wait(w *will, due, grace time.Time) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.over {
		return
	}
	name := w.session.name()
	if w.timer == nil {
		ws.waiting[name] = append(ws.waiting[name], w)
	} else {
		w.timer.Stop()
	}
	w.due, w.grace = due, grace
	w.timer = time.AfterFunc(due.Sub(ws.broker.options.Now()), func() { ws.fallDue(w) })
	ws.write(w)
}

// timePassed starts the clocks of the wills that wait anew: see [Broker.timePassed].
func (ws *wills) timePassed(now time.Time) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, list := range ws.waiting {
		for _, w := range list {
			w.timer.Reset(w.due.Sub(now))
		}
	}
}

// sessionEnded decides on a will whose session ended for cause. It returns the will where
// it waits; the caller owes [wills.watch] then.
func (ws *wills) sessionEnded(w *will, cause error, delay time.Duration, now time.Time) *will {
	if silences(cause) {
		ws.cancel(w)
		return nil
	}
	ws.wait(w, now.Add(max(delay, willGrace)), now.Add(willGrace))
	return w
}

// claim takes a will out of those that wait, for who is to publish or cancel it. It reports
// false where somebody else did.
func (ws *wills) claim(w *will) bool {
	ws.mu.Lock()
	if w.over {
		ws.mu.Unlock()
		return false
	}
	w.over = true
	name := w.session.name()
	if list := slices.DeleteFunc(ws.waiting[name], func(x *will) bool { return x == w }); len(list) > 0 {
		ws.waiting[name] = list
	} else {
		delete(ws.waiting, name)
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	hold := w.hold
	w.hold = nil
	ws.mu.Unlock()
	if hold != nil {
		go hold.Close(nil) // its lock may be held by who calls
	}
	return true
}

// remove forgets a will that was claimed. What is written of its publishing goes with it:
// a crash publishes it once.
func (ws *wills) remove(w *will, a adding) *commit {
	ws.mu.Lock()
	delete(ws.all, w.id)
	ws.mu.Unlock()
	ws.giveBack(w)
	a.will = w
	return ws.broker.journal.add(a)
}

// cancel ends a will that is not published.
func (ws *wills) cancel(w *will) {
	if ws.claim(w) {
		ws.remove(w, adding{})
	}
}

// cameBack is told of each connection that was let in: it cancels the will that the
// connection before left behind (MQTT 5.0 §3.1.3.2.2). Where the session before did not
// go on, it has ended now, and its will is due, unless it waits for its client to come
// back at all: then the client has, if it may say what the will says.
func (ws *wills) cameBack(st *sessionState, a *session.Authority, goesOn bool, now time.Time) {
	ws.mu.Lock()
	some := slices.Clone(ws.waiting[st.name()])
	ws.mu.Unlock()
	for _, w := range some {
		switch {
		case goesOn && w.session == st:
			ws.cancel(w)
		case !now.Before(w.graceEnd()):
			go ws.fallDue(w)
		case judge(a, w.m.topic).decision.Allowed:
			ws.cancel(w)
		}
	}
}

func (w *will) graceEnd() time.Time {
	ws := &w.session.broker.wills
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return w.grace
}

// sessionClosed is told of a session without a connection that an operator ended: the
// will that waited longer than a minute waits for a minute.
func (ws *wills) sessionClosed(st *sessionState, now time.Time) {
	ws.mu.Lock()
	some := slices.Clone(ws.waiting[st.name()])
	ws.mu.Unlock()
	for _, w := range some {
		if w.session == st {
			ws.wait(w, now.Add(willGrace), now.Add(willGrace))
		}
	}
}

// waitingOf returns the topics of the wills that wait for a client's session to end, or
// for their time.
func (ws *wills) waitingOf(st *sessionState) (topics []string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.waiting[st.name()] {
		if w.session == st {
			topics = append(topics, w.m.topic)
		}
	}
	return topics
}

// dueAt is when the will that a client left behind is due; zero for none.
func (ws *wills) dueAt(st *sessionState) time.Time {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.waiting[st.name()] {
		if w.session == st {
			return w.due
		}
	}
	return time.Time{}
}

// watch has the guard follow what the subject of a waiting will may, so that a right that
// goes takes the will along, also where it comes back before the will is due.
func (ws *wills) watch(ctx context.Context, w *will) {
	if w == nil || ws.broker.draining.Load() { // its next process watches it
		return
	}
	hold := ws.hold(ctx, w, session.Options{
		Changed: func(a *session.Authority) {
			if !judge(a, w.m.topic).decision.Allowed {
				ws.cancel(w)
			}
		},
		Lapsed: func(cause error) {
			if silences(cause) {
				ws.cancel(w)
			}
		},
	})
	ws.mu.Lock()
	over := w.over
	if !over {
		w.hold, hold = hold, w.hold
	}
	ws.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
}

func (ws *wills) hold(ctx context.Context, w *will, o session.Options) *session.Session {
	ws.mu.Lock()
	p := w.papers
	ws.mu.Unlock()
	o.Transport = "mqtt"
	return ws.broker.deps.Guard.Hold(ctx, p, o)
}

// fallDue publishes a will that waited, if its subject may publish it today and the token
// that it stands on was not revoked. Where nobody can say, it asks again.
func (ws *wills) fallDue(w *will) {
	ctx := ws.broker.ctx
	ws.broker.deps.Guard.Settled()
	var a *session.Authority
	var lapsed error
	ws.hold(ctx, w, session.Options{Changed: func(now *session.Authority) { a, lapsed = now, nil }, Lapsed: func(cause error) { a, lapsed = nil, cause }}).Close(nil)
	switch {
	case a != nil:
		ws.publish(ctx, a, w)
	case silences(lapsed):
		ws.cancel(w)
	default:
		ws.mu.Lock()
		if !w.over && ctx.Err() == nil {
			w.timer = time.AfterFunc(askAgain, func() { ws.fallDue(w) })
		}
		ws.mu.Unlock()
	}
}

// publishWill is the last act of a connection that was lost.
func (c *conn) publishWill(ctx context.Context, w *will) {
	ws := &c.broker.wills
	c.broker.deps.Guard.Settled()
	if s := c.live(); s.Over() && s.Cause() != nil { // it lost its session meanwhile
		ws.watch(ctx, ws.sessionEnded(w, s.Cause(), 0, c.broker.options.Now()))
	} else {
		ws.publish(ctx, s.Authority(), w)
	}
}

// publish publishes a will if a says so. It is over then.
func (ws *wills) publish(ctx context.Context, a *session.Authority, w *will) {
	v := judge(a, w.m.topic)
	if !v.decision.Allowed {
		ws.cancel(w)
		return
	}
	if !ws.claim(w) {
		return
	}
	b := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(b)
	b.now = ws.broker.options.Now()
	defer b.Flush()
	m := &message{topic: w.m.topic, payload: w.m.payload, qos: w.m.qos, retain: w.m.retain, props: w.m.props}
	if w.life > 0 {
		m.expireAt(b.now.Add(w.life))
	}
	var o bus.Result
	key, err := w.session.send(ctx, b, m, v.house, &o, actor{left: a})
	k, _ := o.Stored.(*kept)
	ws.remove(w, adding{message: k, retained: key})
	if k != nil {
		ws.broker.journal.release(k) // who published it had it too
	}
	if err != nil {
		ws.broker.options.Log.WarnContext(ctx, "will refused", slog.String("client", w.session.id), slog.String("topic", m.topic), slog.Any("err", err))
	}
}

// rest stops the clocks: they go on at the next start.
func (ws *wills) rest() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, list := range ws.waiting {
		for _, w := range list {
			w.timer.Stop()
		}
	}
}

// load takes in a will of an earlier life of the server. Everybody is about to come back,
// also who wants to hear it: its client has a minute, as after any end that it did not ask
// for. Wills come by id.
func (ws *wills) load(r shelf.Will, now time.Time) error {
	w, err := unstoredWill(r.Bytes)
	if err != nil {
		return err
	}
	b, world := ws.broker, ws.broker.world(r.Tenant)
	who := owner{r.Subject, r.Incarnation}
	st := world.clients[r.Client] // nobody else knows the world yet
	due := now.Add(willGrace)
	at := r.Due
	if at.IsZero() {
		at = now.Add(w.delay)
	}
	if st == nil || st.owner != who {
		st = &sessionState{broker: b, world: world, id: r.Client, owner: who, over: true}
	} else if ends, ok := st.lasting.ends(); ok && ends.Before(at) {
		at = ends
	}
	if at.After(due) {
		due = at
	}
	w.id, w.session = r.ID, st
	w.papers = session.Papers{Tenant: r.Tenant, Subject: r.Subject, Incarnation: r.Incarnation, Key: r.Key, JTI: r.Token, SignedBy: r.SignedBy, Proved: r.Proved}
	w.of = quota.Key{Tenant: r.Tenant, Subject: r.Subject}
	ws.ledger.Add(w.of, w.size())
	ws.mu.Lock()
	ws.last = max(ws.last, r.ID)
	ws.all[w.id] = w
	older := slices.Clone(ws.waiting[st.name()])
	ws.mu.Unlock()
	for _, x := range older { // of a connection that this one followed, and whose end was not written any more
		ws.cancel(x)
	}
	ws.wait(w, due, now.Add(willGrace))
	return nil
}

// watchAll is watch for those that were loaded.
func (ws *wills) watchAll(ctx context.Context) {
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
		ws.watch(ctx, w)
	}
}

// count returns how many wills there are, and the bytes that they count.
func (ws *wills) count() (n, size int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return int64(len(ws.all)), ws.ledger.Total()
}
