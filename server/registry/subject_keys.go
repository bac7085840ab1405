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

// RevokeKey revokes one signing key of an operator or a service, and its pending enrollment links. When it returns, nothing that
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
