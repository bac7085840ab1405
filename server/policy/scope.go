package policy

import (
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// Contains reports whether an allowed permission contains p: for each action of p, one permission
// that covers p's whole resource. Denied permissions and bounds on arguments are not considered, as
// in a token. The answer is never wrong in the caller's favour; for a selector it compares labels
// only, so a device id is not contained in a selector.
func (g *Grant) Contains(p watchword.Permission) bool {
	return len(g.containedActions(p)) == len(p.Actions) && p.Check() == nil
}

// Covers reports whether a token of this grant is as wide as a token with perm and deny: it
// contains each permission of the other, and denies nothing that the other does not deny. The
// answer is never wrong in the caller's favour.
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

// Narrow returns the permissions of ps that the grant contains, each with the actions that are
// contained; permissions without such actions are left out.
func (g *Grant) Narrow(ps []watchword.Permission) []watchword.Permission {
	out := []watchword.Permission{}
	for _, p := range ps {
		if actions := g.containedActions(p); len(actions) > 0 {
			out = append(out, watchword.Permission{Resource: p.Resource, Actions: actions})
		}
	}
	return out
}

// containedActions returns the actions of p that an allowed permission contains.
func (g *Grant) containedActions(p watchword.Permission) (actions []string) {
	alone, err := authz.FromPermissions[bound]([]watchword.Permission{p}, nil)
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
				return (a == "pub" && r.Pub || a == "sub" && r.Sub) && authz.Contains(r.Filter, f)
			})
		case one.Paths != nil:
			f := one.Paths[0].Filter
			ok = slices.ContainsFunc(g.Allowed.Paths, func(r authz.Path) bool { return r.Actions&authz.PathBit(a) != 0 && authz.Contains(r.Filter, f) })
		default:
			ok = slices.ContainsFunc(g.Allowed.Calls, func(r callRule) bool { return callContains(&r, &one.Calls[0]) })
		}
		if ok {
			actions = append(actions, a)
		}
	}
	return actions
}

// callContains reports whether r matches every call that inner matches.
func callContains(r, inner *callRule) bool {
	prefix, open := strings.CutSuffix(r.Function, "*")
	if r.Function != inner.Function && (!open || !strings.HasPrefix(strings.TrimSuffix(inner.Function, "*"), prefix)) {
		return false
	}
	switch {
	case r.Labels != nil:
		return inner.Labels.Has(r.Labels) // more labels select fewer devices
	case r.Device == "*":
		return true
	}
	return r.Device == inner.Device // "" where inner is for labels alone
}
