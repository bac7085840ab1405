// Package schema compiles and evaluates JSON Schemas that others wrote, within a budget. In come schemas and JSON
// values, out comes whether the value fits. It refuses a schema that could take more than [MaxSteps] steps on any value
// within [MaxBytes], with where in the schema that is.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/watchword-iot/watchword"
)

// The bounds of a schema, and of a value that it is held against. They are checked before the library sees either.
const (
	MaxText  = 16 << 10          // bytes of a schema
	MaxBytes = watchword.MaxArgs // bytes of a value
	MaxSteps = 1 << 18           // of one evaluation; a step is the evaluation of one schema on one value, about 1 µs of CPU
	maxNodes = MaxBytes / 2      // values within a value: each has two bytes at least
	maxDepth = 8                 // of a value, as jose.Walk has it; the outer object counts
	url      = "urn:watchword:schema"
	keyBytes = 256 // of a member's name in a schema: it stands in the location of all below it

	maxTextDepth = 64   // of a schema's JSON
	maxTextNodes = 4096 // of its values
	maxObjects   = 768  // of its objects, each of which may be a schema
	maxRefs      = 192  // of its references
	maxInPlace   = 32   // schemas within each other that apply to one value
	maxPattern   = 512  // bytes of a regular expression
	maxProgram   = 900  // its instructions
	maxNumber    = 64   // characters of a number
	maxExponent  = 400  // of ten
)

// Schema is one that was compiled. It is immutable and safe for concurrent use.
type Schema struct {
	compiled *jsonschema.Schema
	steps    int
	size     int
	objects  int
}

// Steps returns the most steps that an evaluation can take.
func (s *Schema) Steps() int { return s.steps }

// Objects returns how many objects and truth values the schema's text has: compiling takes time that grows with the
// square of it.
func (s *Schema) Objects() int { return s.objects }

// Size returns the bytes of memory that the schema takes, about.
func (s *Schema) Size() int { return s.size }

// Parse reads JSON as [Schema.Validate] takes it: numbers keep all their digits.
func Parse(text []byte) (any, error) { return jsonschema.UnmarshalJSON(bytes.NewReader(text)) }

// noLoader keeps a schema from reaching for files or the network.
type noLoader struct{}

func (noLoader) Load(string) (any, error) { return nil, errOther }

var errOther = errors.New("a schema may not refer to another document")

// Compile compiles a JSON Schema (draft 2020-12); it may refer to itself alone. Codes: too_large; bad_request, with
// where in the schema as a JSON pointer.
func Compile(source []byte) (*Schema, error) {
	if len(source) > MaxText {
		return nil, &watchword.Error{Code: watchword.TooLarge, Field: "schema", Detail: fmt.Sprintf("a schema may have %d bytes", MaxText)}
	}
	doc, err := Parse(source)
	if err != nil {
		return nil, badSchema(err, "is no JSON Schema")
	}
	var t textCounts
	if err := t.check("", doc, 1); err != nil {
		return nil, err
	}
	e := &regexpEngine{}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	c.UseRegexpEngine(e.compile)
	if err := c.AddResource(url, doc); err != nil {
		return nil, badSchema(err, "is no JSON Schema")
	}
	compiled, err := c.Compile(url)
	if err != nil {
		if e.err != nil {
			return nil, e.err
		}
		return nil, badSchema(err, "is no JSON Schema")
	}
	b := newBudget()
	total, err := b.costOf(compiled, maxDepth)
	if err != nil {
		return nil, err
	}
	return &Schema{compiled, int(total.steps()), b.size + len(source), t.objects}, nil
}

// Validate holds v, which [Parse] made, against the schema. The error is the library's, a [jsonschema.ValidationError],
// or [ErrValue] for a value beyond the bounds.
func (s *Schema) Validate(v any) error {
	left := MaxBytes
	if !withinBounds(v, maxDepth, &left) {
		return ErrValue
	}
	return s.compiled.Validate(v)
}

// ErrValue says that a value is larger or deeper than a schema may be held against, or has a number with an exponent or
// as many digits as no double has.
var ErrValue = errors.New("the value is too large, or a number in it is")

// ErrBounds is in the chain of the error about a schema that is one, and is over the bounds.
var ErrBounds = errors.New("over the bounds of schemas")

// withinBounds reports whether v has at most depth levels, and at most *left bytes, which it counts down.
func withinBounds(v any, depth int, left *int) bool {
	*left -= 2
	switch v := v.(type) {
	case map[string]any:
		for name, below := range v {
			if *left -= len(name); depth == 0 || !withinBounds(below, depth-1, left) {
				return false
			}
		}
	case []any:
		for _, below := range v {
			if depth == 0 || !withinBounds(below, depth-1, left) {
				return false
			}
		}
	case string:
		*left -= len(v)
	case json.Number:
		return isQuickNumber(string(v)) && *left >= 0
	}
	return *left >= 0
}

// isQuickNumber reports whether n is one that is quick to calculate with: the library does so exactly, whatever the exponent.
func isQuickNumber(n string) bool {
	if len(n) > maxNumber {
		return false
	}
	_, exponent, ok := strings.Cut(strings.ToLower(n), "e")
	if !ok {
		return true
	}
	digits := strings.TrimLeft(strings.TrimLeft(exponent, "+-"), "0")
	if len(digits) > 3 {
		return false
	}
	e := 0
	for _, d := range digits {
		e = 10*e + int(d-'0')
	}
	return e <= maxExponent
}

func badSchema(cause error, format string, a ...any) error {
	return &watchword.Error{Code: watchword.BadRequest, Field: "schema", Detail: fmt.Sprintf(format, a...), Err: cause}
}

// badSchemaAt is bad with where in the schema: a JSON pointer (RFC 6901), clipped.
func badSchemaAt(pointer, format string, a ...any) error {
	const most = 200
	if pointer == "" {
		pointer = "/"
	}
	if len(pointer) > most {
		pointer = pointer[:most] + "…"
	}
	return badSchema(ErrBounds, "at %s: %s", pointer, fmt.Sprintf(format, a...))
}

// textCounts counts what a schema's JSON has before the library reads it, whose work and memory grow with the square of some of it.
type textCounts struct{ nodes, objects, refs int }

// unsupported are keywords that are not evaluated within the budget: which schema they lead to depends on the way there.
var unsupported = []string{"$dynamicRef", "$recursiveRef"}

func (t *textCounts) check(pointer string, v any, depth int) error {
	if t.nodes++; t.nodes > maxTextNodes {
		return badSchemaAt(pointer, "a schema may have %d values", maxTextNodes)
	}
	if depth > maxTextDepth {
		return badSchemaAt(pointer, "a schema may be %d deep", maxTextDepth)
	}
	switch v := v.(type) {
	case map[string]any:
		if t.objects++; t.objects > maxObjects {
			return badSchemaAt(pointer, "a schema may have %d objects", maxObjects)
		}
		for _, keyword := range unsupported {
			if _, ok := v[keyword].(string); ok {
				return badSchemaAt(pointer, "%s is not supported; use $ref", keyword)
			}
		}
		if _, ok := v["$ref"].(string); ok {
			if t.refs++; t.refs > maxRefs {
				return badSchemaAt(pointer, "a schema may have %d references", maxRefs)
			}
		}
		for name, below := range v {
			if len(name) > keyBytes {
				return badSchemaAt(pointer, "a name may have %d bytes", keyBytes)
			}
			if err := t.check(pointer+"/"+escape(name), below, depth+1); err != nil {
				return err
			}
		}
	case []any:
		for i, below := range v {
			if err := t.check(fmt.Sprintf("%s/%d", pointer, i), below, depth+1); err != nil {
				return err
			}
		}
	case bool:
		t.objects++ // true and false are schemas too
	case json.Number:
		if !isQuickNumber(string(v)) {
			return badSchemaAt(pointer, "a number may have %d characters, and an exponent up to %d", maxNumber, maxExponent)
		}
	}
	return nil
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

func escape(name string) string { return pointerEscaper.Replace(name) }
