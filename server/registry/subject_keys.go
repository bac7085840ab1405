package registry

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// RevokeKey revokes one signing key of an operator or a service, and the pending enrollment links for the subject and of that key. When it returns, nothing that
// was issued to the key passes any more; tokens and sessions of the other keys stay. Codes: not_found; conflict for a device, and
// for the last key without an end of the last owner; exceeds_own.
func (r *Registry) RevokeKey(ctx context.Context, by session.Actor, id watchword.SubjectID, key watchword.KeyID, now time.Time) (watchword.Subject, error) {
	s, _, by, err := r.mayActOn(ctx, by, id)
	if err != nil {
		return s, err
	}
	return r.notifySubjectChanged(ctx)(r.store.RevokeKey(ctx, by.Actor, id, key, now, func(_, after watchword.Subject) audit.Entry {
		return by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceKeyRevoke), string(id), now, map[string]string{"sign": string(key)})
	}))
}

// SetKeyEnd sets the end of one signing key of an operator or a service, or makes it earlier. When it returns, the end counts for all
// tokens and sessions of the key. Codes: not_found; bad_request for an end that has passed; conflict for a device, a later end, a
// key that is not valid, and the last key without an end of the last owner; exceeds_own.
func (r *Registry) SetKeyEnd(ctx context.Context, by session.Actor, id watchword.SubjectID, key watchword.KeyID, end, now time.Time) (watchword.Subject, error) {
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.SetKeyEnd(key, end, now) }
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.SetKeyEnd(ctx, by.Actor, id, key, end, now, func(_, after watchword.Subject) audit.Entry {
			return by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceKeyEnd), string(id), now, map[string]string{"sign": string(key), "key_ends": end.Truncate(time.Second).UTC().Format(time.RFC3339)})
		})
	})
}

// retireBatch is how many subjects one transaction of [Registry.RetireEndedKeys] changes at most.
const retireBatch = 100

// RetireEndedKeys retires the keys whose ends have passed: a step of housekeeping. It changes at most [retireBatch] subjects, and
// returns how many. Code: unavailable.
func (r *Registry) RetireEndedKeys(ctx context.Context, now time.Time) (int, error) {
	changed, err := r.store.RetireEndedKeys(ctx, now, retireBatch, func(before, after watchword.Subject) audit.Entry {
		var ended []string
		for i, k := range after.Keys {
			if k.State != before.Keys[i].State {
				ended = append(ended, string(k.ID))
			}
		}
		by := audit.Actor{Tenant: after.Tenant}
		return by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceKeyRetire), string(after.ID), now, map[string]string{"keys": strings.Join(slices.Sorted(slices.Values(ended)), " ")})
	})
	for i := range changed {
		if _, lerr := r.notifySubjectChanged(ctx)(changed[i], nil); err == nil {
			err = lerr
		}
	}
	return len(changed), err
}

// maxEnding is how many subjects with ending keys [Registry.AccessEnding] looks at.
const maxEnding = 100

// AccessEnding returns the operators and services whose last valid key ends at the latest at until, with their keys: of more than
// [maxEnding] subjects with ending keys, the operators first, and of a kind those whose keys end first. Code: unavailable.
func (r *Registry) AccessEnding(ctx context.Context, t watchword.TenantID, now, until time.Time) ([]watchword.Subject, error) {
	ids, err := r.store.SubjectsWithEndingKeys(ctx, t, now, until, maxEnding)
	if err != nil {
		return nil, err
	}
	var out []watchword.Subject
	for _, id := range ids {
		s, err := r.store.Subject(ctx, t, id)
		if watchword.CodeOf(err) == watchword.NotFound { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		if end := s.AccessEnds(now); s.Kind != watchword.Device && s.State == watchword.Active && !end.IsZero() && !end.After(until) {
			out = append(out, s)
		}
	}
	return out, nil
}
