package registry

import (
	"bytes"
	"context"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// editLock lets one policy change, or one comparison, after the other pass, and the wait for it
// end with the caller's context.
type editLock chan struct{}

func newEditLock() editLock { return make(editLock, 1) }

func (l editLock) acquire(ctx context.Context) (release func(), err error) {
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, watchword.Wrap(ctx.Err(), watchword.TimedOut, "another change or comparison of policies was not finished in time")
	}
}

// Policies returns all documents, by name.
func (r *Registry) Policies(ctx context.Context, t watchword.TenantID) ([]policy.Stored, error) {
	return r.store.Policies(ctx, t)
}

// Policy returns one document. Code: not_found.
func (r *Registry) Policy(ctx context.Context, t watchword.TenantID, name string) (policy.Stored, error) {
	rows, err := r.store.Policies(ctx, t)
	for _, row := range rows {
		if row.Name == name {
			return row, nil
		}
	}
	if err != nil {
		return policy.Stored{}, err
	}
	return policy.Stored{}, watchword.Refuse(watchword.NotFound, "policy %q not found", name)
}

// CheckPolicy finds a document's mistakes, and the subjects whose tokens would
// outgrow 4 KiB under it. Codes: policy_invalid, token_too_large.
func (r *Registry) CheckPolicy(ctx context.Context, t watchword.TenantID, name string, source []byte) error {
	doc, err := policy.Parse(name, source)
	if err != nil {
		return err
	}
	set, err := r.directory.Policies(ctx, t)
	if err != nil {
		return err
	}
	j := newJudge(r, &comparison{by: session.Actor{Actor: audit.Actor{Tenant: t}}, before: set, after: set.With(doc), doc: doc})
	return r.eachConcerned(ctx, t, []*policy.Document{doc}, j.check)
}

// The bounds of all policies of a tenant together: all are compiled at the start and looked at for each subject.
const (
	maxPolicies      = 1000
	maxPoliciesBytes = 4 << 20 // bytes
)

// checkPolicyLimits refuses a document that there is no room for beside the others. Code: too_large.
func (r *Registry) checkPolicyLimits(ctx context.Context, t watchword.TenantID, name string, source []byte) error {
	rows, err := r.store.Policies(ctx, t)
	if err != nil {
		return err
	}
	count, text := 1, len(source)
	for _, row := range rows {
		if row.Name != name {
			count, text = count+1, text+len(row.Source)
		}
	}
	if count > maxPolicies || text > maxPoliciesBytes {
		return watchword.Refuse(watchword.TooLarge, "at most %d policies, of %d bytes together, can be stored", maxPolicies, maxPoliciesBytes)
	}
	return nil
}

// PolicyEdit is the exclusive right to edit the policies of this process, from
// [Registry.EditPolicies] to End. Each edit moves the version of all policies, and so what
// every other edit was decided on: decide within it, or many editors at once decide again
// and again. It is for one goroutine.
type PolicyEdit struct {
	r       *Registry
	release func()
}

// EditPolicies waits until no other edit of policies is under way, in the order of the calls.
// Code: timed_out where ctx ends before.
func (r *Registry) EditPolicies(ctx context.Context) (*PolicyEdit, error) {
	release, err := r.editLock.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return &PolicyEdit{r, release}, nil
}

// Release lets the next edit pass.
func (p *PolicyEdit) Release() { p.release() }

// checkVersion returns ErrAuthorityChanged where an edit was decided under policies that are not in force
// any more. The store compares too, with more, in the transaction: this is before the work.
func (p *PolicyEdit) checkVersion(b watchword.AuthorityVersions, before *policy.Set) error {
	if !b.IsZero() && !b.Local && b.Policies < before.Version() {
		return watchword.ErrAuthorityChanged
	}
	return nil
}

// Apply puts a document in force: checked, stored, and every live session that it
// touches recomputed before the answer. ifVersion is -1 for any, 0 for none yet, else
// the version that was compared. Codes: policy_invalid, token_too_large, too_large,
// precondition_failed, busy ([watchword.ErrAuthorityChanged]).
func (p *PolicyEdit) Apply(ctx context.Context, by session.Actor, name string, source []byte, ifVersion int64, now time.Time) (policy.Stored, error) {
	before, err := p.r.directory.Policies(ctx, by.Tenant)
	if err == nil {
		err = p.checkVersion(by.Versions, before)
	}
	if err != nil {
		return policy.Stored{}, err
	}
	doc, err := policy.Parse(name, source)
	if err != nil {
		return policy.Stored{}, err
	}
	r, c := p.r, comparison{by: by, before: before, after: before.With(doc), doc: doc}
	c.old, _ = before.Document(name)
	if err := r.checkPolicyLimits(ctx, by.Tenant, name, source); err != nil {
		return policy.Stored{}, err
	}
	if err := r.checkEdit(ctx, &c); err != nil {
		return policy.Stored{}, err
	}
	entry := func(before, after policy.Stored) audit.Entry {
		return by.DoneEntry(audit.PolicyApply, name, now, map[string]string{
			"after": jose.Hash(source), "source": string(source), "version": strconv.FormatInt(after.Version, 10),
		}).With(replaced(before)...)
	}
	row, version, err := r.store.PutPolicy(ctx, by.Actor, name, bytes.Clone(source), ifVersion, now, entry)
	if err != nil {
		return row, err
	}
	return row, r.notifyPoliciesChanged(ctx, by.Tenant, version)
}

// Delete takes a document out of force, as Apply puts it in. Codes: not_found,
// precondition_failed, busy.
func (p *PolicyEdit) Delete(ctx context.Context, by session.Actor, name string, ifVersion int64, now time.Time) error {
	r := p.r
	before, err := r.directory.Policies(ctx, by.Tenant)
	if err == nil {
		err = p.checkVersion(by.Versions, before)
	}
	if err != nil {
		return err
	}
	if old, ok := before.Document(name); ok {
		if err := r.checkEdit(ctx, &comparison{by: by, before: before, after: before.Without(name), old: old}); err != nil {
			return err
		}
	}
	entry := func(before, _ policy.Stored) audit.Entry {
		return by.DoneEntry(audit.PolicyDelete, name, now, nil).With(replaced(before)...)
	}
	version, err := r.store.DeletePolicy(ctx, by.Actor, name, ifVersion, now, entry)
	if err != nil {
		return err
	}
	return r.notifyPoliciesChanged(ctx, by.Tenant, version)
}

// replaced is what an entry says of the document that was there before.
func replaced(before policy.Stored) []string {
	if !before.Exists() {
		return nil
	}
	return []string{"before", jose.Hash(before.Source), "before_version", strconv.FormatInt(before.Version, 10)}
}

// notifyPoliciesChanged takes the change of a tenant's policies to every live session.
func (r *Registry) notifyPoliciesChanged(ctx context.Context, t watchword.TenantID, version int64) error {
	return r.live.Apply(ctx, watchword.Change{Tenant: t, Kind: watchword.PoliciesChanged, Version: version})
}

// Explain says what the current policy answers to one question about one subject,
// and why. A subject that is not active may do nothing: Why says so. Code:
// not_found.
func (r *Registry) Explain(ctx context.Context, t watchword.TenantID, subject watchword.SubjectID, action, resource string, args []byte) (policy.Explanation, error) {
	p, err := r.directory.Principal(ctx, t, subject)
	if err != nil {
		return policy.Explanation{}, err
	}
	s, grant := p.Subject, p.Grant
	if err := s.CheckActive(); err != nil {
		return policy.Explanation{Why: string(s.Kind) + " is " + string(s.State)}, nil
	}
	target, err := r.target(ctx, t, resource)
	if err != nil {
		return policy.Explanation{}, err
	}
	e := grant.Explain(action, resource, target, args)
	if rule, required := grant.ProofRequired(); required {
		e.Proof = "required by policy " + rule
	} else if s.Proof == watchword.RequireProof {
		e.Proof = "required of " + string(s.ID)
	}
	return e, nil
}
