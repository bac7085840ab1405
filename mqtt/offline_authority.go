package mqtt

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/session"
)

// watchOffline opens an offline session with the guard. Its callbacks come with that session
// locked.
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
				case watchword.SubjectSuspended, watchword.SubjectNew: // the subject may be resumed; the session keeps everything
					per.offline.suspended = true
				case watchword.SubjectRevoked, watchword.TokenRevoked:
					per.offline.suspended = true
					go st.endState()
				default: // authority is unknown: stored messages are kept, and checked when the client reconnects
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

// offlineRetryDelay is the pause after the authority of an offline session could not be read.
const offlineRetryDelay = time.Second

// retryOffline makes the guard read the authority of an offline session again.
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
