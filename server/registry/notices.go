package registry

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// Notices returns what every operator of a tenant is to be told now: at most one of each kind and object. Code: unavailable.
func (r *Registry) Notices(ctx context.Context, t watchword.TenantID, now time.Time) ([]watchword.Notice, error) {
	return r.store.Notices(ctx, t, now)
}

// AcknowledgeNotice ends the notice of a kind that is of object, at at, for all operators of the tenant. Codes: not_found; conflict
// where there is a newer one; denied for the subject that it is about, and for a key that is not older than the notice.
func (r *Registry) AcknowledgeNotice(ctx context.Context, by session.Actor, kind watchword.NoticeKind, object watchword.SubjectID, at, now time.Time) error {
	e := by.DoneEntry(audit.NoticeAcknowledge, string(kind), now, map[string]string{"object": string(object), "at": at.UTC().Format(time.RFC3339)})
	return r.store.AcknowledgeNotice(ctx, by.Actor, kind, object, at, now, e)
}
