package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// Explanation is a decision for people: the rule that decided, or the nearest
// miss. Nearest may show an argument's value, to whoever supplied it.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Policy  string `json:"policy,omitempty"`
	Line    int    `json:"line,omitempty"`
	Why     string `json:"why"`
	Nearest string `json:"nearest,omitempty"`
	// Proof says why nothing passes without a proof of the subject's key; empty where it may.
	Proof string `json:"proof,omitempty"`
}

// Explain answers for one action (pub, sub, call, get, put, post, patch, delete)
// and resource (topic:…, fn:DEVICE/FUNCTION, api:/…). target is the device of a
// call. It is not for hot paths.
func (g *Grant) Explain(action, resource string, target Target, args []byte) Explanation {
	rest := resource[strings.IndexByte(resource, ':')+1:]
	var d Decision
	var near string
	switch action {
	case "pub":
		d = g.Publish(rest)
		near = g.nearestTopic(rest, func(r *topicRule) bool { return r.pub })
	case "sub":
		d = g.Subscribe(rest)
		near = g.nearestTopic(rest, func(r *topicRule) bool { return r.sub })
	case "call":
		_, function, _ := strings.Cut(rest, "/")
		d = g.Call(target, function, args)
		near = g.nearestCall(target, function, args)
	default:
		d = g.Request(action, rest)
		near = g.nearestPath(action, rest)
	}
	e := Explanation{Allowed: d.Allowed, Why: d.Why()}
	if d.origin != nil {
		e.Policy, e.Line = d.origin.policy, d.origin.line
	} else {
		e.Nearest = near
	}
	return e
}

func named(o *origin, format string, a ...any) string {
	return Decision{origin: o}.Rule() + ": " + fmt.Sprintf(format, a...)
}

// nearestTopic finds the allow rule whose filter shares the most levels.
func (g *Grant) nearestTopic(topic string, fits func(*topicRule) bool) string {
	best, near := -1, ""
	for i := range g.allow.topics {
		r := &g.allow.topics[i]
		if !fits(r) {
			continue
		}
		if n := sharedLevels(r.filter, topic); n > best {
			best, near = n, named(r.origin, "allows %s", r.filter)
		}
	}
	return near
}

func (g *Grant) nearestPath(action, path string) string {
	best, near := -1, ""
	for i := range g.allow.paths {
		r := &g.allow.paths[i]
		n := sharedLevels(r.filter, path)
		switch {
		case Match(r.filter, path):
			n += MaxLevels // the right path with another method is nearest
		case r.actions&pathBit(action) == 0:
			continue
		}
		if n > best {
			best, near = n, named(r.origin, "allows %s on %s", strings.Join(actionsOf(r.actions), ", "), r.filter)
		}
	}
	return near
}

func actionsOf(bits uint8) []string {
	var out []string
	for i, a := range pathActions {
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

// nearestCall finds the allow rule that misses by the least: by an argument, by
// a label of the device, or by the function's name.
func (g *Grant) nearestCall(t Target, function string, args []byte) string {
	doc := newArguments(args)
	best, near := 0, ""
	for i := range g.allow.calls {
		r := &g.allow.calls[i]
		score, why := 0, ""
		switch {
		case r.names(t, function):
			if m := doc.misfit(r.args); m != nil {
				score, why = 3, m.String()
			}
		case matchFunction(r.function, function):
			score, why = 2, r.missed(t)
		case r.aims(t):
			score, why = 1, "allows "+r.function
		}
		if score > best {
			best, near = score, named(r.origin, "%s", why)
		}
	}
	return near
}

// missed says what keeps the rule from the device.
func (r *callRule) missed(t Target) string {
	for _, k := range slices.Sorted(maps.Keys(r.labels)) {
		if got := t.Labels[k]; got != r.labels[k] {
			return fmt.Sprintf("device %s has label %s=%s, not %s", t.ID, k, got, r.labels[k])
		}
	}
	return "is about device " + r.device
}

// String says which bound was missed, as "args.level 99 > maximum 80".
func (m *misfit) String() string {
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
