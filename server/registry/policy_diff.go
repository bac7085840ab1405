package registry

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// The bounds of a [Diff].
const (
	maxDiffGroups   = 200
	maxDiffBytes    = 384 << 10 // of the JSON of all groups together
	maxDiffSessions = 200
	maxDiffExamples = 5
	maxDiffTime     = 30 * time.Second
)

// Diff is what an edit of a policy would change if it were applied now.
type Diff struct {
	Version int64 // the policy's version that the edit was compared with; 0: there is no policy of that name
	// Refused says why the edit would be refused; nil if it would not.
	Refused error
	// Subjects and Sessions count the subjects, and the live sessions, that gain or lose something.
	Subjects, Sessions int
	// Groups holds the subjects that gain and lose the same, up to 200 groups and 384 KiB of JSON; MoreSubjects counts those of
	// other groups.
	Groups       []DiffGroup
	MoreSubjects int
	Live         []LiveChange // up to 200; Sessions counts all
}

// DiffGroup is subjects of one kind and role that gain and lose the same.
type DiffGroup struct {
	policy.Difference
	Kind     watchword.Kind
	Role     string
	Labels   watchword.Labels // those that all of them have
	Subjects int
	Sessions int                   // live sessions of these subjects that gain or lose something
	Examples []watchword.SubjectID // the first five by id
}

// LiveChange is what an edit changes for a live session: the part of it that the session's token has.
type LiveChange struct {
	Session      *session.Session
	Authority    *session.Authority
	Gains, Loses bool
	Ends         bool // the session did not prove its key, and a proof is required from then on
}

// LiveSessions returns the live sessions of a subject.
type LiveSessions func(t watchword.TenantID, id watchword.SubjectID) []*session.Session

// DiffPolicy returns what Apply with this text would change, or Delete where source is nil, and changes nothing. One comparison
// runs at a time, for 30 seconds at most. Codes: policy_invalid, too_large, timed_out; not_found for the deletion of a policy that is
// not there; busy ([watchword.ErrAuthorityChanged]).
func (r *Registry) DiffPolicy(ctx context.Context, by session.Actor, name string, source []byte, live LiveSessions) (*Diff, error) {
	ctx, cancel := context.WithTimeout(ctx, maxDiffTime)
	defer cancel()
	release, err := r.diffLock.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	before, err := r.directory.Policies(ctx, by.Tenant)
	if err != nil {
		return nil, err
	}
	out, stored := &Diff{}, policy.Stored{}
	if stored, err = r.Policy(ctx, by.Tenant, name); err != nil && watchword.CodeOf(err) != watchword.NotFound {
		return nil, err
	}
	out.Version = stored.Version
	// The document in force is that of the version only if no policy has changed in between.
	if current, err := r.store.PolicyVersion(ctx, by.Tenant); err != nil {
		return nil, err
	} else if current != before.Version() {
		return nil, watchword.ErrAuthorityChanged
	}
	c := comparison{by: by, before: before}
	c.old, _ = before.Document(name)
	switch {
	case source == nil && c.old == nil:
		return nil, watchword.Refuse(watchword.NotFound, "policy %q not found", name)
	case source == nil:
		c.after = before.Without(name)
	default:
		if c.doc, err = policy.Parse(name, source); err != nil {
			return nil, err
		}
		if err := r.checkPolicyLimits(ctx, by.Tenant, name, source); err != nil {
			return nil, err
		}
		c.after = before.With(c.doc)
	}
	return out, r.diff(ctx, &c, live, out)
}

// diff walks over the subjects as checkEdit does, and makes the same decisions, but goes on after a refusal.
func (r *Registry) diff(ctx context.Context, c *comparison, live LiveSessions, out *Diff) error {
	refuse := func(err error) {
		if out.Refused == nil {
			out.Refused = err
		}
	}
	refuse(c.by.MayEdit(c.old, c.doc))
	g := groups{out: out, byText: map[string]int{}}
	j := newJudge(r, c)
	j.compares = true
	return r.eachConcerned(ctx, c.by.Tenant, c.documents(), func(s *watchword.Subject) error {
		w, sessions, v := session.PolicySubject(s), live(c.by.Tenant, s.ID), j.verdict(s)
		d := v.difference
		if v.refused || len(sessions) > 0 || j.isApart(s, v) {
			was, is := j.grants(s.ID, w)
			refuse(r.checkSubject(c, s, w, was, is))
			d = policy.Compare(c.before, c.after, w, was, is)
		}
		if d.IsZero() {
			return nil
		}
		return g.add(w, &d, changesOf(&d, s, sessions))
	})
}

// changesOf returns what the difference changes for live sessions, without those that it changes nothing for, and without
// ordinary requests.
func changesOf(d *policy.Difference, s *watchword.Subject, live []*session.Session) (out []LiveChange) {
	for _, one := range live {
		a := one.Authority()
		if a == nil || one.Class() == session.ClassAnswer {
			continue
		}
		l := LiveChange{Session: one, Authority: a}
		l.Gains, l.Loses = d.Concerns(a.Token())
		if l.Ends = d.ProofAfter && !d.ProofBefore && s.Proof != watchword.RequireProof && !a.KeyProved(); l.Ends || l.Gains || l.Loses {
			out = append(out, l)
		}
	}
	return out
}

// groups collects subjects with the same difference.
type groups struct {
	out    *Diff
	byText map[string]int // index of the group with this kind, role and difference as JSON
	bytes  int
}

func (g *groups) add(w policy.Subject, d *policy.Difference, live []LiveChange) error {
	g.out.Subjects++
	g.out.Sessions += len(live)
	for _, l := range live {
		if len(g.out.Live) < maxDiffSessions {
			g.out.Live = append(g.out.Live, l)
		}
	}
	text, err := json.Marshal(DiffGroup{Difference: *d, Kind: w.Kind, Role: w.Role})
	if err != nil {
		return err
	}
	i, ok := g.byText[string(text)]
	if !ok {
		size := len(text) + 2*len(w.Labels.String()) + 2*maxDiffExamples*len(w.ID)
		if len(g.out.Groups) == maxDiffGroups || len(g.out.Groups) > 0 && g.bytes+size > maxDiffBytes {
			g.out.MoreSubjects++
			return nil
		}
		g.bytes += size
		i = len(g.out.Groups)
		g.byText[string(text)] = i
		g.out.Groups = append(g.out.Groups, DiffGroup{Difference: *d, Kind: w.Kind, Role: w.Role, Labels: maps.Clone(w.Labels)})
	}
	one := &g.out.Groups[i]
	one.Subjects++
	one.Sessions += len(live)
	maps.DeleteFunc(one.Labels, func(k, v string) bool { return w.Labels[k] != v })
	if len(one.Examples) < maxDiffExamples {
		one.Examples = append(one.Examples, w.ID)
	}
	return nil
}
