package authz

import (
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Grant is the compiled permissions of one subject. It must not be changed once it is used, and is
// then safe for concurrent use.
type Grant[B any] struct {
	Allowed, Denied Rules[B]
}

// Decision is allow or deny, and the rule that decided.
type Decision struct {
	Allowed bool
	Origin  *Origin // nil if no rule matched
}

// Rule names the rule that decided: "lamps:11", "self", "token"; "" if none matched.
func (d Decision) Rule() string {
	switch {
	case d.Origin == nil:
		return ""
	case d.Origin.Line == 0:
		return d.Origin.Policy
	}
	return d.Origin.Policy + ":" + strconv.Itoa(d.Origin.Line)
}

// Why explains the decision in words.
func (d Decision) Why() string {
	switch {
	case d.Origin == nil:
		return "no rule allows this"
	case d.Allowed:
		return "allowed by " + d.Rule()
	}
	return "denied by " + d.Rule()
}

// Err returns nil if allowed, otherwise an error with code denied and the rule.
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	return &watchword.Error{Code: watchword.Denied, Detail: d.Why(), Rule: d.Rule()}
}

// Publish decides on publishing to a topic: an allowed filter must match it, and no denied one. It
// does not allocate.
func (g *Grant[B]) Publish(topic string) Decision {
	for i := range g.Denied.Topics {
		if r := &g.Denied.Topics[i]; r.Pub && strings.HasPrefix(topic, r.literal) && Match(r.Filter, topic) {
			return Decision{false, r.Origin}
		}
	}
	for i := range g.Allowed.Topics {
		if r := &g.Allowed.Topics[i]; r.Pub && strings.HasPrefix(topic, r.literal) && Match(r.Filter, topic) {
			return Decision{true, r.Origin}
		}
	}
	return Decision{}
}

// Subscribe decides on a subscription: one allowed filter must contain its filter, and no denied
// filter may intersect it, so that every message of a granted subscription is allowed. A shared
// subscription is decided by its filter. It does not allocate.
func (g *Grant[B]) Subscribe(filter string) Decision {
	_, filter, _, err := Share(filter)
	if err != nil {
		return Decision{}
	}
	begins := literal(filter)
	for i := range g.Denied.Topics {
		if r := &g.Denied.Topics[i]; r.Sub && prefixesAgree(r.literal, begins) && Intersects(r.Filter, filter) {
			return Decision{false, r.Origin}
		}
	}
	for i := range g.Allowed.Topics {
		if r := &g.Allowed.Topics[i]; r.Sub && strings.HasPrefix(filter, r.literal) && Contains(r.Filter, filter) {
			return Decision{true, r.Origin}
		}
	}
	return Decision{}
}

// Request decides on an HTTP method, in either case, and a path. A path with empty, . or ..
// segments, control characters or invalid UTF-8 is always denied. path is decoded: a % in it is a
// percent sign.
func (g *Grant[B]) Request(method, path string) Decision {
	bit := PathBit(method)
	if bit == 0 || !cleanPath(path) {
		return Decision{}
	}
	for i := range g.Denied.Paths {
		if r := &g.Denied.Paths[i]; r.Actions&bit != 0 && strings.HasPrefix(path, r.literal) && Match(r.Filter, path) {
			return Decision{false, r.Origin}
		}
	}
	for i := range g.Allowed.Paths {
		if r := &g.Allowed.Paths[i]; r.Actions&bit != 0 && strings.HasPrefix(path, r.literal) && Match(r.Filter, path) {
			return Decision{true, r.Origin}
		}
	}
	return Decision{}
}

// Call decides on calling one function of one device. fit reports whether the arguments fit a
// rule's bounds; it is called for rules with bounds only. A rule with bounds matches calls that fit
// them, so a deny rule with bounds denies only those.
func (g *Grant[B]) Call(t Target, function string, fit func(bounds []B) bool) Decision {
	for i := range g.Denied.Calls {
		r := &g.Denied.Calls[i]
		if !r.excludes(t) && MatchFunction(r.Function, function) && (len(r.Bounds) == 0 || fit(r.Bounds)) {
			return Decision{false, r.Origin}
		}
	}
	for i := range g.Allowed.Calls {
		if r := &g.Allowed.Calls[i]; r.Matches(t, function) && (len(r.Bounds) == 0 || fit(r.Bounds)) {
			return Decision{true, r.Origin}
		}
	}
	return Decision{}
}
