package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
)

// The methods of this file are those of the store that take an actor and a function that makes the entry, for contracts
// that examine neither: the entry is complete, and has the actor and its versions.

func actor(e audit.Entry) audit.Actor {
	return audit.Actor{Tenant: e.Tenant, Subject: e.Actor, Key: e.Key, Versions: e.Versions}
}

// in returns the actor of an entry, acting in that tenant.
func in(tenant watchword.TenantID, e audit.Entry) audit.Actor {
	by := actor(e)
	by.Tenant = tenant
	return by
}

// AddCommand is [Store.AddCommand].
func (t *T) AddCommand(ctx context.Context, r command.Row, idem command.Idempotency, b command.Bounds, e audit.Entry) (command.Row, bool, error) {
	return t.Store.AddCommand(ctx, actor(e), r, idem, b, audit.FixedEntry[command.Row](e))
}

// AddHandover is [Store.AddHandover].
func (t *T) AddHandover(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, h command.Handover, e audit.Entry) (command.Row, int64, error) {
	return t.Store.AddHandover(ctx, tenant, id, h, audit.FixedEntry[command.Row](e))
}

// MarkUndeliverable is [Store.MarkUndeliverable].
func (t *T) MarkUndeliverable(ctx context.Context, u command.UndeliverableUpdate, e audit.Entry) (command.Row, bool, error) {
	return t.Store.MarkUndeliverable(ctx, u, audit.FixedEntry[command.Row](e))
}

// ApplyReceipt is [Store.ApplyReceipt].
func (t *T) ApplyReceipt(ctx context.Context, s command.ReceiptUpdate, e audit.Entry) (command.Row, bool, error) {
	return t.Store.ApplyReceipt(ctx, actor(e), s, audit.FixedEntry[command.Row](e))
}

// CancelCommand is [Store.CancelCommand].
func (t *T) CancelCommand(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, now time.Time, e audit.Entry) (command.Row, error) {
	return t.Store.CancelCommand(ctx, in(tenant, e), id, now, audit.FixedEntry[command.Row](e))
}

// Suspend is [Store.Suspend].
func (t *T) Suspend(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.Suspend(ctx, in(tenant, e), id, now, audit.FixedEntry[watchword.Subject](e))
}

// RevokeKey is [Store.RevokeKey].
func (t *T) RevokeKey(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, key watchword.KeyID, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.RevokeKey(ctx, in(tenant, e), id, key, now, audit.FixedEntry[watchword.Subject](e))
}

// SetRole is [Store.SetRole].
func (t *T) SetRole(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, role string, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.SetRole(ctx, in(tenant, e), id, role, now, audit.FixedEntry[watchword.Subject](e))
}

// SetName is [Store.SetName].
func (t *T) SetName(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, name string, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.SetName(ctx, in(tenant, e), id, name, now, audit.FixedEntry[watchword.Subject](e))
}

// ForgetSubject is [Store.ForgetSubject].
func (t *T) ForgetSubject(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, e audit.Entry) error {
	return t.Store.ForgetSubject(ctx, in(tenant, e), id, e)
}

// Resume is [Store.Resume].
func (t *T) Resume(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.Resume(ctx, in(tenant, e), id, now, audit.FixedEntry[watchword.Subject](e))
}

// Revoke is [Store.Revoke].
func (t *T) Revoke(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.Revoke(ctx, in(tenant, e), id, now, audit.FixedEntry[watchword.Subject](e))
}

// DeleteSubject is [Store.DeleteSubject].
func (t *T) DeleteSubject(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) error {
	return t.Store.DeleteSubject(ctx, in(tenant, e), id, now, audit.FixedEntry[watchword.Subject](e))
}

// SetLabels is [Store.SetLabels]; the entry says which labels were there, and are.
func (t *T) SetLabels(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, l watchword.Labels, ifVersion int64, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.SetLabels(ctx, in(tenant, e), id, l, ifVersion, now, func(before, after watchword.Subject) audit.Entry {
		return e.With("before", before.Labels.String(), "after", after.Labels.String())
	})
}

// SetProof is [Store.SetProof].
func (t *T) SetProof(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, proof string, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.SetProof(ctx, in(tenant, e), id, proof, now, audit.FixedEntry[watchword.Subject](e))
}

// RedeemCode is [Store.RedeemCode] with the versions of e; the entry's actor and object are the subject.
func (t *T) RedeemCode(ctx context.Context, r enroll.Redemption, now time.Time, e audit.Entry) (watchword.Subject, bool, error) {
	return t.Store.RedeemCode(ctx, r, e.Versions, now, func(_, after watchword.Subject) audit.Entry {
		out := e
		out.Actor, out.Object, out.Versions = after.ID, string(after.ID), watchword.AuthorityVersions{}
		return out
	})
}

// SetKeyEnd is [Store.SetKeyEnd].
func (t *T) SetKeyEnd(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, key watchword.KeyID, end, now time.Time, e audit.Entry) (watchword.Subject, error) {
	return t.Store.SetKeyEnd(ctx, in(tenant, e), id, key, end, now, audit.FixedEntry[watchword.Subject](e))
}

// Rekey is [Store.Rekey].
func (t *T) Rekey(ctx context.Context, r enroll.KeyChange, now time.Time, e audit.Entry) (watchword.Subject, bool, error) {
	return t.Store.Rekey(ctx, actor(e), r, now, audit.FixedEntry[watchword.Subject](e))
}

// ApprovePairing is [Pairings.ApprovePairing].
func (t *T) ApprovePairing(ctx context.Context, a enroll.Approval, now time.Time, es ...audit.Entry) (watchword.Subject, error) {
	by := actor(es[0])
	if by.Subject == "" {
		by.Subject = "operator"
	}
	return t.Store.ApprovePairing(ctx, by, a, now, func(_, _ watchword.Subject) []audit.Entry { return es })
}

// PairingByUserCode is [Pairings.PairingByUserCode] for the pairing of a device.
func (t *T) PairingByUserCode(ctx context.Context, tenant watchword.TenantID, userCode string, now time.Time) (enroll.Pairing, error) {
	t.Helper()
	return t.Store.PairingByUserCode(ctx, tenant, watchword.Device, userCode, now)
}

// PairingByDeviceCode is [Pairings.PairingByDeviceCode] for the pairing of a device.
func (t *T) PairingByDeviceCode(ctx context.Context, tenant watchword.TenantID, device [32]byte, now time.Time) (enroll.Pairing, error) {
	t.Helper()
	return t.Store.PairingByDeviceCode(ctx, tenant, watchword.Device, device, now)
}

// RejectPairing is [Pairings.RejectPairing].
func (t *T) RejectPairing(ctx context.Context, tenant watchword.TenantID, id string, who watchword.SubjectID, now time.Time, e audit.Entry) (enroll.Pairing, error) {
	by := in(tenant, e)
	by.Subject = who
	return t.Store.RejectPairing(ctx, by, id, now, audit.FixedEntry[enroll.Pairing](e))
}

// PutPolicy is [Store.PutPolicy].
func (t *T) PutPolicy(ctx context.Context, tenant watchword.TenantID, name string, source []byte, ifVersion int64, now time.Time, e audit.Entry) (policy.Stored, int64, error) {
	return t.Store.PutPolicy(ctx, in(tenant, e), name, source, ifVersion, now, audit.FixedEntry[policy.Stored](e))
}

// DeletePolicy is [Store.DeletePolicy].
func (t *T) DeletePolicy(ctx context.Context, tenant watchword.TenantID, name string, ifVersion int64, now time.Time, e audit.Entry) (int64, error) {
	return t.Store.DeletePolicy(ctx, in(tenant, e), name, ifVersion, now, audit.FixedEntry[policy.Stored](e))
}

// refusedLeavesNothing mixes steps that are refused in the middle into the same
// commits as steps that pass.
func refusedLeavesNothing(t *T) {
	t.enrolled("lamp-1")
	n := t.log()
	errs := race(60, func(i int) error {
		e := t.entry(audit.CommandOrder, "x")
		switch i % 3 {
		case 0:
			_, _, err := t.AddCommand(t.ctx, t.row(i, "lamp-1"), command.Idempotency{}, unbounded, e)
			return err
		case 1: // the number is taken, then the id is found to exist
			r := t.row(0, "lamp-1")
			r.ID = "cmd_double"
			_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, unbounded, e)
			return err
		default:
			return t.IssueToken(t.ctx, t.record(fmt.Sprint("tok_", i), "nobody"), t.spend("a"), e)
		}
	})
	ok := count(errs)[""]
	equal(t, "steps that passed", ok, 21)
	equal(t, "entries", t.log(), n+ok)
	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 0, t.now, 1000)
	t.must(err)
	equal(t, "commands", len(rows), ok)
	equal(t, "the last number", rows[len(rows)-1].Seq, int64(ok))
	t.must(t.Ping(t.ctx))
}

// Subjects returns at most limit subjects with an id after the given one, in order of ids; of one kind, in one state or with labels alone
// if these are not empty.
func (t *T) Subjects(ctx context.Context, tenant watchword.TenantID, kind watchword.Kind, state watchword.State, sel watchword.Labels, after watchword.SubjectID, limit int) (out []watchword.Subject, err error) {
	for _, k := range []watchword.Kind{watchword.Device, watchword.Operator, watchword.Service} {
		if kind != "" && k != kind {
			continue
		}
		some, err := t.WalkSubjects(ctx, tenant, registry.Walk{Kind: k, Order: registry.OrderID, After: &registry.Position{ID: after}}, 1000)
		if err != nil {
			return nil, err
		}
		for _, s := range some {
			if (state == "" || s.State == state) && s.Labels.Has(sel) {
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b watchword.Subject) int { return cmp.Compare(a.ID, b.ID) })
	return out[:min(len(out), limit)], nil
}
