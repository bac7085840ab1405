package schema

import (
	"encoding/json"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/watchword-iot/watchword/internal/truncate"
)

// The budget limits the work of a schema on any value; it is computed from the schema alone. The
// work of a schema on a value
// with n values in it (itself included) is at most fixed + each × n steps:
//
//   - a schema that applies to the same value (allOf, $ref, if, …) adds its own work;
//   - a schema of a named property applies once, and the values of all properties together have at most n values: their fixed
//     parts add up, and the greatest each counts;
//   - a schema of items, additionalProperties, a pattern or contains applies to at most n values, which have n values in them
//     together: each += fixed + each.
//
// A schema that applies to itself on the same value never ends, and is refused; one that refers to
// itself for the values
// below (a tree) is followed as deep as a value may be.

// cost is a number of steps as a linear function of the number of values.
type cost struct {
	fixed, perValue float64
	height          int // nesting of schemas on the same value
}

func (w cost) steps() float64 { return w.fixed + w.perValue*maxNodes }

func (w *cost) add(o cost) { w.fixed += o.fixed; w.perValue += o.perValue }

// addPerValue adds o for any number of values below.
func (w *cost) addPerValue(o cost) { w.perValue += o.fixed + o.perValue }

// costBudget computes the cost of one compiled schema.
type costBudget struct {
	costs      map[costKey]cost
	inProgress map[costKey]bool // in progress: reaching it again means that it applies to itself
	sized      map[*jsonschema.Schema]bool
	size       int
}

type costKey struct {
	schema *jsonschema.Schema
	depth  int // depth that the value can have
}

func newBudget() *costBudget {
	return &costBudget{costs: map[costKey]cost{}, inProgress: map[costKey]bool{}, sized: map[*jsonschema.Schema]bool{}}
}

// Costs of single operations, in steps.
const (
	memberCost      = 1. / 100 // of an object whose members are iterated by a schema
	unevaluatedCost = 1. / 8   // of unevaluatedProperties and unevaluatedItems, which record each member
	uniqueItemCost  = 10       // up to twenty items are compared with each other
	nameCost        = 1. / 16  // in required and similar keywords
	enumCost        = 1. / 16  // value in enum or const
	equalCost       = 1.       // number in these, which is compared exactly
	numberCost      = 1.       // bound on a number
	patternCost     = 1. / 16  // program instruction and value of two bytes
	schemaMemory    = 1536     // bytes left
)

// costOf returns the highest cost of s on a value of that depth. Code: bad_request, with the
// position.
func (b *costBudget) costOf(s *jsonschema.Schema, depth int) (cost, error) {
	v := costKey{s, depth}
	if w, ok := b.costs[v]; ok {
		return w, nil
	}
	here := schemaPointer(s)
	switch {
	case !strings.HasPrefix(s.Location, url+"#"):
		return cost{}, badSchema(errOther, "must not refer to another document: %s", truncate.Text(s.Location, 100))
	case b.inProgress[v]:
		return cost{}, badSchemaAt(here, "must not apply to itself on the same value")
	case s.Format != nil && s.Format.Name == "regex":
		return cost{}, badSchemaAt(here, "the format regex is not supported")
	}
	b.countSize(s)
	b.inProgress[v] = true
	defer delete(b.inProgress, v)
	w := localCost(s)
	for _, same := range sameValueSchemas(s) {
		below, err := b.costOf(same, depth)
		if err != nil {
			return cost{}, err
		}
		w.add(below)
		w.height = max(w.height, 1+below.height)
	}
	if w.height > maxInPlace {
		return cost{}, badSchemaAt(here, "at most %d nested schemas may apply to the same value", maxInPlace)
	}
	if depth > 0 {
		if err := b.members(&w, s, depth-1); err != nil {
			return cost{}, err
		}
	}
	if s.PropertyNames != nil { // on strings
		names, err := b.costOf(s.PropertyNames, 0)
		if err != nil {
			return cost{}, err
		}
		w.addPerValue(names)
	}
	if w.steps() > MaxSteps {
		return cost{}, badSchemaAt(here, "the evaluation could take %.0f steps for a value of %d bytes; the limit is %d", w.steps(), MaxBytes, MaxSteps)
	}
	b.costs[v] = w
	return w, nil
}

// members adds the cost on the values below.
func (b *costBudget) members(w *cost, s *jsonschema.Schema, depth int) error {
	var once cost // of properties and prefixItems
	for _, below := range oneValueSchemas(s) {
		o, err := b.costOf(below, depth)
		if err != nil {
			return err
		}
		once.fixed += o.fixed
		once.perValue = max(once.perValue, o.perValue)
	}
	w.add(once)
	for _, below := range manyValueSchemas(s) {
		o, err := b.costOf(below, depth)
		if err != nil {
			return err
		}
		w.addPerValue(o)
	}
	return nil
}

// countSize adds the memory of a schema, once.
func (b *costBudget) countSize(s *jsonschema.Schema) {
	if b.sized[s] {
		return
	}
	b.sized[s] = true
	b.size += schemaMemory + 2*len(s.Location) + 64*(len(s.Properties)+len(s.DependentSchemas)+len(s.DependentRequired)+len(s.Required))
	for re := range s.PatternProperties {
		b.size += 64 * re.(pattern).program
	}
	if s.Pattern != nil {
		b.size += 64 * s.Pattern.(pattern).program
	}
}

// localCost is the cost of s itself on one value, and on each value in it.
func localCost(s *jsonschema.Schema) cost {
	if s.Bool != nil {
		return cost{fixed: 1}
	}
	w := cost{fixed: 1, perValue: memberCost}
	w.fixed += nameCost * float64(len(s.Required))
	for _, names := range s.DependentRequired {
		w.fixed += nameCost * float64(1+len(names))
	}
	for _, d := range s.Dependencies {
		w.fixed += nameCost
		if names, ok := d.([]string); ok {
			w.fixed += nameCost * float64(len(names))
		}
	}
	w.fixed += nameCost * float64(len(s.DependentSchemas))
	if s.Enum != nil {
		for _, v := range s.Enum.Values {
			w.fixed += equalityCost(v)
		}
	}
	if s.Const != nil {
		w.fixed += equalityCost(*s.Const)
	}
	for _, there := range []bool{s.Maximum != nil, s.Minimum != nil, s.ExclusiveMaximum != nil, s.ExclusiveMinimum != nil, s.MultipleOf != nil, s.Types != nil} {
		if there {
			w.fixed += numberCost
		}
	}
	if s.UnevaluatedItems != nil || s.UnevaluatedProperties != nil {
		// Each further schema on the same value records the members too.
		w.perValue += unevaluatedCost * (1 + float64(countUnevaluated(s, map[*jsonschema.Schema]int{})))
	}
	if s.UniqueItems {
		w.perValue += uniqueItemCost
	}
	if s.MinLength != nil || s.MaxLength != nil || s.Format != nil {
		w.perValue += memberCost
	}
	if s.Pattern != nil {
		w.perValue += patternCost * float64(s.Pattern.(pattern).program)
	}
	for re := range s.PatternProperties {
		w.perValue += patternCost * float64(re.(pattern).program)
	}
	return w
}

// countUnevaluated counts the schemas that apply to the same value within s, with multiplicity. It
// stops where [costBudget.costOf] would refuse.
func countUnevaluated(s *jsonschema.Schema, known map[*jsonschema.Schema]int) int {
	if n, ok := known[s]; ok {
		return n
	}
	known[s] = MaxSteps // for a schema that applies to itself
	n := 0
	for _, same := range sameValueSchemas(s) {
		n = min(n+1+countUnevaluated(same, known), MaxSteps)
	}
	known[s] = n
	return n
}

// sameValueSchemas returns the schemas that apply to the same value.
func sameValueSchemas(s *jsonschema.Schema) []*jsonschema.Schema {
	out := []*jsonschema.Schema{s.Ref, s.Not, s.If, s.Then, s.Else}
	out = append(append(append(out, s.AllOf...), s.AnyOf...), s.OneOf...)
	for _, d := range s.DependentSchemas {
		out = append(out, d)
	}
	for _, d := range s.Dependencies {
		if d, ok := d.(*jsonschema.Schema); ok {
			out = append(out, d)
		}
	}
	return withoutNil(out)
}

// oneValueSchemas returns the schemas that apply to one value below each.
func oneValueSchemas(s *jsonschema.Schema) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	for _, p := range s.Properties {
		out = append(out, p)
	}
	out = append(out, s.PrefixItems...)
	if items, ok := s.Items.([]*jsonschema.Schema); ok {
		out = append(out, items...)
	}
	return withoutNil(out)
}

// manyValueSchemas returns the schemas that apply to any number of values below.
func manyValueSchemas(s *jsonschema.Schema) []*jsonschema.Schema {
	out := []*jsonschema.Schema{s.Items2020, s.Contains, s.UnevaluatedItems, s.UnevaluatedProperties}
	for _, p := range s.PatternProperties {
		out = append(out, p)
	}
	for _, maybe := range []any{s.AdditionalProperties, s.AdditionalItems, s.Items} {
		if one, ok := maybe.(*jsonschema.Schema); ok {
			out = append(out, one)
		}
	}
	return withoutNil(out)
}

func withoutNil(list []*jsonschema.Schema) []*jsonschema.Schema {
	out := list[:0]
	for _, s := range list {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// equalityCost is the cost of comparing a value with v.
func equalityCost(v any) float64 {
	w := enumCost
	switch v := v.(type) {
	case json.Number:
		w = equalCost
	case map[string]any:
		for _, below := range v {
			w += equalityCost(below)
		}
	case []any:
		for _, below := range v {
			w += equalityCost(below)
		}
	}
	return w
}

// schemaPointer returns the position of s in its document.
func schemaPointer(s *jsonschema.Schema) string {
	_, p, _ := strings.Cut(s.Location, "#")
	return p
}
