package mqtt

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// watchAuthority opens an offline session with the guard. Its callbacks come with that session
// locked.
func (st *sessionState) watchAuthority(ctx context.Context, generation int) {
	st.mu.Lock()
	tenant, owner := st.tenant.id, st.owner
	st.mu.Unlock()
	still := func(f func(per *persistent)) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if per := st.persistent; per != nil && !st.removed && per.generation == generation {
			f(per)
		}
	}
	offlineSession := st.broker.deps.Guard.OpenOffline(ctx, session.Credentials{Tenant: tenant, Subject: owner.subject, Incarnation: owner.incarnation}, session.Options{
		Transport: "mqtt", Client: st.id,
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
					go st.endSession()
				default: // authority is unknown: stored messages are kept, and checked when the client reconnects
					per.startRetryTimer(authorityRetryDelay, func() { st.retryAuthority(generation) })
				}
			})
		},
	})
	kept := false
	still(func(per *persistent) {
		per.offline.authority, kept = offlineSession, true
		st.reads.Store(offlineSession)
	})
	if !kept {
		offlineSession.End(nil)
	}
}

// authorityRetryDelay is the pause after the authority of an offline session could not be read.
const authorityRetryDelay = time.Second

// retryAuthority makes the guard read the authority of an offline session again.
func (st *sessionState) retryAuthority(generation int) {
	st.mu.Lock()
	var offlineSession *session.Session
	if per := st.persistent; per != nil && per.generation == generation {
		offlineSession = per.offline.authority
	}
	st.mu.Unlock()
	if offlineSession != nil {
		offlineSession.Recompute(st.broker.ctx)
	}
}
