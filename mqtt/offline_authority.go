package mqtt

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/session"
)

// watchOffline has the guard say what a client that is away may have. Its answers come with
// the session locked.
func (st *sessionState) watchOffline(ctx context.Context, turn int) {
	st.mu.Lock()
	tenant, owner := st.tenant.id, st.owner
	st.mu.Unlock()
	still := func(f func(per *persistent)) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if per := st.persistent; per != nil && !st.removed && per.generation == turn {
			f(per)
		}
	}
	hold := st.broker.deps.Guard.OpenOffline(ctx, session.Credentials{Tenant: tenant, Subject: owner.subject, Incarnation: owner.incarnation}, session.Options{
		Transport: "mqtt",
		Changed: func(a *session.Authority) {
			var redistributions []redistribution
			still(func(per *persistent) {
				per.offline.suspended = false
				_, redistributions = st.removeDeniedSubscriptions(a)
			})
			if len(redistributions) > 0 {
				go st.redistribute(redistributions, false)
			}
		},
		Withdrawn: func(cause error) {
			still(func(per *persistent) {
				switch watchword.CodeOf(cause) {
				case watchword.SubjectSuspended, watchword.SubjectNew: // it may come back, with all it had
					per.offline.suspended = true
				case watchword.SubjectRevoked, watchword.TokenRevoked:
					per.offline.suspended = true
					go st.endState()
				default: // nobody can say: what waits goes on to wait, and is judged when its client comes
					per.startRetryTimer(offlineRetryDelay, func() { st.retryOffline(turn) })
				}
			})
		},
	})
	kept := false
	still(func(per *persistent) { per.offline.authority, kept = hold, true })
	if !kept {
		hold.Close(nil)
	}
}

// offlineRetryDelay is when a question is asked again that nobody could answer.
const offlineRetryDelay = time.Second

// retryOffline has the guard look again at what a client that is away may have.
func (st *sessionState) retryOffline(turn int) {
	st.mu.Lock()
	var hold *session.Session
	if per := st.persistent; per != nil && per.generation == turn {
		hold = per.offline.authority
	}
	st.mu.Unlock()
	if hold != nil {
		hold.Recompute(st.broker.ctx)
	}
}
