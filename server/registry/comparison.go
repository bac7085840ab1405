package registry

import (
	"context"
	"maps"
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
// or makes a token too large. It reads each subject once. Codes: exceeds_own, token_too_large, timed_out.
func (r *Registry) checkEdit(ctx context.Context, c *comparison) error {
	if err := c.by.MayEdit(c.old, c.doc); err != nil {
		return err
	}
	return r.eachConcerned(ctx, c.by.Tenant, c.documents(), func(s *watchword.Subject, w policy.Subject) error {
		is := c.after.GrantFor(w)
		var was *policy.Grant
		if c.mayNarrow(s.ID) {
			was = c.before.GrantFor(w)
		}
		return r.checkSubject(c, s, w, was, is)
	})
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
// returns an error. It reads no more subjects than the documents' selectors have in common. Code: timed_out where ctx ends.
func (r *Registry) eachConcerned(ctx context.Context, t watchword.TenantID, docs []*policy.Document, f func(*watchword.Subject, policy.Subject) error) error {
	one := func(s *watchword.Subject) error {
		if err := ctx.Err(); err != nil {
			return watchword.Wrap(err, watchword.TimedOut, "the subjects of the policy were not compared in time")
		}
		w := session.PolicySubject(s)
		if s.State == watchword.Revoked || !slices.ContainsFunc(docs, func(d *policy.Document) bool { return d.AppliesTo(w) }) {
			return nil
		}
		return f(s, w)
	}
	ids, kind, labels := selection(docs)
	if ids != nil {
		for _, id := range ids {
			s, err := r.store.Subject(ctx, t, id)
			if watchword.CodeOf(err) == watchword.NotFound {
				continue
			}
			if err == nil {
				err = one(&s)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	const page = 1000
	for after := watchword.SubjectID(""); ; {
		subjects, err := r.store.Subjects(ctx, t, kind, "", labels, after, page)
		if err != nil {
			return err
		}
		for i := range subjects {
			if err := one(&subjects[i]); err != nil {
				return err
			}
		}
		if len(subjects) < page {
			return nil
		}
		after = subjects[page-1].ID
	}
}

// selection returns which subjects must be read to find all that the documents are for: some ids, in order, or, where ids is nil,
// those of a kind (empty: of any) with some labels.
func selection(docs []*policy.Document) (ids []watchword.SubjectID, kind watchword.Kind, labels watchword.Labels) {
	ids = []watchword.SubjectID{}
	kind = watchword.Operator
	for i, d := range docs {
		some, sel := d.SubjectSelector()
		if some == nil {
			ids = nil
		} else if ids != nil {
			ids = append(ids, some...)
		}
		if d.Role() == "" { // only operators have roles
			kind = ""
		}
		if i == 0 {
			labels = maps.Clone(sel)
		}
		maps.DeleteFunc(labels, func(k, v string) bool { return sel[k] != v })
	}
	if ids != nil {
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	return ids, kind, labels
}
