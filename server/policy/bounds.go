package policy

import (
	"bytes"
	"encoding/json"
	"math/big"
	"slices"

	"github.com/watchword-iot/watchword/server/internal/schema"
)

// boundsContain reports whether arguments that fit inner fit outer: each bound of outer follows from one of inner. An allow rule
// and a deny rule read a bound on an argument that is absent, or that cannot be evaluated, in different ways, so a bound of one
// does not follow from a bound of the other.
func boundsContain(outer, inner []bound) bool {
	for i := range outer {
		if !slices.ContainsFunc(inner, func(b bound) bool { return b.implies(&outer[i]) }) {
			return false
		}
	}
	return true
}

// implies reports whether each value that fits b fits o. It is false where that is not plain: it compares equal texts, lists of
// values, and the limits of numbers.
func (b *bound) implies(o *bound) bool {
	if b.name != o.name || b.deny != o.deny {
		return false
	}
	if b.text == o.text || b.deny { // a deny rule also matches what cannot be evaluated
		return b.text == o.text
	}
	inner, outer := b.keywords(), o.keywords()
	if values, ok := inner["enum"]; ok {
		var all []json.RawMessage
		if json.Unmarshal(values, &all) != nil {
			return false
		}
		return !slices.ContainsFunc(all, func(v json.RawMessage) bool {
			value, err := schema.Parse(v)
			return err != nil || o.schema.Validate(value) != nil
		})
	}
	if inner == nil || outer == nil {
		return false
	}
	for k, limit := range outer {
		if own, ok := inner[k]; !ok || string(own) != string(limit) && !tighter(k, own, limit) {
			return false
		}
	}
	return true
}

// boundKeywords are those that implies compares: each limits a value alone, whatever the others are.
var boundKeywords = []string{"type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}

// keywords returns the schema's keywords; nil where it has others than boundKeywords.
func (b *bound) keywords() map[string]json.RawMessage {
	var out map[string]json.RawMessage
	if json.Unmarshal([]byte(b.text), &out) != nil {
		return nil
	}
	for k := range out {
		if !slices.Contains(boundKeywords, k) {
			return nil
		}
	}
	return out
}

// tighter reports whether the limit a of a number allows no more than the limit b. Long numbers and exponents are not compared.
func tighter(keyword string, a, b json.RawMessage) bool {
	const longest = 32 // bytes
	if len(a)+len(b) > 2*longest || bytes.ContainsAny(a, "eE") || bytes.ContainsAny(b, "eE") {
		return false
	}
	x, okX := new(big.Rat).SetString(string(a))
	y, okY := new(big.Rat).SetString(string(b))
	if !okX || !okY {
		return false
	}
	switch keyword {
	case "minimum", "exclusiveMinimum":
		return x.Cmp(y) >= 0
	case "maximum", "exclusiveMaximum":
		return x.Cmp(y) <= 0
	}
	return false
}
