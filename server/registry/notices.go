package registry

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// Notices returns what every operator of a tenant is to be told now: at most one of each kind. Code: unavailable.
func (r *Registry) Notices(ctx context.Context, t watchword.TenantID, now time.Time) ([]watchword.Notice, error) {
	return r.store.Notices(ctx, t, now)
}

// AcknowledgeNotice ends a notice for all operators of the tenant. Code: not_found.
func (r *Registry) AcknowledgeNotice(ctx context.Context, by session.Actor, kind watchword.NoticeKind, now time.Time) error {
	return r.store.AcknowledgeNotice(ctx, by.Actor, kind, by.DoneEntry(audit.NoticeAcknowledge, string(kind), now, nil))
}
