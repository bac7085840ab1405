package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

func scanNotice(r scanner) (n watchword.Notice, err error) {
	var at, expires int64
	err = r.Scan(&n.Tenant, &n.Kind, &n.Object, &at, &expires)
	n.At, n.Expires = fromMillis(at), fromMillis(expires)
	return n, err
}

// Notices returns a tenant's notices that have not expired, by kind and time.
func (s *Store) Notices(ctx context.Context, tenant watchword.TenantID, now time.Time) ([]watchword.Notice, error) {
	return queryAll(ctx, s, scanNotice, `SELECT tenant, kind, object, at, expires FROM notices WHERE tenant = ? AND expires > ? ORDER BY kind, at, object`, tenant, toMillis(now))
}

// putNotice stores a notice in the place of an earlier one of its kind and object, and deletes the [watchword.SurplusNotices] of
// its kind.
func (t *tx) putNotice(n watchword.Notice) error {
	if _, err := t.exec(`INSERT INTO notices (tenant, kind, object, at, expires) VALUES (?1, ?2, ?3, ?4, ?5)
		ON CONFLICT (tenant, kind, object) DO UPDATE SET at = ?4, expires = ?5`, n.Tenant, n.Kind, n.Object, toMillis(n.At), toMillis(n.Expires)); err != nil {
		return err
	}
	all, err := queryAll(context.Background(), t, scanNotice, `SELECT tenant, kind, object, at, expires FROM notices WHERE tenant = ? AND kind = ?`, n.Tenant, n.Kind)
	if err != nil {
		return err
	}
	for _, old := range watchword.SurplusNotices(all) {
		if _, err := t.exec(`DELETE FROM notices WHERE tenant = ? AND kind = ? AND object = ?`, old.Tenant, old.Kind, old.Object); err != nil {
			return err
		}
	}
	return nil
}

// AcknowledgeNotice deletes a notice. Codes: not_found, and those of [watchword.Notice.MayAcknowledge].
func (s *Store) AcknowledgeNotice(ctx context.Context, by audit.Actor, kind watchword.NoticeKind, object watchword.SubjectID, at, now time.Time, e audit.Entry) error {
	_, err := writeAs(ctx, s, by, func(t *tx) (none struct{}, err error) {
		n, err := queryOne(context.Background(), t, scanNotice, watchword.ErrNoNotice, `SELECT tenant, kind, object, at, expires FROM notices WHERE tenant = ? AND kind = ? AND object = ?`, by.Tenant, kind, object)
		if err != nil {
			return none, err
		}
		actor, err := t.subject(by.Tenant, by.Subject)
		if err != nil {
			return none, err
		}
		if err := n.MayAcknowledge(&actor, by.Key, object, at, now); err != nil {
			return none, err
		}
		if _, err := t.exec(`DELETE FROM notices WHERE tenant = ? AND kind = ? AND object = ?`, by.Tenant, kind, object); err != nil {
			return none, err
		}
		return none, t.addEntry(e)
	})
	return err
}
