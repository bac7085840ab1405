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

// resourceKind is one of the three kinds of rules.
type resourceKind int

const (
	topics resourceKind = iota
	calls
	paths
)

// missing is a part of what one extent has and another one has not.
type missing struct {
	kind   resourceKind
	action string
	rule   int // index of the allowed rule that has it
	// denied is the index of the rule of the other extent that denies it: what is missing is what both rules match. It is -1 where
	// no rule of the other extent allows all that the allowed rule matches.
	denied int
}

// eachMissing calls yield with each part of inner that outer does not have, until it returns false. It is the only comparison of
// permissions: what an act gives, what an actor lacks, and what an edit changes are read from it. It is complete: each act that
// inner allows and outer does not is in a part. Parts are listed that have no such act only where that cannot be told: calls whose
// bounds on arguments differ, and subscriptions with # that several rules cover together.
func eachMissing(inner, outer extent, yield func(missing) bool) {
	for i := range inner.allowed.Topics {
		r := &inner.allowed.Topics[i]
		if r.Pub && !eachMissingFilter(i, r.Filter, publishing, inner.denied, outer, yield) {
			return
		}
		if r.Sub && !eachMissingFilter(i, r.Filter, subscribing, inner.denied, outer, yield) {
			return
		}
	}
	for i := range inner.allowed.Calls {
		if !eachMissingCall(i, &inner.allowed.Calls[i], inner.denied, outer, yield) {
			return
		}
	}
	for i := range inner.allowed.Paths {
		r := &inner.allowed.Paths[i]
		for k := range requesting {
			if f := &requesting[k]; r.Actions&f.bit != 0 && !eachMissingFilter(i, r.Filter, f, inner.denied, outer, yield) {
				return
			}
		}
	}
}

// uncovered returns the permission of the first rule of inner that outer does not have all of.
func uncovered(inner, outer extent) (p watchword.Permission, found bool) {
	eachMissing(inner, outer, func(m missing) bool {
		p, found = watchword.Permission{Resource: m.resource(inner.allowed), Actions: []string{m.action}}, true
		return false
	})
	return p, found
}

// resource names what the allowed rule is about.
func (m *missing) resource(allowed *rules) string {
	switch m.kind {
	case topics:
		return watchword.TopicPrefix + allowed.Topics[m.rule].Filter
	case calls:
		return allowed.Calls[m.rule].Resource()
	default:
		return watchword.APIPrefix + allowed.Paths[m.rule].Filter
	}
}

// filterAction is one action on topics or paths. filter returns the filter of a rule that is about the action.
type filterAction struct {
	kind   resourceKind
	name   string
	bit    uint8
	count  func(*rules) int
	filter func(r *rules, i int) (filter string, about bool)
}

var (
	countTopics = func(r *rules) int { return len(r.Topics) }
	publishing  = &filterAction{kind: topics, name: "pub", count: countTopics, filter: func(r *rules, i int) (string, bool) {
		return r.Topics[i].Filter, r.Topics[i].Pub
	}}
	subscribing = &filterAction{kind: topics, name: "sub", count: countTopics, filter: func(r *rules, i int) (string, bool) {
		return r.Topics[i].Filter, r.Topics[i].Sub
	}}
	requesting = func() (all []filterAction) {
		for _, name := range authz.PathActions {
			bit := authz.PathBit(name)
			all = append(all, filterAction{kind: paths, name: name, bit: bit, count: func(r *rules) int { return len(r.Paths) }, filter: func(r *rules, i int) (string, bool) {
				return r.Paths[i].Filter, r.Paths[i].Actions&bit != 0
			}})
		}
		return all
	}()
)

// contains reports whether one rule contains a filter.
func (a *filterAction) contains(r *rules, filter string) bool {
	for i := range a.count(r) {
		if f, about := a.filter(r, i); about && authz.Contains(f, filter) {
			return true
		}
	}
	return false
}

// covers reports whether the rules of several lists match together all that a filter matches.
func (a *filterAction) covers(filter string, lists ...*rules) bool {
	longest := 0
	if strings.HasSuffix(filter, "#") { // otherwise one of them must contain it
		for _, r := range lists {
			for i := range a.count(r) {
				f, _ := a.filter(r, i)
				longest = max(longest, authz.Levels(f))
			}
		}
	}
	return authz.CoveredTogether(filter, longest, func(f string) bool {
		for _, r := range lists {
			if a.contains(r, f) {
				return true
			}
		}
		return false
	})
}

// eachMissingFilter is eachMissing for one action of the allowed rule i of inner.
func eachMissingFilter(i int, filter string, a *filterAction, innerDenied *rules, outer extent, yield func(missing) bool) bool {
	m := missing{kind: a.kind, action: a.name, rule: i, denied: -1}
	every := a.kind == topics && outer.everyTopic
	has := every || a.contains(outer.allowed, filter)
	if !has && a != subscribing { // one subscription must be within one rule
		has = a.covers(filter, outer.allowed, innerDenied)
	}
	if !has && !a.covers(filter, innerDenied) {
		return yield(m)
	}
	for d := range a.count(outer.denied) {
		f, about := a.filter(outer.denied, d)
		if !about {
			continue
		}
		both, meet := authz.Intersection(filter, f)
		if !meet || a.covers(both, innerDenied) {
			continue
		}
		if m.denied = d; !yield(m) {
			return false
		}
	}
	return true
}

// eachMissingCall is eachMissing for the allowed rule i of inner. Several rules together are not taken to cover one.
func eachMissingCall(i int, r *callRule, innerDenied *rules, outer extent, yield func(missing) bool) bool {
	contained := func(list []callRule, inner *callRule) bool {
		for k := range list {
			if o := &list[k]; callContains(o, inner) && boundsContain(o.Bounds, inner.Bounds) {
				return true
			}
		}
		return false
	}
	if contained(innerDenied.Calls, r) {
		return true
	}
	m := missing{kind: calls, action: "call", rule: i, denied: -1}
	if !contained(outer.allowed.Calls, r) {
		return yield(m)
	}
	for d := range outer.denied.Calls {
		both, meet := callIntersection(r, &outer.denied.Calls[d])
		if !meet || contained(innerDenied.Calls, &both) {
			continue
		}
		if m.denied = d; !yield(m) {
			return false
		}
	}
	return true
}

// callIntersection returns a rule for the calls that both rules match; false where there are none. If one is for a device and the
// other for labels, the result has both.
func callIntersection(a, b *callRule) (both callRule, ok bool) {
	if both.Function, ok = functionIntersection(a.Function, b.Function); !ok {
		return both, false
	}
	both.Bounds = append(append(both.Bounds, a.Bounds...), b.Bounds...)
	for _, r := range []*callRule{a, b} {
		if r.Device != "" && r.Device != "*" {
			if both.Device != "" && both.Device != r.Device {
				return both, false
			}
			both.Device = r.Device
		}
		for k, v := range r.Labels {
			if w, has := both.Labels[k]; has && v != w {
				return both, false
			}
			if both.Labels == nil {
				both.Labels = watchword.Labels{}
			}
			both.Labels[k] = v
		}
	}
	if both.Device == "" && both.Labels == nil {
		both.Device = "*"
	}
	return both, true
}

// functionIntersection returns the name, or the prefix with *, that both match.
func functionIntersection(a, b string) (string, bool) {
	pa, openA := strings.CutSuffix(a, "*")
	pb, openB := strings.CutSuffix(b, "*")
	switch {
	case openB && strings.HasPrefix(pa, pb):
		return a, true
	case openA && strings.HasPrefix(pb, pa):
		return b, true
	}
	return a, a == b
}
