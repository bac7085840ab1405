package registry

import (
	"context"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// comparison is an edit of a policy, compared with the policies in force: it decides whether the edit is refused, and
// [Registry.DiffPolicy] lists what it changes.
type comparison struct {
	by            session.Actor
	before, after *policy.Set
	old, doc      *policy.Document // the document before the edit and after it; nil for none
}

// documents returns both versions of the document.
func (c *comparison) documents() (out []*policy.Document) {
	for _, d := range []*policy.Document{c.old, c.doc} {
		if d != nil {
			out = append(out, d)
		}
	}
	return out
}

// checkEdit refuses an edit that gives what the actor may not give, takes something from a subject which has more than the actor,
// or makes a token too large. It reads each subject that the edit concerns once. Codes: exceeds_own, token_too_large, timed_out.
func (r *Registry) checkEdit(ctx context.Context, c *comparison) error {
	if err := c.by.MayEdit(c.old, c.doc); err != nil {
		return err
	}
	return r.eachConcerned(ctx, c.by.Tenant, c.documents(), newJudge(r, c).check)
}

// mayNarrow reports whether the edit may be refused because it takes something from the subject. The server itself, and a process
// with access to the data folder, may take everything, and every actor from itself.
func (c *comparison) mayNarrow(id watchword.SubjectID) bool {
	return c.by.Policy != nil && id != c.by.Subject
}

// checkSubject is checkEdit for one subject that one of the two documents is for. was is not read where it cannot matter.
func (r *Registry) checkSubject(c *comparison, s *watchword.Subject, w policy.Subject, was, is *policy.Grant) error {
	if c.doc != nil && c.doc.AppliesTo(w) {
		if err := r.checkGrantSize(is, s); err != nil {
			return err
		}
	}
	if !c.mayNarrow(s.ID) || !policy.Narrows(was, is) {
		return nil
	}
	if err := c.by.MayActOn(s.ID, was); err != nil {
		return watchword.Wrap(err, watchword.ExceedsOwn, "the policy takes something from %q: %s", s.ID, watchword.DetailOf(err))
	}
	return nil
}

// eachConcerned calls f with each subject of the tenant, not revoked, that one of some documents is for, in order of ids, until it
// returns an error. It reads no other subjects, but for those with one of several labels of a document. Of a subject it has ID, Kind,
// Role, State, Labels and Proof; subjects with the same labels may share them. Code: timed_out where ctx ends.
func (r *Registry) eachConcerned(ctx context.Context, t watchword.TenantID, docs []*policy.Document, f func(*watchword.Subject) error) error {
	var some []policy.Selector
	for _, d := range docs {
		some = append(some, d.Selector())
	}
	err := r.store.EachSubject(ctx, t, some, func(s *watchword.Subject) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		w := session.PolicySubject(s)
		if s.State == watchword.Revoked || !slices.ContainsFunc(docs, func(d *policy.Document) bool { return d.AppliesTo(w) }) {
			return nil
		}
		return f(s)
	})
	if err != nil && ctx.Err() != nil {
		return watchword.Wrap(ctx.Err(), watchword.TimedOut, "the subjects of the policy were not compared in time")
	}
	return err
}
