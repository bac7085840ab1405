package policy

import (
	"errors"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/server/internal/schema"
)

// Grant is the compiled permissions of one subject: the rules of [permit], with bounds on
// arguments. It is immutable and safe for concurrent use.
type Grant struct {
	authz.Grant[bound]
	version     int64
	proof       *origin  // the first document that requires a proof; nil for none
	give        rules    // what the subject may give by its built-in role, or by a member may_give
	givesStated []string // the documents that have a member may_give
	// givesEveryTopic says that the built-in role may give all topics, also those that start with $.
	givesEveryTopic bool
	claims          sync.Once
	perm, denyP     []watchword.Permission
}

type (
	rules     = authz.Rules[bound]
	callRule  = authz.Call[bound]
	topicRule = authz.Topic
	origin    = authz.Origin
)

// Decision is allow or deny, and the rule that decided.
type Decision = authz.Decision

// ProofRequired reports whether a document has proof = "required", and names it.
func (g *Grant) ProofRequired() (rule string, required bool) {
	return Decision{Origin: g.proof}.Rule(), g.proof != nil
}

// AnyTopic reports whether both grants allow the same action, publish or subscribe, on some topic
// that neither denies. It is exact.
func AnyTopic(a, b *Grant) bool { return authz.AnyTopic(&a.Grant, &b.Grant) }

// Version returns the [Set.Version] that the grant was compiled from.
func (g *Grant) Version() int64 { return g.version }

// Target is the device of a call as rules see it.
type Target = authz.Target

// Call decides on calling one function of one device with arguments args, one JSON object or nil. A
// rule with bounds matches calls whose named arguments, where present, fit; so a deny rule with
// bounds denies only those calls.
func (g *Grant) Call(t Target, function string, args []byte) Decision {
	doc := newArguments(args)
	return g.Grant.Call(t, function, func(b []bound) bool { return doc.firstViolation(b) == nil })
}

// arguments is the arguments of a call, parsed when the first bound needs them.
type arguments struct {
	raw    []byte
	parsed bool
	doc    map[string]any
	bad    bool
}

func newArguments(raw []byte) *arguments { return &arguments{raw: raw} }

// boundViolation is an argument that violates its bound.
type boundViolation struct {
	name string
	err  error
}

// firstViolation returns the first bound that the arguments violate; nil if there is none.
func (a *arguments) firstViolation(bounds []bound) *boundViolation {
	if len(bounds) == 0 {
		return nil
	}
	if !a.parsed {
		a.parsed = true
		if len(a.raw) > 0 {
			v, err := schema.Parse(a.raw)
			doc, ok := v.(map[string]any)
			a.doc, a.bad = doc, err != nil || !ok
		}
	}
	for _, b := range bounds {
		if a.bad {
			return &boundViolation{name: b.name}
		}
		v, ok := a.doc[b.name]
		if !ok {
			continue
		}
		if err := b.schema.Validate(v); err != nil && !(b.deny && errors.Is(err, schema.ErrValue)) {
			return &boundViolation{b.name, err}
		}
	}
	return nil
}
