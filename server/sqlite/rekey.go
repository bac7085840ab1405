package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// Rekey replaces a subject's keys.
func (s *Store) Rekey(ctx context.Context, by audit.Actor, r enroll.KeyChange, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, bool, error) {
	now = truncateToMillis(now)
	out, err := writeAs(ctx, s, by, func(t *tx) (out replayed, err error) {
		before, err := t.subject(r.Tenant, r.Subject)
		if err != nil {
			return out, err
		}
		out.subject, out.replay, err = r.Apply(before, now)
		if err != nil || out.replay {
			return out, err
		}
		if err := t.consumeAssertion(r.Tenant, r.Subject, r.Spent); err != nil {
			return out, err
		}
		out.subject, err = t.putSubject(before, out.subject, entry(before, out.subject))
		return out, err
	})
	return out.subject, out.replay, err
}
