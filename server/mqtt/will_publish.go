package mqtt

import (
	"context"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/session"
)

// watchAuthority opens an offline session for the subject of a delayed will, so that losing the permission
// deletes the will, even if the permission is given back before it is due.
func (ws *willStore) watchAuthority(ctx context.Context, w *will) {
	if w == nil || ws.broker.draining.Load() { // the next process opens it
		return
	}
	offlineSession := ws.openOffline(ctx, w, session.Options{
		Changed: func(a *session.Authority) {
			if !decidePublish(a, w.message.topic).decision.Allowed {
				ws.cancel(w)
			}
		},
		Withdrawn: func(cause error) {
			if cancelsWill(cause) {
				ws.cancel(w)
			}
		},
	})
	ws.mu.Lock()
	over := w.finished
	if !over {
		w.offline, offlineSession = offlineSession, w.offline
	}
	ws.mu.Unlock()
	if offlineSession != nil {
		offlineSession.End(nil)
	}
}

func (ws *willStore) openOffline(ctx context.Context, w *will, o session.Options) *session.Session {
	ws.mu.Lock()
	p := w.credentials
	ws.mu.Unlock()
	o.Transport = "mqtt"
	return ws.broker.deps.Guard.OpenOffline(ctx, p, o)
}

// publishDue publishes a delayed will, if its subject may publish it now and its token was not
// revoked. If the store is unavailable, it tries again.
func (ws *willStore) publishDue(w *will) {
	ctx := ws.broker.ctx
	ws.broker.deps.Guard.WaitForChanges()
	var a *session.Authority
	var withdrawn error
	ws.openOffline(ctx, w, session.Options{Changed: func(now *session.Authority) { a, withdrawn = now, nil }, Withdrawn: func(cause error) { a, withdrawn = nil, cause }}).End(nil)
	switch {
	case a != nil:
		ws.publish(ctx, a, w)
	case cancelsWill(withdrawn):
		ws.cancel(w)
	default:
		ws.mu.Lock()
		if !w.finished && ctx.Err() == nil {
			w.timer = time.AfterFunc(authorityRetryDelay, func() { ws.publishDue(w) })
		}
		ws.mu.Unlock()
	}
}

// publishWill publishes the will of a lost connection.
func (c *conn) publishWill(ctx context.Context, w *will) {
	ws := &c.broker.wills
	c.broker.deps.Guard.WaitForChanges()
	if s := c.live(); s.Ended() && s.Cause() != nil { // the session was taken over meanwhile
		ws.watchAuthority(ctx, ws.sessionEnded(w, s.Cause(), 0, c.broker.options.Now()))
	} else {
		ws.publish(ctx, s.Authority(), w)
	}
}

// publish publishes a will if a allows it, and ends it in any case.
func (ws *willStore) publish(ctx context.Context, a *session.Authority, w *will) {
	v := decidePublish(a, w.message.topic)
	if !v.decision.Allowed {
		ws.cancel(w)
		return
	}
	if !ws.claim(w) {
		return
	}
	b := workBatches.Get().(*workBatch)
	defer workBatches.Put(b)
	b.now = ws.broker.options.Now()
	defer b.Flush()
	m := &message{topic: w.message.topic, payload: w.message.payload, qos: w.message.qos, retain: w.message.retain, props: w.message.props}
	if w.expiry > 0 {
		m.expireAt(b.now.Add(w.expiry))
	}
	var o bus.Result
	key, err := w.session.routeMessage(ctx, b, m, v.system, &o, publisher{offline: a})
	k := storedIn(&o)
	ws.remove(w, change{message: k, retained: key})
	if k != nil {
		ws.broker.committer.release(k) // its publisher had a reference too
	}
	if err != nil {
		ws.broker.options.Log.WarnContext(ctx, "will refused", slog.String("client", w.session.id), slog.String("topic", m.topic), slog.Any("err", err))
	}
}
