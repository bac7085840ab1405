package policy

import (
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/permit"
)

// Contains reports whether allowed lines contain p: for each of its actions one line
// that covers all of p's resource. What is denied does not count here, and bounds on
// arguments stay with policy, as in a token. It is never wrong to the caller's gain,
// but of a selector it knows the labels alone: a device's id is not within one.
func (g *Grant) Contains(p watchword.Permission) bool {
	return len(g.containedActions(p)) == len(p.Actions) && p.Check() == nil
}

// Covers reports whether a token of these rules is as wide as one that says perm and
// deny: it holds each permission of the other, and denies nothing that the other does not
// deny. It is never wrong to the caller's gain.
func (g *Grant) Covers(perm, deny []watchword.Permission) bool {
	for _, p := range perm {
		if !g.Contains(p) {
			return false
		}
	}
	for _, d := range g.Deny() {
		if !slices.ContainsFunc(deny, func(o watchword.Permission) bool {
			return o.Resource == d.Resource && !slices.ContainsFunc(d.Actions, func(a string) bool { return !slices.Contains(o.Actions, a) })
		}) {
			return false
		}
	}
	return true
}

// Narrow returns what of ps these rules still give: each permission with those of
// its actions that a line contains, none without.
func (g *Grant) Narrow(ps []watchword.Permission) []watchword.Permission {
	out := []watchword.Permission{}
	for _, p := range ps {
		if actions := g.containedActions(p); len(actions) > 0 {
			out = append(out, watchword.Permission{Resource: p.Resource, Actions: actions})
		}
	}
	return out
}

// containedActions returns the actions of p that an allowed line contains.
func (g *Grant) containedActions(p watchword.Permission) (actions []string) {
	alone, err := permit.FromPermissions[bound]([]watchword.Permission{p}, nil)
	if err != nil {
		return nil
	}
	one := alone.Allowed
	for _, a := range p.Actions {
		var ok bool
		switch {
		case one.Topics != nil:
			f := one.Topics[0].Filter
			ok = slices.ContainsFunc(g.Allowed.Topics, func(r topicRule) bool {
				return (a == "pub" && r.Pub || a == "sub" && r.Sub) && permit.Contains(r.Filter, f)
			})
		case one.Paths != nil:
			f := one.Paths[0].Filter
			ok = slices.ContainsFunc(g.Allowed.Paths, func(r permit.Path) bool { return r.Actions&permit.PathBit(a) != 0 && permit.Contains(r.Filter, f) })
		default:
			ok = slices.ContainsFunc(g.Allowed.Calls, func(r callRule) bool { return callContains(&r, &one.Calls[0]) })
		}
		if ok {
			actions = append(actions, a)
		}
	}
	return actions
}

// callContains reports whether r speaks of every call that inner speaks of.
func callContains(r, inner *callRule) bool {
	prefix, open := strings.CutSuffix(r.Function, "*")
	if r.Function != inner.Function && (!open || !strings.HasPrefix(strings.TrimSuffix(inner.Function, "*"), prefix)) {
		return false
	}
	switch {
	case r.Labels != nil:
		return inner.Labels.Has(r.Labels) // more labels choose fewer devices
	case r.Device == "*":
		return true
	}
	return inner.Labels == nil && r.Device == inner.Device
}
