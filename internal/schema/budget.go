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

// work is steps as a linear function of the number of values.
type work struct {
	fixed, each float64
	height      int // schemas within each other that apply to the same value
}

func (w work) steps() float64 { return w.fixed + w.each*maxNodes }

func (w *work) add(o work) { w.fixed += o.fixed; w.each += o.each }

// many adds o for each of any number of values below.
func (w *work) many(o work) { w.each += o.fixed + o.each }

// budget goes through one compiled schema.
type budget struct {
	known map[visit]work
	under map[visit]bool // being looked at: whoever comes here again applies to itself
	sized map[*jsonschema.Schema]bool
	size  int
}

type visit struct {
	schema *jsonschema.Schema
	depth  int // levels that the value can have
}

func newBudget() *budget {
	return &budget{known: map[visit]work{}, under: map[visit]bool{}, sized: map[*jsonschema.Schema]bool{}}
}

// The weights of what a step does beside, in steps.
const (
	perMember    = 1. / 100 // of an object that is gone through, as each schema does
	perUnseen    = 1. / 8   // of unevaluatedProperties and -Items, which note each member
	perUnique    = 10       // items up to twenty are compared each with each
	perName      = 1. / 16  // in required and the like
	perEnum      = 1. / 16  // value in enum or const
	perEqual     = 1.       // number there: they are compared exactly
	perNumber    = 1.       // bound on a number
	perPattern   = 1. / 16  // instruction and value of two bytes
	schemaMemory = 1536     // bytes
)

// of returns the most work of s on a value of so many levels. Code: bad_request, with where.
func (b *budget) of(s *jsonschema.Schema, depth int) (work, error) {
	v := visit{s, depth}
	if w, ok := b.known[v]; ok {
		return w, nil
	}
	here := pointer(s)
	switch {
	case !strings.HasPrefix(s.Location, url+"#"):
		return work{}, bad(errOther, "refers to another document: %s", clip(s.Location))
	case b.under[v]:
		return work{}, at(here, "the schema applies to itself on the same value")
	case s.Format != nil && s.Format.Name == "regex":
		return work{}, at(here, "the format regex of this draft is not supported")
	}
	b.weigh(s)
	b.under[v] = true
	defer delete(b.under, v)
	w := local(s)
	for _, same := range inPlaceOf(s) {
		below, err := b.of(same, depth)
		if err != nil {
			return work{}, err
		}
		w.add(below)
		w.height = max(w.height, 1+below.height)
	}
	if w.height > maxInPlace {
		return work{}, at(here, "more than %d schemas within each other apply to the same value", maxInPlace)
	}
	if depth > 0 {
		if err := b.members(&w, s, depth-1); err != nil {
			return work{}, err
		}
	}
	if s.PropertyNames != nil { // on strings
		names, err := b.of(s.PropertyNames, 0)
		if err != nil {
			return work{}, err
		}
		w.many(names)
	}
	if w.steps() > MaxSteps {
		return work{}, at(here, "this could take %.0f steps on a value of %d bytes, and may take %d", w.steps(), MaxBytes, MaxSteps)
	}
	b.known[v] = w
	return w, nil
}

// members adds what s does with the values below.
func (b *budget) members(w *work, s *jsonschema.Schema, depth int) error {
	var once work // of properties and prefixItems
	for _, below := range onceOf(s) {
		o, err := b.of(below, depth)
		if err != nil {
			return err
		}
		once.fixed += o.fixed
		once.each = max(once.each, o.each)
	}
	w.add(once)
	for _, below := range manyOf(s) {
		o, err := b.of(below, depth)
		if err != nil {
			return err
		}
		w.many(o)
	}
	return nil
}

// weigh counts the memory of a schema once.
func (b *budget) weigh(s *jsonschema.Schema) {
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

// local is what s does itself with one value, and with each value in it.
func local(s *jsonschema.Schema) work {
	if s.Bool != nil {
		return work{fixed: 1}
	}
	w := work{fixed: 1, each: perMember}
	w.fixed += perName * float64(len(s.Required))
	for _, names := range s.DependentRequired {
		w.fixed += perName * float64(1+len(names))
	}
	for _, d := range s.Dependencies {
		w.fixed += perName
		if names, ok := d.([]string); ok {
			w.fixed += perName * float64(len(names))
		}
	}
	w.fixed += perName * float64(len(s.DependentSchemas))
	if s.Enum != nil {
		for _, v := range s.Enum.Values {
			w.fixed += equal(v)
		}
	}
	if s.Const != nil {
		w.fixed += equal(*s.Const)
	}
	for _, there := range []bool{s.Maximum != nil, s.Minimum != nil, s.ExclusiveMaximum != nil, s.ExclusiveMinimum != nil, s.MultipleOf != nil, s.Types != nil} {
		if there {
			w.fixed += perNumber
		}
	}
	if s.UnevaluatedItems != nil || s.UnevaluatedProperties != nil {
		// Each schema on the same value below notes the members too.
		w.each += perUnseen * (1 + float64(unseen(s, map[*jsonschema.Schema]int{})))
	}
	if s.UniqueItems {
		w.each += perUnique
	}
	if s.MinLength != nil || s.MaxLength != nil || s.Format != nil {
		w.each += perMember
	}
	if s.Pattern != nil {
		w.each += perPattern * float64(s.Pattern.(pattern).program)
	}
	for re := range s.PatternProperties {
		w.each += perPattern * float64(re.(pattern).program)
	}
	return w
}

// unseen counts the schemas that apply to the same value within s, each as often as it does. It ends where [budget.of]
// would refuse.
func unseen(s *jsonschema.Schema, known map[*jsonschema.Schema]int) int {
	if n, ok := known[s]; ok {
		return n
	}
	known[s] = MaxSteps // for one that applies to itself
	n := 0
	for _, same := range inPlaceOf(s) {
		n = min(n+1+unseen(same, known), MaxSteps)
	}
	known[s] = n
	return n
}

// inPlaceOf are the schemas that apply to the same value.
func inPlaceOf(s *jsonschema.Schema) []*jsonschema.Schema {
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
	return present(out)
}

// onceOf are the schemas of which each applies to one of the values below.
func onceOf(s *jsonschema.Schema) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	for _, p := range s.Properties {
		out = append(out, p)
	}
	out = append(out, s.PrefixItems...)
	if items, ok := s.Items.([]*jsonschema.Schema); ok {
		out = append(out, items...)
	}
	return present(out)
}

// manyOf are the schemas that apply to any number of the values below.
func manyOf(s *jsonschema.Schema) []*jsonschema.Schema {
	out := []*jsonschema.Schema{s.Items2020, s.Contains, s.UnevaluatedItems, s.UnevaluatedProperties}
	for _, p := range s.PatternProperties {
		out = append(out, p)
	}
	for _, maybe := range []any{s.AdditionalProperties, s.AdditionalItems, s.Items} {
		if one, ok := maybe.(*jsonschema.Schema); ok {
			out = append(out, one)
		}
	}
	return present(out)
}

func present(list []*jsonschema.Schema) []*jsonschema.Schema {
	out := list[:0]
	for _, s := range list {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// equal is what it takes to compare a value with v.
func equal(v any) float64 {
	w := perEnum
	switch v := v.(type) {
	case json.Number:
		w = perEqual
	case map[string]any:
		for _, below := range v {
			w += equal(below)
		}
	case []any:
		for _, below := range v {
			w += equal(below)
		}
	}
	return w
}

// pointer is where s stands in its document.
func pointer(s *jsonschema.Schema) string {
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
