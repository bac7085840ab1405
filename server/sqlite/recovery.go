package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// Recover stores the code of an owner, who is added unless there is one of that id, and the notice of it.
func (s *Store) Recover(ctx context.Context, by audit.Actor, r enroll.Recovery, entries func(created bool) []audit.Entry) (watchword.Subject, error) {
	return writeAs(ctx, s, by, func(t *tx) (watchword.Subject, error) {
		sub, err := t.subject(r.Owner.Tenant, r.Owner.ID)
		created := watchword.CodeOf(err) == watchword.NotFound
		if created {
			sub = r.Owner.Added()
			err = t.addSubject(sub)
		} else if err == nil {
			err = r.Check(&sub)
		}
		if err != nil {
			return sub, err
		}
		if err := t.putCode(r.Code); err != nil {
			return sub, err
		}
		if err := t.putNotice(r.Notice); err != nil {
			return sub, err
		}
		if err := t.addEntry(entries(created)...); err != nil {
			return sub, err
		}
		return t.subject(sub.Tenant, sub.ID)
	})
}
