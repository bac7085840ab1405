package policy

import (
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Holds reports whether allowed lines contain p: for each of its actions one line
// that covers all of p's resource. What is denied does not count here, and bounds on
// arguments stay with policy, as in a token. It is never wrong to the caller's gain,
// but of a selector it knows the labels alone: a device's id is not within one.
func (g *Grant) Holds(p watchword.Permission) bool {
	return len(g.held(p)) == len(p.Actions) && p.Check() == nil
}

// Narrow returns what of ps these rules still give: each permission with those of
// its actions that a line contains, none without.
func (g *Grant) Narrow(ps []watchword.Permission) []watchword.Permission {
	out := []watchword.Permission{}
	for _, p := range ps {
		if actions := g.held(p); len(actions) > 0 {
			out = append(out, watchword.Permission{Resource: p.Resource, Actions: actions})
		}
	}
	return out
}

// held returns the actions of p that an allowed line contains.
func (g *Grant) held(p watchword.Permission) (actions []string) {
	var one rules
	if one.add(p, nil) != nil {
		return nil
	}
	for _, a := range p.Actions {
		var ok bool
		switch {
		case one.topics != nil:
			f := one.topics[0].filter
			ok = slices.ContainsFunc(g.allow.topics, func(r topicRule) bool {
				return (a == "pub" && r.pub || a == "sub" && r.sub) && Contains(r.filter, f)
			})
		case one.paths != nil:
			f := one.paths[0].filter
			ok = slices.ContainsFunc(g.allow.paths, func(r pathRule) bool { return r.actions&pathBit(a) != 0 && Contains(r.filter, f) })
		default:
			ok = slices.ContainsFunc(g.allow.calls, func(r callRule) bool { return r.contains(&one.calls[0]) })
		}
		if ok {
			actions = append(actions, a)
		}
	}
	return actions
}

// contains reports whether r speaks of every call that inner speaks of.
func (r *callRule) contains(inner *callRule) bool {
	prefix, open := strings.CutSuffix(r.function, "*")
	if r.function != inner.function && (!open || !strings.HasPrefix(strings.TrimSuffix(inner.function, "*"), prefix)) {
		return false
	}
	switch {
	case r.labels != nil:
		return inner.labels.Has(r.labels) // more labels choose fewer devices
	case r.device == "*":
		return true
	}
	return inner.labels == nil && r.device == inner.device
}
