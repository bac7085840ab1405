package registry

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// judge decides for each subject whether a comparison refuses the edit. A fleet has few different sets of labels, so it decides once
// for all subjects with the same kind, role and labels ([policy.AnyID]), and for a subject alone only where its id may matter or
// the common decision is a refusal, which names the subject. It is for one goroutine.
type judge struct {
	r    *Registry
	c    *comparison
	like *cache.Map[likeness, *verdict]
	// compares says that verdicts have differences.
	compares bool
}

// likeness is what subjects have in common that are judged together.
type likeness struct {
	kind   watchword.Kind
	role   string
	labels string
}

// maxVerdicts is how many verdicts a judge remembers at least, and half of what it remembers at most.
const maxVerdicts = 2000

// verdict is the decision for alike subjects.
type verdict struct {
	refused bool // at least for some ids
	ids     *policy.IDs
	// difference is what the edit changes for the subjects, where judge.compares.
	difference policy.Difference
}

func newJudge(r *Registry, c *comparison) *judge {
	return &judge{r: r, c: c, like: cache.New[likeness, *verdict](maxVerdicts)}
}

// check refuses the edit because of the subject. Codes: exceeds_own, token_too_large.
func (j *judge) check(s *watchword.Subject) error {
	if v := j.verdict(s); !v.refused && !j.isApart(s, v) {
		return nil
	}
	w := session.PolicySubject(s)
	was, is := j.grants(s.ID, w)
	return j.r.checkSubject(j.c, s, w, was, is)
}

// isApart reports whether the verdict may not be the one for this subject.
func (j *judge) isApart(s *watchword.Subject, v *verdict) bool {
	return j.c.before.Names(s.ID) || j.c.after.Names(s.ID) || v.ids.Distinct(s.ID)
}

// grants compiles what both sets of policies give a subject; was is nil where it does not matter.
func (j *judge) grants(id watchword.SubjectID, w policy.Subject) (was, is *policy.Grant) {
	if j.compares || j.c.mayNarrow(id) {
		was = j.c.before.GrantFor(w)
	}
	return was, j.c.after.GrantFor(w)
}

// verdict returns the decision for the subjects like s.
func (j *judge) verdict(s *watchword.Subject) *verdict {
	key := likeness{s.Kind, s.Role, s.Labels.String()}
	if v, ok := j.like.Get(key); ok {
		return v
	}
	anyone := *s
	anyone.ID = policy.AnyID
	w := session.PolicySubject(&anyone)
	was, is := j.grants(policy.AnyID, w)
	v := &verdict{refused: j.r.checkSubject(j.c, &anyone, w, was, is) != nil, ids: policy.NewIDs(was, is, j.c.by.Policy)}
	if j.compares {
		v.difference = policy.Compare(j.c.before, j.c.after, w, was, is)
	}
	j.like.Put(key, v)
	return v
}
