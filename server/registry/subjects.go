package registry

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// Store is what a [Registry] needs from the store.
type Store interface {
	DirectoryStore
	// EachSubject calls f with each subject that one of some selectors chooses, in order of ids, until f returns an error, which it
	// returns. A subject has ID, Kind, Role, State, Labels and Proof; f must not change the labels. It may be called with more subjects: those
	// that a selector chooses by one of its labels.
	EachSubject(ctx context.Context, t watchword.TenantID, some []policy.Selector, f func(*watchword.Subject) error) error
	// WalkSubjects returns at most limit subjects without their keys, and reads no others.
	WalkSubjects(ctx context.Context, t watchword.TenantID, w Walk, limit int) ([]watchword.Subject, error)
	// SubjectCounts returns how many subjects of a kind there are in each state.
	SubjectCounts(ctx context.Context, t watchword.TenantID, kind watchword.Kind) (map[watchword.State]int64, error)
	// LabelCount returns how many subjects of a kind have a label with that value.
	LabelCount(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key, value string) (int64, error)
	// LabelCounts returns at most limit counts of labels, in order of key and value, after the given ones; of one key alone if it
	// is not empty.
	LabelCounts(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key, afterKey, afterValue string, limit int) ([]LabelTotal, error)
	SetLabels(ctx context.Context, by audit.Actor, id watchword.SubjectID, l watchword.Labels, ifVersion int64, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	SetProof(ctx context.Context, by audit.Actor, id watchword.SubjectID, proof string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// SetRole, Suspend, Revoke, DeleteSubject and RevokeKey leave at least one owner with a key that has no end
	// ([watchword.ErrLastOwner]).
	SetRole(ctx context.Context, by audit.Actor, id watchword.SubjectID, role string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	Suspend(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	Resume(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	Revoke(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// RevokeKey deletes the subject's enrollment codes too. Codes: not_found, conflict.
	RevokeKey(ctx context.Context, by audit.Actor, id watchword.SubjectID, key watchword.KeyID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// SetKeyEnd sets or shortens the end of a key. Codes: not_found, conflict, bad_request ([watchword.Subject.SetKeyEnd]).
	SetKeyEnd(ctx context.Context, by audit.Actor, id watchword.SubjectID, key watchword.KeyID, end, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// RetireEndedKeys retires the ended keys of at most limit subjects of all tenants, and returns these subjects.
	RetireEndedKeys(ctx context.Context, now time.Time, limit int, entry audit.EntryOf[watchword.Subject]) ([]watchword.Subject, error)
	// SubjectsWithEndingKeys returns at most limit subjects of which an active key ends after now and at the latest at until: operators
	// first, and of a kind those whose keys end first.
	SubjectsWithEndingKeys(ctx context.Context, t watchword.TenantID, now, until time.Time, limit int) ([]watchword.SubjectID, error)
	// SetName changes no authority version.
	SetName(ctx context.Context, by audit.Actor, id watchword.SubjectID, name string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// ForgetSubject makes the id of a deleted device free. Codes: not_found where no deleted subject has it, conflict.
	ForgetSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, e audit.Entry) error
	DeleteSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) error
	// Notices returns a tenant's notices that have not expired, one of each kind and object.
	Notices(ctx context.Context, t watchword.TenantID, now time.Time) ([]watchword.Notice, error)
	// AcknowledgeNotice deletes the notice of a kind that is of object, at at. Codes: not_found; conflict, denied
	// ([watchword.Notice.MayAcknowledge]).
	AcknowledgeNotice(ctx context.Context, by audit.Actor, kind watchword.NoticeKind, object watchword.SubjectID, at, now time.Time, e audit.Entry) error
	// PutPolicy stores a policy and returns it with the version of all policies; ifVersion is the
	// policy's version before, 0 for one that is not there, -1 for any. Codes: precondition_failed,
	// too_large, busy (authority that changed).
	PutPolicy(ctx context.Context, by audit.Actor, name string, source []byte, ifVersion int64, now time.Time, entry audit.EntryOf[policy.Stored]) (p policy.Stored, version int64, err error)
	// DeletePolicy returns the version of all policies. Codes: not_found, precondition_failed, busy.
	DeletePolicy(ctx context.Context, by audit.Actor, name string, ifVersion int64, now time.Time, entry audit.EntryOf[policy.Stored]) (version int64, err error)
}

// Live applies each change that is in the store. Apply returns only when everything that the change removed is refused. It
// is a [session.Live].
type Live interface {
	Apply(ctx context.Context, c watchword.Change) error
}

// Registry changes subjects and policies. It is safe for concurrent use.
type Registry struct {
	store     Store
	directory *Directory
	live      Live
	issuers   watchword.IssuerSource

	editLock editLock
	diffLock editLock // held by the comparison of [Registry.DiffPolicy]
}

// New returns a registry that writes to st, asks d, and takes its changes to live. issuers are those of the tokens of its subjects.
func New(st Store, d *Directory, live Live, issuers watchword.IssuerSource) *Registry {
	return &Registry{store: st, directory: d, live: live, issuers: issuers, editLock: newEditLock(), diffLock: newEditLock()}
}

// Subject returns one subject with its keys. Code: not_found.
func (r *Registry) Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	return r.store.Subject(ctx, t, id)
}

// CheckTokenSize refuses a subject whose token would outgrow 4 KiB under the current policies.
// Code: token_too_large.
func (r *Registry) CheckTokenSize(ctx context.Context, s watchword.Subject) error {
	set, err := r.directory.Policies(ctx, s.Tenant)
	if err != nil {
		return err
	}
	return r.checkTokenSize(set, s)
}

func (r *Registry) checkTokenSize(set *policy.Set, s watchword.Subject) error {
	return r.checkGrantSize(set.GrantFor(session.PolicySubject(&s)), &s)
}

// checkGrantSize refuses a subject whose token would outgrow 4 KiB with what g gives it. Code: token_too_large.
func (r *Registry) checkGrantSize(g *policy.Grant, s *watchword.Subject) error {
	return token.Grant{Issuer: r.issuers().Current(s.Tenant), Subject: *s, Perm: g.Perm(), Deny: g.Deny()}.CheckSize()
}

// SetLabels replaces the labels and recomputes what they decide. Codes:
// bad_request, not_found, precondition_failed, token_too_large, exceeds_own.
func (r *Registry) SetLabels(ctx context.Context, by session.Actor, id watchword.SubjectID, l watchword.Labels, ifVersion int64, now time.Time) (watchword.Subject, error) {
	if err := watchword.CheckLabels(l); err != nil {
		return watchword.Subject{}, err
	}
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.Relabel(l, ifVersion, now) }
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.SetLabels(ctx, by.Actor, id, l, ifVersion, now, func(before, after watchword.Subject) audit.Entry {
			return by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceLabel), string(id), now, map[string]string{"before": before.Labels.String(), "after": after.Labels.String()})
		})
	})
}

// SetName changes what people call a subject. Codes: bad_request, not_found, exceeds_own.
func (r *Registry) SetName(ctx context.Context, by session.Actor, id watchword.SubjectID, name string, now time.Time) (watchword.Subject, error) {
	if err := watchword.CheckSubjectName(name); err != nil {
		return watchword.Subject{}, err
	}
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) {
		after, changes := s.Rename(name, now)
		return after, changes, nil
	}
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.SetName(ctx, by.Actor, id, name, now, func(before, after watchword.Subject) audit.Entry {
			return by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceName), string(id), now, map[string]string{"before": before.Name, "after": after.Name})
		})
	})
}

// ForgetDevice makes the id of a deleted device free: a device that is added with it begins with the next incarnation, so that no key,
// token or session of the deleted one counts for it. What is logged and ordered stays. Codes: not_found where no deleted subject has
// the id, conflict where it was an operator or a service.
func (r *Registry) ForgetDevice(ctx context.Context, by session.Actor, id watchword.SubjectID, now time.Time) error {
	return r.store.ForgetSubject(ctx, by.Actor, id, by.DoneEntry(audit.DeviceForget, string(id), now, nil))
}

// SetProof says whether a subject gets anything without a proof of its key: proof is
// [watchword.RequireProof] or empty. Sessions without one end at once. Codes:
// bad_request, not_found, exceeds_own.
func (r *Registry) SetProof(ctx context.Context, by session.Actor, id watchword.SubjectID, proof string, now time.Time) (watchword.Subject, error) {
	if err := watchword.CheckProof(proof); err != nil {
		return watchword.Subject{}, err
	}
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) {
		after, changes := s.SetProof(proof, now)
		return after, changes, nil
	}
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.SetProof(ctx, by.Actor, id, proof, now, func(before, after watchword.Subject) audit.Entry {
			return by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceProof), string(id), now, map[string]string{"before": before.Proof, "after": after.Proof})
		})
	})
}

// CheckRole refuses a role that is neither built in nor that of a policy. Codes: bad_request, unavailable.
func (r *Registry) CheckRole(ctx context.Context, t watchword.TenantID, role string) error {
	set, err := r.directory.Policies(ctx, t)
	if err != nil {
		return err
	}
	if !set.HasRole(role) {
		return watchword.RefuseField("role", "must be %s, or a role that a policy defines (role = %q); see docs/policies.md", strings.Join(policy.BuiltInRoles, ", "), role)
	}
	return nil
}

// SetRole gives an operator another role, and recomputes what it decides. Codes: bad_request for an unknown role, not_found,
// conflict for the last owner and for another kind of subject, exceeds_own, token_too_large.
func (r *Registry) SetRole(ctx context.Context, by session.Actor, id watchword.SubjectID, role string, now time.Time) (watchword.Subject, error) {
	if err := r.CheckRole(ctx, by.Tenant, role); err != nil {
		return watchword.Subject{}, err
	}
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.SetRole(role, now) }
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.SetRole(ctx, by.Actor, id, role, now, func(before, after watchword.Subject) audit.Entry {
			return by.DoneEntry(audit.OperatorRole, string(id), now, map[string]string{"before": before.Role, "after": after.Role})
		})
	})
}

// Suspend stops everything of a subject until Resume. Codes: not_found, conflict (also for the last owner), exceeds_own.
func (r *Registry) Suspend(ctx context.Context, by session.Actor, id watchword.SubjectID, reason string, now time.Time) (watchword.Subject, error) {
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.Suspend(now) }
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.Suspend(ctx, by.Actor, id, now, stateChangeEntry(by, audit.DeviceSuspend, reason, now))
	})
}

// Resume gives a suspended subject back all it had. Codes: not_found, conflict, exceeds_own.
func (r *Registry) Resume(ctx context.Context, by session.Actor, id watchword.SubjectID, now time.Time) (watchword.Subject, error) {
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.Resume(now) }
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.Resume(ctx, by.Actor, id, now, stateChangeEntry(by, audit.DeviceResume, "", now))
	})
}

// Revoke ends a subject's keys, tokens and sessions permanently. When it returns,
// nothing of the subject passes any more. Codes: not_found, conflict for the last owner, exceeds_own.
func (r *Registry) Revoke(ctx context.Context, by session.Actor, id watchword.SubjectID, reason string, now time.Time) (watchword.Subject, error) {
	rule := func(s watchword.Subject) (watchword.Subject, bool, error) {
		after, changes := s.Revoke(now)
		return after, changes, nil
	}
	return r.change(ctx, by, id, rule, func(by session.Actor) (watchword.Subject, error) {
		return r.store.Revoke(ctx, by.Actor, id, now, stateChangeEntry(by, audit.DeviceRevoke, reason, now))
	})
}

// Delete revokes a subject and leaves a tombstone: no id means two things over
// time. Codes: not_found, conflict for the last owner, exceeds_own.
func (r *Registry) Delete(ctx context.Context, by session.Actor, id watchword.SubjectID, now time.Time) error {
	s, _, by, err := r.mayActOn(ctx, by, id)
	if err != nil {
		return err
	}
	err = r.store.DeleteSubject(ctx, by.Actor, id, now, audit.FixedEntry[watchword.Subject](by.DoneEntry(audit.KindFor(s.Kind, audit.DeviceDelete), string(id), now, nil)))
	if err != nil {
		return err
	}
	return r.live.Apply(ctx, watchword.Change{Tenant: by.Tenant, Kind: watchword.SubjectDeleted, ID: string(id), Version: 1})
}

// change performs an act on a subject. rule says what the subject is after the act, and false where it is as before; write has the
// store apply the same rule, in its transaction. An act that leaves the subject as it is needs no right to give: nothing is written,
// and nothing is logged. Codes: not_found, exceeds_own, token_too_large, and those of rule and write.
func (r *Registry) change(ctx context.Context, by session.Actor, id watchword.SubjectID, rule func(watchword.Subject) (watchword.Subject, bool, error), write func(session.Actor) (watchword.Subject, error)) (watchword.Subject, error) {
	s, before, by, err := r.mayActOn(ctx, by, id)
	if err != nil {
		return s, err
	}
	after, changes, err := rule(s)
	if err != nil || !changes {
		return s, err
	}
	if err := r.checkChange(ctx, by, before, &s, &after); err != nil {
		return s, err
	}
	return r.notifySubjectChanged(ctx)(write(by))
}

// checkChange refuses a change of a subject, which has the grant g before it, if the subject's token would outgrow 4 KiB, or the
// change gives what the actor may not give. Codes: token_too_large, exceeds_own, unavailable.
func (r *Registry) checkChange(ctx context.Context, by session.Actor, g *policy.Grant, before, after *watchword.Subject) error {
	switch ended := after.State == watchword.Suspended || after.State == watchword.Revoked; {
	case ended && after.State != before.State:
		return nil // it can do nothing from then on
	case before.State == watchword.Suspended && !ended:
		g = nil // it could do nothing
	case before.Proof == watchword.RequireProof && after.Proof == "":
		g = nil // a holder of the subject's token, without its key, gains what the subject has
	}
	given, err := r.grant(ctx, after)
	if err != nil {
		return err
	}
	if before.Role != after.Role || !maps.Equal(before.Labels, after.Labels) {
		if err := r.checkGrantSize(given, after); err != nil {
			return err
		}
	}
	return by.MayGive(g, given)
}

// mayActOn reads a subject and refuses acts on it that the actor may not do (session.Actor.MayActOn). It returns what policy gives
// the subject, and the actor with the version of the subject.
func (r *Registry) mayActOn(ctx context.Context, by session.Actor, id watchword.SubjectID) (watchword.Subject, *policy.Grant, session.Actor, error) {
	s, err := r.store.Subject(ctx, by.Tenant, id)
	if err != nil {
		return s, nil, by, err
	}
	g, err := r.grant(ctx, &s)
	if err != nil {
		return s, nil, by, err
	}
	return s, g, by.On(&s), by.MayActOn(id, g)
}

// mayGive refuses to give s what policy gives it, where it has before now. Codes: exceeds_own, unavailable.
func (r *Registry) mayGive(ctx context.Context, by session.Actor, before *policy.Grant, s watchword.Subject) error {
	after, err := r.grant(ctx, &s)
	if err != nil {
		return err
	}
	return by.MayGive(before, after)
}

// grant is what policy gives a subject now, whatever its state is.
func (r *Registry) grant(ctx context.Context, s *watchword.Subject) (*policy.Grant, error) {
	set, err := r.directory.Policies(ctx, s.Tenant)
	if err != nil {
		return nil, err
	}
	return set.GrantFor(session.PolicySubject(s)), nil
}

// MayActOn refuses an act on a subject that has more than the actor, such as closing its session or revoking its token. It
// returns the actor with the version of the subject, which the store compares. Codes: exceeds_own, not_found, unavailable.
func (r *Registry) MayActOn(ctx context.Context, by session.Actor, id watchword.SubjectID) (session.Actor, error) {
	_, _, by, err := r.mayActOn(ctx, by, id)
	return by, err
}

// CheckActOn is [Registry.MayActOn] for a subject that was read already.
func (r *Registry) CheckActOn(ctx context.Context, by session.Actor, s watchword.Subject) error {
	g, err := r.grant(ctx, &s)
	if err != nil {
		return err
	}
	return by.MayActOn(s.ID, g)
}

// CheckGiven refuses a subject that is to be added, or to come back, if its token would outgrow 4 KiB or it would have what the
// actor may not give. Codes: token_too_large, exceeds_own, unavailable.
func (r *Registry) CheckGiven(ctx context.Context, by session.Actor, s watchword.Subject) error {
	if err := r.CheckTokenSize(ctx, s); err != nil {
		return err
	}
	return r.mayGive(ctx, by, nil, s)
}

// notifySubjectChanged takes the change of a subject to every live session before it is answered.
func (r *Registry) notifySubjectChanged(ctx context.Context) func(watchword.Subject, error) (watchword.Subject, error) {
	return func(s watchword.Subject, err error) (watchword.Subject, error) {
		if err == nil {
			err = r.live.Apply(ctx, watchword.SubjectChange(&s))
		}
		return s, err
	}
}

// stateChangeEntry makes the entry of a subject whose state changes.
func stateChangeEntry(by session.Actor, kind, reason string, now time.Time) audit.EntryOf[watchword.Subject] {
	return func(before, after watchword.Subject) audit.Entry {
		data := map[string]string{"before": string(before.State), "after": string(after.State)}
		if reason != "" {
			data["reason"] = reason
		}
		return by.DoneEntry(audit.KindFor(after.Kind, kind), string(after.ID), now, data)
	}
}
