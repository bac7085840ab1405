package policy

import (
	"errors"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/permit"
	"github.com/watchword-iot/watchword/internal/schema"
)

// Grant is what one subject may do, compiled: the rules of [permit], with bounds
// on arguments. It is immutable and safe for concurrent use.
type Grant struct {
	permit.Grant[bound]
	version     int64
	proof       *origin // of the first document that requires a proof; nil for none
	claims      sync.Once
	perm, denyP []watchword.Permission
}

type (
	rules     = permit.Rules[bound]
	callRule  = permit.Call[bound]
	topicRule = permit.Topic
	origin    = permit.Origin
)

// Decision is the answer to one question, and which rule gave it.
type Decision = permit.Decision

// ProofRequired reports whether a document says proof = "required", and names it.
func (g *Grant) ProofRequired() (rule string, required bool) {
	return Decision{Origin: g.proof}.Rule(), g.proof != nil
}

// AnyTopic reports whether both grants allow one action, publish or subscribe, on some
// topic that neither denies. It is exact.
func AnyTopic(a, b *Grant) bool { return permit.AnyTopic(&a.Grant, &b.Grant) }

// Version returns the [Set.Version] that the grant was compiled from.
func (g *Grant) Version() int64 { return g.version }

// Target is a device as rules about calls see it.
type Target = permit.Target

// Call decides on one function of one device with these arguments, one JSON
// object or nil. A rule with bounds speaks of calls whose named arguments, where
// present, fit; so a deny rule with bounds denies those, and no others.
func (g *Grant) Call(t Target, function string, args []byte) Decision {
	doc := newArguments(args)
	return g.Grant.Call(t, function, func(b []bound) bool { return doc.misfit(b) == nil })
}

// arguments is a call's arguments, parsed when a bound first asks for them.
type arguments struct {
	raw    []byte
	parsed bool
	doc    map[string]any
	bad    bool
}

func newArguments(raw []byte) *arguments { return &arguments{raw: raw} }

// boundViolation is an argument that does not fit its bound.
type boundViolation struct {
	name string
	err  error
}

// misfit returns the first bound that the arguments do not fit; nil if they fit all.
func (a *arguments) misfit(bounds []bound) *boundViolation {
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
