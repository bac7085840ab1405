package policy

import (
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// extent is what is allowed on one side: what allowed rules allow and no denied rule denies. nil denies nothing.
type extent struct {
	allowed, denied *rules
	everyTopic      bool // allows all topics, also those that start with $, which no single filter matches
}

var nothing = &rules{}

// uncovered returns the first permission of inner that outer does not have. The answer is never wrong in the favour of inner:
// a permission that only several rules of outer cover together is reported as uncovered.
func uncovered(inner, outer extent) (watchword.Permission, bool) {
	for i := range inner.allowed.Topics {
		r := &inner.allowed.Topics[i]
		for _, action := range topicActions {
			one := topicRule{Filter: r.Filter, Pub: r.Pub && action == "pub", Sub: r.Sub && action == "sub"}
			if (one.Pub || one.Sub) && !topicCovered(&one, inner.denied, outer) {
				return watchword.Permission{Resource: watchword.TopicPrefix + r.Filter, Actions: []string{action}}, true
			}
		}
	}
	for i := range inner.allowed.Calls {
		if r := &inner.allowed.Calls[i]; !callCovered(r, inner.denied, outer) {
			return watchword.Permission{Resource: r.Resource(), Actions: []string{"call"}}, true
		}
	}
	for i := range inner.allowed.Paths {
		r := &inner.allowed.Paths[i]
		for _, action := range authz.PathActions {
			one := authz.Path{Filter: r.Filter, Actions: r.Actions & authz.PathBit(action)}
			if one.Actions != 0 && !pathCovered(&one, inner.denied, outer) {
				return watchword.Permission{Resource: watchword.APIPrefix + r.Filter, Actions: []string{action}}, true
			}
		}
	}
	return watchword.Permission{}, false
}

// A rule of inner is covered where inner denies all of it, or where one rule of outer allows all of it and what outer denies of
// it, inner denies too. The three functions below say so for each kind of rule.

func topicCovered(r *topicRule, denied *rules, outer extent) bool {
	contains := func(o, i *topicRule) bool {
		return (!i.Pub || o.Pub) && (!i.Sub || o.Sub) && authz.Contains(o.Filter, i.Filter)
	}
	if anyRule(denied.Topics, func(d *topicRule) bool { return contains(d, r) }) {
		return true
	}
	if !outer.everyTopic && !anyRule(outer.allowed.Topics, func(o *topicRule) bool { return contains(o, r) }) {
		return false
	}
	return !anyRule(outer.denied.Topics, func(o *topicRule) bool {
		// Of what outer denies, only the actions of r matter.
		part := topicRule{Filter: o.Filter, Pub: o.Pub && r.Pub, Sub: o.Sub && r.Sub}
		return (part.Pub || part.Sub) && authz.Intersects(o.Filter, r.Filter) &&
			!anyRule(denied.Topics, func(d *topicRule) bool { return contains(d, &part) })
	})
}

func pathCovered(r *authz.Path, denied *rules, outer extent) bool {
	contains := func(o, i *authz.Path) bool { return i.Actions&^o.Actions == 0 && authz.Contains(o.Filter, i.Filter) }
	if anyRule(denied.Paths, func(d *authz.Path) bool { return contains(d, r) }) {
		return true
	}
	if !anyRule(outer.allowed.Paths, func(o *authz.Path) bool { return contains(o, r) }) {
		return false
	}
	return !anyRule(outer.denied.Paths, func(o *authz.Path) bool {
		part := authz.Path{Filter: o.Filter, Actions: o.Actions & r.Actions}
		return part.Actions != 0 && authz.Intersects(o.Filter, r.Filter) &&
			!anyRule(denied.Paths, func(d *authz.Path) bool { return contains(d, &part) })
	})
}

func callCovered(r *callRule, denied *rules, outer extent) bool {
	contains := func(o, i *callRule) bool { return callContains(o, i) && boundsContain(o.Bounds, i.Bounds) }
	if anyRule(denied.Calls, func(d *callRule) bool { return contains(d, r) }) {
		return true
	}
	if !anyRule(outer.allowed.Calls, func(o *callRule) bool { return contains(o, r) }) {
		return false
	}
	return !anyRule(outer.denied.Calls, func(o *callRule) bool {
		return callsIntersect(o, r) && !anyRule(denied.Calls, func(d *callRule) bool { return contains(d, o) })
	})
}

func anyRule[R any](rs []R, is func(*R) bool) bool {
	for i := range rs {
		if is(&rs[i]) {
			return true
		}
	}
	return false
}

// boundsContain reports whether arguments that fit inner fit outer: each bound of outer is one of inner. An allow rule and a
// deny rule read a bound on an argument that is absent, or that cannot be evaluated, in different ways, so their bounds never
// are the same.
func boundsContain(outer, inner []bound) bool {
	for _, o := range outer {
		found := false
		for _, i := range inner {
			found = found || i.name == o.name && i.deny == o.deny && i.text == o.text
		}
		if !found {
			return false
		}
	}
	return true
}

// callsIntersect reports whether both rules may match one call. It is true where that cannot be excluded.
func callsIntersect(a, b *callRule) bool {
	if !functionsIntersect(a.Function, b.Function) {
		return false
	}
	if a.Labels != nil && b.Labels != nil {
		for k, v := range a.Labels {
			if w, ok := b.Labels[k]; ok && v != w {
				return false
			}
		}
		return true
	}
	one := func(r *callRule) bool { return r.Labels == nil && r.Device != "*" }
	return !one(a) || !one(b) || a.Device == b.Device
}

func functionsIntersect(a, b string) bool {
	pa, openA := strings.CutSuffix(a, "*")
	pb, openB := strings.CutSuffix(b, "*")
	switch {
	case openA && openB:
		return strings.HasPrefix(pa, pb) || strings.HasPrefix(pb, pa)
	case openA:
		return strings.HasPrefix(b, pa)
	case openB:
		return strings.HasPrefix(a, pb)
	}
	return a == b
}
