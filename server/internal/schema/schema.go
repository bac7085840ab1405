// Package schema compiles and evaluates untrusted JSON Schemas within a budget. It refuses a schema
// that could take more than [MaxSteps] steps on any value within [MaxBytes], with the position in
// the schema.
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

// Limits of a schema, and of a value to validate. They are checked before the library reads either.
const (
	MaxText  = 16 << 10          // bytes of a schema
	MaxBytes = watchword.MaxArgs // bytes of a value
	MaxSteps = 1 << 18           // of one evaluation; a step is the evaluation of one schema on one value, about 1 µs of CPU
	maxNodes = MaxBytes / 2      // values within a value: each takes at least two bytes
	maxDepth = 8                 // depth of a value, as in jose.Walk; the outer object counts
	url      = "urn:watchword:schema"
	keyBytes = 256 // bytes of a member's name in a schema: the locations of all schemas below contain it

	maxTextDepth = 64   // depth of a schema's JSON
	maxTextNodes = 4096 // values in a schema's JSON
	maxObjects   = 768  // objects in it, each of which may be a schema
	maxRefs      = 192  // references in it
	maxInPlace   = 32   // nesting of schemas on one value
	maxPattern   = 512  // bytes of a regular expression
	maxProgram   = 900  // instructions of its program
	maxNumber    = 64   // characters of a number
	maxExponent  = 400  // decimal exponent
)

// Schema is a compiled schema. It is immutable and safe for concurrent use.
type Schema struct {
	compiled *jsonschema.Schema
	steps    int
	size     int
	objects  int
}

// Objects returns the number of objects and booleans in the schema's JSON; compiling takes time
// quadratic in it.
func (s *Schema) Objects() int { return s.objects }

// Size estimates the memory of the schema, in bytes.
func (s *Schema) Size() int { return s.size }

// Parse parses JSON for [Schema.Validate]: numbers keep all digits.
func Parse(text []byte) (any, error) { return jsonschema.UnmarshalJSON(bytes.NewReader(text)) }

// noLoader makes sure that a schema loads no files or URLs.
type noLoader struct{}

func (noLoader) Load(string) (any, error) { return nil, errOther }

var errOther = errors.New("a schema may not refer to another document")

// Compile compiles a JSON Schema (draft 2020-12), which may refer to itself only. Codes: too_large;
// bad_request, with the position as a JSON pointer.
func Compile(source []byte) (*Schema, error) {
	if len(source) > MaxText {
		return nil, &watchword.Error{Code: watchword.TooLarge, Field: "schema", Detail: fmt.Sprintf("must have at most %d bytes", MaxText)}
	}
	doc, err := Parse(source)
	if err != nil {
		return nil, badSchema(err, "must be a JSON Schema (draft 2020-12)")
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
		return nil, badSchema(err, "must be a JSON Schema (draft 2020-12)")
	}
	compiled, err := c.Compile(url)
	if err != nil {
		if e.err != nil {
			return nil, e.err
		}
		return nil, badSchema(err, "must be a JSON Schema (draft 2020-12)")
	}
	b := newBudget()
	total, err := b.costOf(compiled, maxDepth)
	if err != nil {
		return nil, err
	}
	return &Schema{compiled, int(total.steps()), b.size + len(source), t.objects}, nil
}

// Validate validates v, a result of [Parse]. The error is a [jsonschema.ValidationError], or
// [ErrValue] for a value beyond the limits.
func (s *Schema) Validate(v any) error {
	left := MaxBytes
	if !withinBounds(v, maxDepth, &left) {
		return ErrValue
	}
	return s.compiled.Validate(v)
}

// ErrValue says that a value is larger or deeper than the limits, or has a number with more digits
// or a larger exponent than a double.
var ErrValue = errors.New("the value is too large, or a number in it is")

// ErrBounds is wrapped by the error of a valid schema that exceeds the limits.
var ErrBounds = errors.New("over the bounds of schemas")

// withinBounds reports whether v has at most that depth and at most *left bytes, which it counts
// down.
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

// isQuickNumber reports whether calculating with n is cheap: the library calculates exactly,
// whatever the exponent.
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

// badSchemaAt is badSchema with the position in the schema: a JSON pointer (RFC 6901), clipped.
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

// textCounts counts parts of a schema's JSON before the library reads it, whose work and memory are
// quadratic in some of them.
type textCounts struct{ nodes, objects, refs int }

// unsupported keywords cannot be budgeted: the schema that they refer to depends on the evaluation
// path.
var unsupported = []string{"$dynamicRef", "$recursiveRef"}

func (t *textCounts) check(pointer string, v any, depth int) error {
	if t.nodes++; t.nodes > maxTextNodes {
		return badSchemaAt(pointer, "must have at most %d values", maxTextNodes)
	}
	if depth > maxTextDepth {
		return badSchemaAt(pointer, "must be at most %d levels deep", maxTextDepth)
	}
	switch v := v.(type) {
	case map[string]any:
		if t.objects++; t.objects > maxObjects {
			return badSchemaAt(pointer, "must have at most %d objects", maxObjects)
		}
		for _, keyword := range unsupported {
			if _, ok := v[keyword].(string); ok {
				return badSchemaAt(pointer, "%s is not supported; use $ref", keyword)
			}
		}
		if _, ok := v["$ref"].(string); ok {
			if t.refs++; t.refs > maxRefs {
				return badSchemaAt(pointer, "must have at most %d references", maxRefs)
			}
		}
		for name, below := range v {
			if len(name) > keyBytes {
				return badSchemaAt(pointer, "a name must have at most %d bytes", keyBytes)
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
		t.objects++ // booleans are schemas too
	case json.Number:
		if !isQuickNumber(string(v)) {
			return badSchemaAt(pointer, "a number must have at most %d characters, and an exponent of at most %d", maxNumber, maxExponent)
		}
	}
	return nil
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

func escape(name string) string { return pointerEscaper.Replace(name) }
