package policy

import (
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// MayNotGive returns the first permission that a subject whose grant is after has, that it does not have under before, and
// that the holder of g may not give; false if there is none. before is nil for a subject that may do nothing so far. What
// the policy self gives to every subject does not count. If a proof of the key was required before and is not any more, the
// whole of after counts as given.
func (g *Grant) MayNotGive(before, after *Grant) (watchword.Permission, bool) {
	if before == nil || before.proof != nil && after.proof == nil {
		before = &Grant{}
	}
	if after.givesEveryTopic && !before.givesEveryTopic && !g.givesEveryTopic {
		return everyTopic, true
	}
	for _, of := range []func(*Grant) *rules{(*Grant).held, (*Grant).givable} {
		gained, lacks := extent{allowed: withoutSelf(of(after)), denied: &after.Denied}, extent{allowed: of(before), denied: &before.Denied}
		for _, one := range gained.each() {
			if _, isNew := uncovered(one, lacks); !isNew {
				continue
			}
			if p, over := uncovered(one, g.gives()); over {
				return p, true
			}
		}
	}
	return watchword.Permission{}, false
}

// Lacks returns the first permission that the holder of other has, or may give, and that the holder of g neither has nor
// may give; false if there is none. A subject that lacks one may not narrow, suspend, revoke, relabel or close the other.
func (g *Grant) Lacks(other *Grant) (watchword.Permission, bool) {
	for _, one := range (extent{allowed: withoutSelf(&other.Allowed), denied: &other.Denied}).each() {
		p, over := uncovered(one, extent{allowed: &g.Allowed, denied: &g.Denied})
		if over {
			p, over = uncovered(one, g.gives())
		}
		if over {
			return p, true
		}
	}
	if other.givesEveryTopic && !g.givesEveryTopic {
		return everyTopic, true
	}
	return uncovered(extent{allowed: other.givable(), denied: &other.Denied}, g.gives())
}

// everyTopic names the right to give all topics, with those that start with $.
var everyTopic = watchword.Permission{Resource: watchword.TopicPrefix + allTopic, Actions: topicActions}

// Narrows reports whether something that before allows is not allowed by after.
func Narrows(before, after *Grant) bool {
	_, loses := uncovered(before.holds(), after.holds())
	return loses || before.proof == nil && after.proof != nil
}

func (g *Grant) held() *rules { return &g.Allowed }

// holds is what the subject may do.
func (g *Grant) holds() extent { return extent{allowed: &g.Allowed, denied: &g.Denied} }

// gives is what the subject may give to others.
func (g *Grant) gives() extent {
	return extent{allowed: g.givable(), denied: &g.Denied, everyTopic: g.givesEveryTopic}
}

// givable returns what the subject may give: what a role or a member may_give says, and what documents without that member
// allow.
func (g *Grant) givable() *rules {
	out := &rules{}
	appendRules(out, &g.give)
	byDefault := func(o *origin) bool { return o != nil && !isBuiltIn(o) && !slices.Contains(g.givesStated, o.Policy) }
	for _, t := range g.Allowed.Topics {
		if byDefault(t.Origin) {
			out.Topics = append(out.Topics, t)
		}
	}
	for _, c := range g.Allowed.Calls {
		if byDefault(c.Origin) {
			out.Calls = append(out.Calls, c)
		}
	}
	for _, p := range g.Allowed.Paths {
		if byDefault(p.Origin) {
			out.Paths = append(out.Paths, p)
		}
	}
	return out
}

// each returns the permissions one by one, each with all that is denied.
func (e extent) each() (all []extent) {
	for i := range e.allowed.Topics {
		all = append(all, extent{allowed: &rules{Topics: e.allowed.Topics[i : i+1]}, denied: e.denied})
	}
	for i := range e.allowed.Calls {
		all = append(all, extent{allowed: &rules{Calls: e.allowed.Calls[i : i+1]}, denied: e.denied})
	}
	for i := range e.allowed.Paths {
		all = append(all, extent{allowed: &rules{Paths: e.allowed.Paths[i : i+1]}, denied: e.denied})
	}
	return all
}

// withoutSelf returns the rules that are not of the policy self.
func withoutSelf(r *rules) *rules {
	out := &rules{}
	for _, t := range r.Topics {
		if t.Origin != selfOrigin {
			out.Topics = append(out.Topics, t)
		}
	}
	for _, c := range r.Calls {
		if c.Origin != selfOrigin {
			out.Calls = append(out.Calls, c)
		}
	}
	for _, p := range r.Paths {
		if p.Origin != selfOrigin {
			out.Paths = append(out.Paths, p)
		}
	}
	return out
}

// DocumentMayNotGive returns the first permission that a policy edit may give to a subject, and that the holder of g may not
// give; false if there is none. before and after are the two versions of one document, nil for none. Each is taken at its
// widest: for any subject that it may ever be for, whatever the labels are; so ${label} in a topic or path is +, and a
// selector with ${label} is any value. A deny rule that is taken away, or a requirement of a proof, gives what it denied.
func (g *Grant) DocumentMayNotGive(before, after *Document) (watchword.Permission, bool) {
	if before == nil {
		before = &Document{}
	}
	if after == nil {
		after = &Document{labels: before.labels, subjects: before.subjects, kinds: before.kinds, role: before.role}
	}
	old, now := before.symbolic(), after.symbolic()
	if !before.selects(after) { // subjects that had nothing of before
		old = &Grant{}
	}
	for _, of := range []func(*Grant) *rules{(*Grant).held, (*Grant).givable} {
		for _, one := range (extent{allowed: of(now), denied: &now.Denied}).each() {
			if _, isNew := uncovered(one, extent{allowed: of(old), denied: &old.Denied}); !isNew {
				continue
			}
			if p, over := uncovered(extent{allowed: widest(one.allowed), denied: one.denied}, g.gives()); over {
				return p, true
			}
		}
	}
	kept := &now.Denied
	if !after.selects(before) { // subjects of before that have nothing of after
		kept = nothing
	}
	old = before.symbolic()
	for _, one := range (extent{allowed: &old.Denied, denied: nothing}).each() {
		if _, lifted := uncovered(one, extent{allowed: kept, denied: nothing}); !lifted {
			continue
		}
		if p, over := uncovered(extent{allowed: widest(one.allowed), denied: nothing}, g.gives()); over {
			return p, true
		}
	}
	if before.ProofRequired && !(after.ProofRequired && after.selects(before)) {
		return uncovered(extent{allowed: &builtInRoles[RoleOwner].give, denied: nothing}, g.gives())
	}
	return watchword.Permission{}, false
}

// selects reports whether d is for every subject that inner is for.
func (d *Document) selects(inner *Document) bool {
	if d.role != inner.role && d.role != "" {
		return false
	}
	for _, k := range []watchword.Kind{watchword.Device, watchword.Operator, watchword.Service} {
		if inner.hasKind(k) && !d.hasKind(k) {
			return false
		}
	}
	if d.subjects == nil {
		return inner.labels.Has(d.labels) // a document for ids has no labels
	}
	for id := range inner.subjects {
		if _, ok := d.subjects[id]; !ok {
			return false
		}
	}
	return inner.subjects != nil
}

// symbolic compiles a document for a subject that is not known: a variable stands for itself. So two rules with the same
// variable are the same rule, whatever its value is, and rules with different ones are not.
func (d *Document) symbolic() *Grant {
	c := compiler{fill: func(template string) string { return strings.ReplaceAll(template, "${", variable) }, g: &Grant{}}
	c.document(d)
	return c.g
}

// variable begins a variable in a symbolic rule: no topic, path or label of a document has U+0001, and a level that begins with $
// would be one that # does not match. So a deny rule with a variable covers nothing that a giver has.
const variable = "\x01{"

// widest replaces variables by all values that they may have.
func widest(r *rules) *rules {
	out := &rules{}
	for _, t := range r.Topics {
		out.Topics = append(out.Topics, authz.NewTopic(anyLevel(t.Filter), t.Pub, t.Sub, t.Origin))
	}
	for _, p := range r.Paths {
		out.Paths = append(out.Paths, authz.NewPath(anyLevel(p.Filter), p.Actions, p.Origin))
	}
	for _, c := range r.Calls {
		if strings.Contains(c.Device, variable) {
			c.Device = "*"
		}
		if c.Labels != nil {
			labels := watchword.Labels{}
			for k, v := range c.Labels {
				if !strings.Contains(v, variable) {
					labels[k] = v
				}
			}
			if c.Labels = labels; len(labels) == 0 {
				c.Labels, c.Device = nil, "*"
			}
		}
		out.Calls = append(out.Calls, c)
	}
	return out
}

// anyLevel replaces each level that has a variable by +.
func anyLevel(filter string) string {
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		if strings.Contains(l, variable) {
			levels[i] = "+"
		}
	}
	return strings.Join(levels, "/")
}
