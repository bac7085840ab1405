package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/enroll"
)

// Rekey puts a subject's new keys in the place of its old ones.
func (s *Store) Rekey(ctx context.Context, r enroll.Rekeying, now time.Time, e audit.Entry) (out watchword.Subject, replay bool, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		replay = false
		if out, err = t.subject(r.Tenant, r.Subject); err != nil {
			return err
		}
		if err := out.Usable(); err != nil {
			return err
		}
		gone := watchword.Refuse(watchword.ClientInvalid, "the key is none of the subject's")
		if out.Incarnation != r.Incarnation {
			return gone
		}
		_, signs := out.SignKey(r.Sign.ID)
		if seal, _ := out.SealKey(); signs && seal.ID == r.Seal.ID {
			replay = true
			return nil
		}
		if _, ok := out.SignKey(r.From); !ok {
			return gone
		}
		if err := t.swapKeys(out, r, now); err != nil {
			return err
		}
		out, err = t.setState(out, out.State, now, e)
		return err
	}, e)
	if err != nil {
		return watchword.Subject{}, false, err
	}
	return out, replay, nil
}

func (t *tx) swapKeys(s watchword.Subject, r enroll.Rekeying, now time.Time) error {
	if err := t.seldom(s, now); err != nil {
		return err
	}
	if err := t.spend(r.Tenant, r.Subject, r.Spent); err != nil {
		return err
	}
	_, signs := s.SignKey(r.Sign.ID)
	seal, _ := s.SealKey()
	for _, k := range []struct {
		watchword.Key
		stays bool
	}{{r.Sign, signs}, {r.Seal, seal.ID == r.Seal.ID}} {
		if k.stays {
			continue
		}
		if err := t.addKey(r.Tenant, r.Subject, k.Key); err != nil {
			return err
		}
	}
	_, err := t.exec(`UPDATE subject_keys SET state = 'retired', retired = ? WHERE tenant = ? AND subject = ? AND state = 'active' AND id NOT IN (?, ?)`,
		stamp(now), r.Tenant, r.Subject, r.Sign.ID, r.Seal.ID)
	return err
}

// seldom refuses the key that would be one too many for a while.
func (t *tx) seldom(s watchword.Subject, now time.Time) error {
	added, err := all(context.Background(), t, func(r scanner) (at int64, err error) { return at, r.Scan(&at) },
		`SELECT added FROM subject_keys WHERE tenant = ? AND subject = ? ORDER BY n DESC LIMIT 1 OFFSET ?`, s.Tenant, s.ID, enroll.RekeysMost-1)
	if err != nil || len(added) == 0 {
		return err
	}
	if free := moment(added[0]).Add(enroll.RekeysSpan); free.After(now) {
		return &watchword.Error{Code: watchword.RateLimited, Detail: "too many new keys in a day", RetryAfter: free.Sub(now)}
	}
	return nil
}
