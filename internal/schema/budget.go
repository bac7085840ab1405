package schema

import (
	"encoding/json"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The budget is a bound on work that holds for every value, found without one. The work of a schema on a value with n
// values in it (itself among them) is at most fixed + each × n steps:
//
//   - a schema that applies to the same value (allOf, $ref, if, …) adds its own work whole;
//   - one of a named property is there once, and of all properties' values together there are n at most: their fixed parts
//     add up, and the greatest each counts;
//   - one of items, additionalProperties, a pattern or contains applies to n values at most, which have n values in them
//     together: each += fixed + each.
//
// A schema that applies to itself on the same value never ends, and is refused; one that refers to itself on the values
// below it (a tree) is followed as deep as a value may be.

// cost is steps as a linear function of the number of values.
type cost struct {
	fixed, perValue float64
	height          int // schemas within each other that apply to the same value
}

func (w cost) steps() float64 { return w.fixed + w.perValue*maxNodes }

func (w *cost) add(o cost) { w.fixed += o.fixed; w.perValue += o.perValue }

// addPerValue adds o for each of any number of values below.
func (w *cost) addPerValue(o cost) { w.perValue += o.fixed + o.perValue }

// costBudget goes through one compiled schema.
type costBudget struct {
	costs      map[costKey]cost
	inProgress map[costKey]bool // being looked at: whoever comes here again applies to itself
	sized      map[*jsonschema.Schema]bool
	size       int
}

type costKey struct {
	schema *jsonschema.Schema
	depth  int // levels that the value can have
}

func newBudget() *costBudget {
	return &costBudget{costs: map[costKey]cost{}, inProgress: map[costKey]bool{}, sized: map[*jsonschema.Schema]bool{}}
}

// The weights of what a step does beside, in steps.
const (
	memberCost      = 1. / 100 // of an object that is gone through, as each schema does
	unevaluatedCost = 1. / 8   // of unevaluatedProperties and -Items, which note each member
	uniqueItemCost  = 10       // items up to twenty are compared each with each
	nameCost        = 1. / 16  // in required and the like
	enumCost        = 1. / 16  // value in enum or const
	equalCost       = 1.       // number there: they are compared exactly
	numberCost      = 1.       // bound on a number
	patternCost     = 1. / 16  // instruction and value of two bytes
	schemaMemory    = 1536     // bytes
)

// costOf returns the most work of s on a value of so many levels. Code: bad_request, with where.
func (b *costBudget) costOf(s *jsonschema.Schema, depth int) (cost, error) {
	v := costKey{s, depth}
	if w, ok := b.costs[v]; ok {
		return w, nil
	}
	here := schemaPointer(s)
	switch {
	case !strings.HasPrefix(s.Location, url+"#"):
		return cost{}, badSchema(errOther, "refers to another document: %s", clip(s.Location))
	case b.inProgress[v]:
		return cost{}, badSchemaAt(here, "the schema applies to itself on the same value")
	case s.Format != nil && s.Format.Name == "regex":
		return cost{}, badSchemaAt(here, "the format regex of this draft is not supported")
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
		return cost{}, badSchemaAt(here, "more than %d schemas within each other apply to the same value", maxInPlace)
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
		return cost{}, badSchemaAt(here, "this could take %.0f steps on a value of %d bytes, and may take %d", w.steps(), MaxBytes, MaxSteps)
	}
	b.costs[v] = w
	return w, nil
}

// members adds what s does with the values below.
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

// countSize counts the memory of a schema once.
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

// localCost is what s does itself with one value, and with each value in it.
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
		// Each schema on the same value below notes the members too.
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

// countUnevaluated counts the schemas that apply to the same value within s, each as often as it does. It ends where [costBudget.costOf]
// would refuse.
func countUnevaluated(s *jsonschema.Schema, known map[*jsonschema.Schema]int) int {
	if n, ok := known[s]; ok {
		return n
	}
	known[s] = MaxSteps // for one that applies to itself
	n := 0
	for _, same := range sameValueSchemas(s) {
		n = min(n+1+countUnevaluated(same, known), MaxSteps)
	}
	known[s] = n
	return n
}

// sameValueSchemas are the schemas that apply to the same value.
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

// oneValueSchemas are the schemas of which each applies to one of the values below.
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

// manyValueSchemas are the schemas that apply to any number of the values below.
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

// equalityCost is what it takes to compare a value with v.
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

// schemaPointer is where s stands in its document.
func schemaPointer(s *jsonschema.Schema) string {
	_, p, _ := strings.Cut(s.Location, "#")
	return p
}

func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
