package policy

import (
	"bytes"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/watchword-iot/watchword"
)

// Grant is what one subject may do, compiled. It is immutable and safe for
// concurrent use.
type Grant struct {
	allow, deny rules
	proof       *origin // of the first document that requires a proof; nil for none
	claims      sync.Once
	perm, denyP []watchword.Permission
}

type rules struct {
	topics []topicRule
	calls  []callRule
	paths  []pathRule
}

// origin names the rule that decided. It is shared by all entries of the rule.
type origin struct {
	policy string
	line   int
}

// topicRule is about a filter. literal is what every topic that the filter
// matches begins with: a comparison of bytes that spares most matches.
type topicRule struct {
	filter, literal string
	pub, sub        bool
	origin          *origin
}

func newTopicRule(filter string, pub, sub bool, o *origin) topicRule {
	return topicRule{filter, literal(filter), pub, sub, o}
}

// callRule is about one device (device), any ("*"), or those with labels.
type callRule struct {
	device   string
	labels   watchword.Labels
	function string // may end in *
	args     []bound
	origin   *origin
}

type pathRule struct {
	filter, literal string
	actions         uint8
	origin          *origin
}

func newPathRule(filter string, actions uint8, o *origin) pathRule {
	return pathRule{filter, literal(filter), actions, o}
}

const allPaths = 1<<5 - 1

// pathBit is the bit of an HTTP method in either case; 0 for one that no rule can
// name. HEAD is judged as GET.
func pathBit(method string) uint8 {
	switch method {
	case "GET", "get", "HEAD", "head":
		return 1
	case "PUT", "put":
		return 2
	case "POST", "post":
		return 4
	case "PATCH", "patch":
		return 8
	case "DELETE", "delete":
		return 16
	}
	return 0
}

// Decision is the answer to one question, and which rule gave it.
type Decision struct {
	Allowed bool
	origin  *origin
}

// Rule names the rule that decided: "lamps:11", "self", "token"; "" if none did.
func (d Decision) Rule() string {
	switch {
	case d.origin == nil:
		return ""
	case d.origin.line == 0:
		return d.origin.policy
	}
	return d.origin.policy + ":" + strconv.Itoa(d.origin.line)
}

// Why says in words what decided.
func (d Decision) Why() string {
	switch {
	case d.origin == nil:
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

// ProofRequired reports whether a document says proof = "required", and names it.
func (g *Grant) ProofRequired() (rule string, required bool) {
	return Decision{origin: g.proof}.Rule(), g.proof != nil
}

// Publish decides on one topic: an allowed filter matches it and no denied one
// does. It allocates nothing.
func (g *Grant) Publish(topic string) Decision {
	for i := range g.deny.topics {
		if r := &g.deny.topics[i]; r.pub && strings.HasPrefix(topic, r.literal) && Match(r.filter, topic) {
			return Decision{false, r.origin}
		}
	}
	for i := range g.allow.topics {
		if r := &g.allow.topics[i]; r.pub && strings.HasPrefix(topic, r.literal) && Match(r.filter, topic) {
			return Decision{true, r.origin}
		}
	}
	return Decision{}
}

// Subscribe decides on one filter: one allowed filter contains it and no denied
// one intersects it, so that a subscription that stands is clean as a whole. A
// shared subscription is judged by its filter. It allocates nothing.
func (g *Grant) Subscribe(filter string) Decision {
	_, filter, _, err := Share(filter)
	if err != nil {
		return Decision{}
	}
	begins := literal(filter)
	for i := range g.deny.topics {
		if r := &g.deny.topics[i]; r.sub && agree(r.literal, begins) && Intersects(r.filter, filter) {
			return Decision{false, r.origin}
		}
	}
	for i := range g.allow.topics {
		if r := &g.allow.topics[i]; r.sub && strings.HasPrefix(filter, r.literal) && Contains(r.filter, filter) {
			return Decision{true, r.origin}
		}
	}
	return Decision{}
}

// Request decides on an HTTP method, in either case, and a path. A path with
// empty, . or .. segments is nobody's.
func (g *Grant) Request(method, path string) Decision {
	bit := pathBit(method)
	if bit == 0 || !cleanPath(path) {
		return Decision{}
	}
	for i := range g.deny.paths {
		if r := &g.deny.paths[i]; r.actions&bit != 0 && strings.HasPrefix(path, r.literal) && Match(r.filter, path) {
			return Decision{false, r.origin}
		}
	}
	for i := range g.allow.paths {
		if r := &g.allow.paths[i]; r.actions&bit != 0 && strings.HasPrefix(path, r.literal) && Match(r.filter, path) {
			return Decision{true, r.origin}
		}
	}
	return Decision{}
}

func cleanPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok || len(path) > MaxTopic {
		return false
	}
	for more := rest != ""; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

// Target is a device as rules about calls see it.
type Target struct {
	ID     watchword.SubjectID
	Labels watchword.Labels
}

// Call decides on one function of one device with these arguments, one JSON
// object or nil. A rule with bounds speaks of calls whose named arguments, where
// present, fit; so a deny rule with bounds denies those, and no others.
func (g *Grant) Call(t Target, function string, args []byte) Decision {
	doc := newArguments(args)
	for i := range g.deny.calls {
		if r := &g.deny.calls[i]; r.names(t, function) && doc.misfit(r.args) == nil {
			return Decision{false, r.origin}
		}
	}
	for i := range g.allow.calls {
		if r := &g.allow.calls[i]; r.names(t, function) && doc.misfit(r.args) == nil {
			return Decision{true, r.origin}
		}
	}
	return Decision{}
}

func (r *callRule) names(t Target, function string) bool {
	return r.aims(t) && matchFunction(r.function, function)
}

func (r *callRule) aims(t Target) bool {
	if r.labels != nil {
		return t.Labels.Has(r.labels)
	}
	return r.device == "*" || r.device == string(t.ID)
}

func matchFunction(pattern, function string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(function, prefix)
	}
	return pattern == function
}

// arguments is a call's arguments, parsed when a bound first asks for them.
type arguments struct {
	raw    []byte
	parsed bool
	doc    map[string]any
	bad    bool
}

func newArguments(raw []byte) *arguments { return &arguments{raw: raw} }

// misfit is an argument that does not fit its bound.
type misfit struct {
	name string
	err  error
}

// misfit returns the first bound that the arguments do not fit; nil if they fit all.
func (a *arguments) misfit(bounds []bound) *misfit {
	if len(bounds) == 0 {
		return nil
	}
	if !a.parsed {
		a.parsed = true
		if len(a.raw) > 0 {
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.raw))
			doc, ok := v.(map[string]any)
			a.doc, a.bad = doc, err != nil || !ok
		}
	}
	for _, b := range bounds {
		if a.bad {
			return &misfit{name: b.name}
		}
		v, ok := a.doc[b.name]
		if !ok {
			continue
		}
		if err := b.schema.Validate(v); err != nil {
			return &misfit{b.name, err}
		}
	}
	return nil
}
