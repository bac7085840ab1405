package permit

import (
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Grant is what one subject may do, compiled. It is not changed once it is asked,
// and then safe for concurrent use.
type Grant[B any] struct {
	Allowed, Denied Rules[B]
}

// Decision is the answer to one question, and which rule gave it.
type Decision struct {
	Allowed bool
	Origin  *Origin // nil if no rule spoke
}

// Rule names the rule that decided: "lamps:11", "self", "token"; "" if none did.
func (d Decision) Rule() string {
	switch {
	case d.Origin == nil:
		return ""
	case d.Origin.Line == 0:
		return d.Origin.Policy
	}
	return d.Origin.Policy + ":" + strconv.Itoa(d.Origin.Line)
}

// Why says in words what decided.
func (d Decision) Why() string {
	switch {
	case d.Origin == nil:
		return "no rule allows this"
	case d.Allowed:
		return "allowed by " + d.Rule()
	}
	return "denied by " + d.Rule()
}

// Err returns nil for an allowed question, else an error with code denied and the rule.
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	return &watchword.Error{Code: watchword.Denied, Detail: d.Why(), Rule: d.Rule()}
}

// Publish decides on one topic: an allowed filter matches it and no denied one
// does. It allocates nothing.
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

// Subscribe decides on one filter: one allowed filter contains it and no denied
// one intersects it, so that a subscription that stands is clean as a whole. A
// shared subscription is judged by its filter. It allocates nothing.
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

// Request decides on an HTTP method, in either case, and a path. A path with
// empty, . or .. segments, with NUL, another control character or invalid UTF-8 is
// nobody's. path is decoded: a % in it is a percent sign.
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

// Call decides on one function of one device. fit says whether the arguments fit a
// rule's bounds, and is asked for rules with bounds alone. A rule with bounds speaks
// of calls that fit them; so a denied one denies those, and no others.
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
