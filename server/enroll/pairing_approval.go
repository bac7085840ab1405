package enroll

import (
	"context"
	"crypto/subtle"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// PairingApproval is an operator's approval of a pairing. Sign is the whole thumbprint of the signing key, as the device
// shows it: an attacker that saw the code, or requested a pairing with other keys, has another one.
type PairingApproval struct {
	UserCode string
	Sign     watchword.KeyID
	// ID is the id of the device; empty means the requested id. Only an id that is given
	// here may be that of a device that is there already.
	ID     watchword.SubjectID
	Labels watchword.Labels // of a device that is added
}

// TrustPin is what devices check this server's root by.
func (svc *Service) TrustPin() string { return svc.opts.TrustPin() }

// Pairing returns the pairing of that kind of a code that a person typed. Codes: bad_request, not_found.
func (svc *Service) Pairing(ctx context.Context, t watchword.TenantID, k watchword.Kind, userCode string, now time.Time) (Pairing, error) {
	code, err := ParseUserCode(userCode)
	if err != nil {
		return Pairing{}, err
	}
	return svc.store.PairingByUserCode(ctx, t, k, code, now)
}

// Pairings lists pairings of one kind that have not expired, newest first, with ids below before
// (empty: from the newest).
func (svc *Service) Pairings(ctx context.Context, t watchword.TenantID, k watchword.Kind, before string, limit int, now time.Time) ([]Pairing, error) {
	return svc.store.Pairings(ctx, t, k, before, limit, now)
}

// pairingToApprove returns the pending pairing of a user code whose key has exactly this thumbprint, so that a code alone approves
// nothing. Codes: bad_request; not_found for a code that is unknown or over; conflict where the thumbprint is another one or the
// pairing is decided.
func (svc *Service) pairingToApprove(ctx context.Context, t watchword.TenantID, k watchword.Kind, userCode string, sign watchword.KeyID, now time.Time) (Pairing, error) {
	p, err := svc.Pairing(ctx, t, k, userCode, now)
	if err != nil {
		return p, err
	}
	if subtle.ConstantTimeCompare([]byte(sign), []byte(p.Sign.ID)) != 1 {
		return p, &watchword.Error{
			Code: watchword.Conflict, Field: "sign", Detail: "must be the thumbprint of the pairing with this code: compare all 43 characters with those on the screen that shows the code",
		}
	}
	return p, p.CheckPending()
}

// ApprovePairing enrolls the pairing's keys as a device, which is added unless a.ID exists already and is new or revoked.
// Of two concurrent decisions one succeeds. The device gets the id that it requested only if that id is free.
//
// Codes: bad_request; not_found for a code that is unknown or over; conflict
// where the thumbprint is another one, the pairing is decided, or the id is taken;
// token_too_large.
func (svc *Service) ApprovePairing(ctx context.Context, by session.Actor, a PairingApproval, now time.Time) (watchword.Subject, error) {
	p, err := svc.pairingToApprove(ctx, by.Tenant, watchword.Device, a.UserCode, a.Sign, now)
	if err != nil {
		return watchword.Subject{}, err
	}
	id := a.ID
	if id == "" {
		id = p.RequestedID
	}
	if id == "" {
		return watchword.Subject{}, watchword.RefuseField("id", "is required, since the device requested no id")
	}
	approval, err := svc.buildApproval(ctx, by, p, id, a, now)
	if err != nil {
		return watchword.Subject{}, err
	}
	return svc.approve(ctx, by, p, approval, now)
}

// approve stores the approval of p, logs it, and tells the live sessions of the subject.
func (svc *Service) approve(ctx context.Context, by session.Actor, p Pairing, a Approval, now time.Time) (watchword.Subject, error) {
	if !a.Create {
		by = by.On(&a.Subject)
	}
	id := string(a.Subject.ID)
	s, err := svc.store.ApprovePairing(ctx, by.Actor, a, now, func(before, after watchword.Subject) (es []audit.Entry) {
		if a.Create {
			e := by.DoneEntry(audit.KindFor(p.Kind, audit.DeviceCreate), id, now, map[string]string{"labels": a.Subject.Labels.String(), "pairing": p.ID})
			if a.Subject.Role != "" {
				e = e.With("role", a.Subject.Role)
			}
			es = append(es, e)
		}
		e := by.DoneEntry(audit.KindFor(p.Kind, audit.DeviceEnroll), id, now, map[string]string{
			"sign": string(p.Sign.ID), "sign_jwk": string(p.Sign.JWK), "pairing": p.ID, "user_code": FormatUserCode(p.UserCode),
			"before": string(before.State), "after": string(after.State),
		})
		if a.KeyName != "" {
			e = e.With("name", a.KeyName)
		}
		if !a.KeyEnds.IsZero() {
			e = e.With("key_ends", a.KeyEnds.UTC().Format(time.RFC3339))
		}
		if p.Seal.ID != "" {
			e = e.With("seal", string(p.Seal.ID), "seal_jwk", string(p.Seal.JWK))
		}
		return append(es, e)
	})
	if err == nil {
		err = svc.opts.Live.Apply(ctx, watchword.SubjectChange(&s))
	}
	return s, err
}

func (svc *Service) buildApproval(ctx context.Context, by session.Actor, p Pairing, id watchword.SubjectID, a PairingApproval, now time.Time) (Approval, error) {
	out := Approval{Pairing: p.ID, AnswerUntil: now.Add(ApprovedPairingLifetime), Create: true, Subject: watchword.Subject{
		Tenant: by.Tenant, ID: id, Kind: watchword.Device, State: watchword.New, Labels: a.Labels,
		Version: 1, Incarnation: 1, Created: now, Changed: now,
	}}
	if err := watchword.CheckSubjectID(string(id)); err != nil {
		return out, err
	}
	if err := watchword.CheckLabels(a.Labels); err != nil {
		return out, err
	}
	if err := svc.opts.CheckGiven(ctx, by, out.Subject); err != nil {
		return out, err
	}
	switch s, err := svc.store.Subject(ctx, by.Tenant, id); {
	case watchword.CodeOf(err) == watchword.NotFound:
		return out, nil
	case err != nil:
		return out, err
	case a.ID == "":
		return out, watchword.Refuse(watchword.Conflict, "the device requested the id %q, which exists already: send id to confirm it, or another id", id)
	case len(a.Labels) > 0:
		return out, watchword.RefuseField("labels", "must be empty, since the device exists and has labels")
	default:
		out.Create, out.Subject = false, s
		return out, svc.checkComesBack(ctx, by, s)
	}
}

// RejectPairing turns a pairing of that kind down. Codes: bad_request, not_found, conflict.
func (svc *Service) RejectPairing(ctx context.Context, by session.Actor, k watchword.Kind, userCode string, now time.Time) (Pairing, error) {
	p, err := svc.Pairing(ctx, by.Tenant, k, userCode, now)
	if err != nil {
		return p, err
	}
	data := map[string]string{"sign": string(p.Sign.ID), "user_code": FormatUserCode(p.UserCode)}
	if p.Seal.ID != "" {
		data["seal"] = string(p.Seal.ID)
	}
	kind := audit.PairingReject
	if k == watchword.Operator {
		kind = audit.LoginReject
	}
	return svc.store.RejectPairing(ctx, by.Actor, p.ID, now, audit.FixedEntry[Pairing](by.DoneEntry(kind, p.ID, now, data)))
}
