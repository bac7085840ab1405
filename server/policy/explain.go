package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/watchword-iot/watchword/internal/authz"
)

// Explanation explains a decision: the rule that decided, or the allow rule that came nearest.
// Nearest may contain the value of an argument, which the caller supplied.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Policy  string `json:"policy,omitempty"`
	Line    int    `json:"line,omitempty"`
	Why     string `json:"why"`
	Nearest string `json:"nearest,omitempty"`
	// Proof says why the subject must prove its key; empty where it need not.
	Proof string `json:"proof,omitempty"`
}

// Explain explains the decision on an action (pub, sub, call, get, put, post, patch, delete) and a
// resource (topic:…, fn:DEVICE/FUNCTION, api:/…). target is the device of a call. It allocates; use
// the other methods for decisions.
func (g *Grant) Explain(action, resource string, target Target, args []byte) Explanation {
	rest := resource[strings.IndexByte(resource, ':')+1:]
	var d Decision
	var near string
	switch action {
	case "pub":
		d = g.Publish(rest)
		near = g.nearestTopic(rest, func(r *topicRule) bool { return r.Pub })
	case "sub":
		d = g.Subscribe(rest)
		near = g.nearestTopic(rest, func(r *topicRule) bool { return r.Sub })
	case "call":
		_, function, _ := strings.Cut(rest, "/")
		d = g.Call(target, function, args)
		near = g.nearestCall(target, function, args)
	default:
		d = g.Request(action, rest)
		near = g.nearestPath(action, rest)
	}
	e := Explanation{Allowed: d.Allowed, Why: d.Why()}
	if d.Origin != nil {
		e.Policy, e.Line = d.Origin.Policy, d.Origin.Line
	} else {
		e.Nearest = near
	}
	return e
}

func named(o *origin, format string, a ...any) string {
	return Decision{Origin: o}.Rule() + ": " + fmt.Sprintf(format, a...)
}

// nearestTopic returns the allow rule whose filter shares the most levels with the topic.
func (g *Grant) nearestTopic(topic string, fits func(*topicRule) bool) string {
	best, near := -1, ""
	for i := range g.Allowed.Topics {
		r := &g.Allowed.Topics[i]
		if !fits(r) {
			continue
		}
		if n := sharedLevels(r.Filter, topic); n > best {
			best, near = n, named(r.Origin, "allows %s", r.Filter)
		}
	}
	return near
}

func (g *Grant) nearestPath(action, path string) string {
	best, near := -1, ""
	for i := range g.Allowed.Paths {
		r := &g.Allowed.Paths[i]
		n := sharedLevels(r.Filter, path)
		switch {
		case authz.Match(r.Filter, path):
			n += MaxLevels // the right path with another method is the nearest
		case r.Actions&authz.PathBit(action) == 0:
			continue
		}
		if n > best {
			best, near = n, named(r.Origin, "allows %s on %s", strings.Join(actionsOf(r.Actions), ", "), r.Filter)
		}
	}
	return near
}

func actionsOf(bits uint8) []string {
	var out []string
	for i, a := range authz.PathActions {
		if bits&(1<<i) != 0 {
			out = append(out, a)
		}
	}
	return out
}

func sharedLevels(filter, topic string) int {
	n := 0
	fs, ts := strings.Split(filter, "/"), strings.Split(topic, "/")
	for n < len(fs) && n < len(ts) && (fs[n] == ts[n] || fs[n] == "+") {
		n++
	}
	return n
}

// nearestCall returns the allow rule with the smallest difference: an argument, a label of the
// device, or the function's name.
func (g *Grant) nearestCall(t Target, function string, args []byte) string {
	doc := newArguments(args)
	best, near := 0, ""
	for i := range g.Allowed.Calls {
		r := &g.Allowed.Calls[i]
		score, reason := 0, ""
		switch {
		case r.Matches(t, function):
			if m := doc.firstViolation(r.Bounds); m != nil {
				score, reason = 3, m.String()
			}
		case authz.MatchFunction(r.Function, function):
			score, reason = 2, targetMismatch(r, t)
		case r.Reaches(t):
			score, reason = 1, "allows "+r.Function
		}
		if score > best {
			best, near = score, named(r.Origin, "%s", reason)
		}
	}
	return near
}

// targetMismatch says why the rule does not match the device.
func targetMismatch(r *callRule, t Target) string {
	for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
		if got := t.Labels[k]; got != r.Labels[k] {
			return fmt.Sprintf("device %s has label %s=%s, not %s", t.ID, k, got, r.Labels[k])
		}
	}
	return "is about device " + r.Device
}

// String names the violated bound, as in "args.level 99 > maximum 80".
func (m *boundViolation) String() string {
	path := "args." + m.name
	ve, ok := errors.AsType[*jsonschema.ValidationError](m.err)
	if !ok {
		return path + " is no JSON that its bound can read"
	}
	for len(ve.Causes) > 0 {
		ve = ve.Causes[0]
	}
	for _, step := range ve.InstanceLocation {
		path += "." + step
	}
	switch k := ve.ErrorKind.(type) {
	case *kind.Maximum:
		return fmt.Sprintf("%s %s > maximum %s", path, k.Got.RatString(), k.Want.RatString())
	case *kind.Minimum:
		return fmt.Sprintf("%s %s < minimum %s", path, k.Got.RatString(), k.Want.RatString())
	default:
		return path + " does not fit " + strings.Join(ve.ErrorKind.KeywordPath(), ".")
	}
}
