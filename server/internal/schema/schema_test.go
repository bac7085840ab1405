package schema

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/watchword-iot/watchword"
)

// fanOut is a schema whose definitions refer to the next one twice each, through a keyword.
func fanOut(levels int, keyword string) string {
	var defs []string
	for i := range levels {
		ref := fmt.Sprintf(`{"$ref":"#/$defs/d%d"}`, i+1)
		defs = append(defs, fmt.Sprintf(`"d%d":{%s}`, i, fmt.Sprintf(keyword, ref, ref)))
	}
	return fmt.Sprintf(`{"$ref":"#/$defs/d0","$defs":{%s,"d%d":{"type":"object"}}}`, strings.Join(defs, ","), levels)
}

func TestASchemaThatCouldTakeTooLongIsRefusedWithWhere(t *testing.T) {
	many := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	for _, tc := range []struct{ name, schema, where string }{
		{"references that fan out in allOf", fanOut(24, `"allOf":[%s,%s]`), "at /$defs/d"},
		{"references that fan out in anyOf", fanOut(24, `"anyOf":[%s,%s]`), "at /$defs/d"},
		{"references that fan out in if and then", fanOut(24, `"if":%s,"then":%s`), "at /$defs/d"},
		{"references that fan out on what is below", `{"type":"array","items":{"allOf":[` + many(8, `{"$ref":"#"}`) + `]}}`, "at /"},
		{"a schema that applies to itself", `{"properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"not":{"$ref":"#/$defs/x"}}}}`, "at /$defs/x: must not apply to itself"},
		{"a schema that applies to itself at the root", `{"$ref":"#"}`, "at /: must not apply to itself"},
		{"schemas within each other", strings.Repeat(`{"not":`, 33) + `{"type":"string"}` + strings.Repeat(`}`, 33), "at most 32 nested schemas"},
		{"many alternatives for each item", `{"items":{"anyOf":[` + many(200, `{"minimum":1}`) + `]}}`, "at /"},
		{"many patterns", `{"patternProperties":{` + strings.TrimSuffix(patterns(80), ",") + `}}`, "at /"},
		{"a large enumeration for each item", `{"items":{"enum":[` + many(2000, `"x"`) + `]}}`, "at /"},
		{"many properties that fan out", strings.TrimSuffix(fanOut(9, `"allOf":[%s,%s]`), "}") + `,"properties":{` + properties(180, `{"$ref":"#/$defs/d0"}`) + `}}`, "at /"},
		{"a dynamic reference", `{"$dynamicRef":"#a","$defs":{"a":{"$dynamicAnchor":"a"}}}`, "at /: $dynamicRef is not supported"},
		{"a recursive reference", `{"$schema":"https://json-schema.org/draft/2019-09/schema","items":{"$recursiveRef":"#"}}`, "at /items: $recursiveRef is not supported"},
		{"unique items many times", `{"allOf":[` + many(20, `{"uniqueItems":true}`) + `]}`, "at /"},
		{"a number with a large exponent", `{"maximum":1e999999}`, "at /maximum: a number must have at most"},
		{"a number with many digits", `{"maximum":` + strings.Repeat("9", 65) + `}`, "at /maximum: a number must have at most"},
		{"a deep one", strings.Repeat(`{"not":`, 65) + `{}` + strings.Repeat(`}`, 65), "must be at most 64 levels deep"},
		{"many objects", `{"allOf":[` + many(800, `{}`) + `]}`, "must have at most 768 objects"},
		{"many references", `{"$defs":{"x":{}},"allOf":[` + many(193, `{"$ref":"#/$defs/x"}`) + `]}`, "must have at most 192 references"},
		{"many values", `{"enum":[` + many(4100, `1`) + `]}`, "must have at most 4096 values"},
		{"a long name", `{"properties":{"` + strings.Repeat("x", 257) + `":{}}}`, "a name must have at most 256 bytes"},
		{"the format regex where it counts", `{"$schema":"http://json-schema.org/draft-07/schema#","format":"regex"}`, "at /: the format regex"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Compile([]byte(tc.schema))
			if watchword.CodeOf(err) != watchword.BadRequest || !strings.Contains(err.Error(), tc.where) {
				t.Errorf("got %v, want %q (%d bytes)", err, tc.where, len(tc.schema))
			}
			if s != nil {
				t.Logf("%d steps", s.Steps())
			}
		})
	}
	if _, err := Compile([]byte(`{"title":"` + strings.Repeat("x", MaxText) + `"}`)); watchword.CodeOf(err) != watchword.TooLarge {
		t.Errorf("one that is too long: %v", err)
	}
}

func properties(n int, each string) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(`"p%d":%s`, i, each))
	}
	return strings.Join(out, ",")
}

func patterns(n int) string {
	var out strings.Builder
	for i := range n {
		fmt.Fprintf(&out, `"a{500}%d":{},`, i)
	}
	return out.String()
}

func TestAPatternIsBounded(t *testing.T) {
	for _, tc := range []struct {
		pattern string
		fits    bool
	}{
		{`^[a-z]{1,64}$`, true},
		{`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`, true},
		{`x{800}`, true},
		{`x{901}`, false},
		{`(x{80}){10}`, true},
		{`(x{101}){10}`, false},
		{`((xy{10}){10}){10}`, false},
		{strings.Repeat("x{400}", 3), false},
		{strings.Repeat("x", 513), false},
		{`(`, false},
		{`(?=x)`, false}, // RE2 has no look-ahead
	} {
		_, err := compilePattern(tc.pattern)
		if (err == nil) != tc.fits {
			t.Errorf("%s: %v", tc.pattern[:min(40, len(tc.pattern))], err)
		}
		for _, keyword := range []string{`{"pattern":%q}`, `{"patternProperties":{%q:{}}}`, `{"items":{"pattern":%q}}`} {
			if len(tc.pattern) > keyBytes {
				continue
			}
			if _, err := Compile(fmt.Appendf(nil, keyword, tc.pattern)); (err == nil) != tc.fits {
				t.Errorf("%s of %s: %v", keyword, tc.pattern, err)
			}
		}
	}
}

// usual are schemas as devices announce them.
var usual = []string{
	`{}`,
	`true`,
	`{"type":"object","properties":{"level":{"type":"integer","minimum":0,"maximum":100}},"required":["level"],"additionalProperties":false}`,
	`{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"https://vendor.example/lamp.json","type":"object","properties":{"color":{"$ref":"#/$defs/color"}},"$defs":{"color":{"type":"array","items":{"type":"number","minimum":0,"maximum":1},"minItems":3,"maxItems":3}}}`,
	`{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","definitions":{"t":{"type":"string","format":"date-time"}},"properties":{"at":{"$ref":"#/definitions/t"}},"dependencies":{"a":["b"],"c":{"required":["d"]}}}`,
	`{"type":"object","oneOf":[{"properties":{"mode":{"const":"on"},"level":{"type":"number"}},"required":["mode","level"]},{"properties":{"mode":{"const":"off"}},"required":["mode"],"unevaluatedProperties":false}]}`,
	`{"type":"object","properties":{"plan":{"type":"array","maxItems":50,"uniqueItems":true,"items":{"type":"object","properties":{"at":{"type":"string","pattern":"^[0-2][0-9]:[0-5][0-9]$"},"level":{"enum":[0,25,50,75,100]}},"required":["at","level"]}}}}`,
	`{"$ref":"#/$defs/menu","$defs":{"menu":{"type":"object","properties":{"name":{"type":"string","maxLength":64},"below":{"type":"array","items":{"$ref":"#/$defs/menu"}}}}}}`,
	`{"type":"object","patternProperties":{"^[a-z]{1,16}$":{"type":"number"}},"propertyNames":{"maxLength":16},"minProperties":1}`,
	`{"if":{"required":["a"]},"then":{"required":["b"]},"else":{"required":["c"]},"dependentRequired":{"x":["y"]},"dependentSchemas":{"z":{"minProperties":2}}}`,
}

func TestUsualSchemasAreTaken(t *testing.T) {
	for _, text := range usual {
		s, err := Compile([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if s.Size() < len(text) || s.Size() > 1<<20 {
			t.Errorf("%s takes %d bytes", text, s.Size())
		}
		t.Logf("%d steps, %d bytes", s.Steps(), s.Size())
	}
}

// The memory of schemas is bounded by what they say they take.
func TestTheSizeIsTheMemory(t *testing.T) {
	for _, text := range append(slices.Clone(usual[2:]), `{"pattern":"^([a-z]+-?){1,40}$"}`, `{"properties":{`+properties(300, `{"type":"string","maxLength":9}`)+`}}`) {
		const n = 50
		kept := make([]*Schema, n)
		heap := func() int64 {
			runtime.GC()
			runtime.GC() // what has a finalizer, and pools
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before := heap()
		for i := range kept {
			var err error
			if kept[i], err = Compile([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		real, said := (heap()-before)/n, int64(kept[0].Size())
		most := real * 2
		if math.MaxInt == math.MaxInt32 { // Size counts pointers of 64 bits: on smaller ones it says too much, never too little
			most *= 2
		}
		if said < real*3/4 || said > most {
			t.Errorf("%d bytes, said are %d: %.80s", real, said, text)
		}
		runtime.KeepAlive(kept)
	}
}

func TestAValueIsBounded(t *testing.T) {
	s, err := Compile([]byte(`{"items":{"type":"integer"},"properties":{"a":{"type":"integer"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		value string
		bad   bool
	}{
		{`{"a":1}`, false},
		{`{"a":1e400}`, false},
		{`{"a":1e401}`, true},
		{`{"a":1E+0000000000400}`, false},
		{`{"a":1e+999999}`, true},
		{`{"a":1e-999999}`, true},
		{`{"a":` + strings.Repeat("9", 64) + `}`, false},
		{`{"a":` + strings.Repeat("9", 65) + `}`, true},
		{strings.Repeat("[", 8) + strings.Repeat("]", 8), true}, // for the schema: the outer one is there
		{strings.Repeat("[", 10) + strings.Repeat("]", 10), true},
		{`["` + strings.Repeat("x", MaxBytes) + `"]`, true},
		{`[` + strings.Repeat("1,", 4090) + `1]`, false},
		{`[` + strings.Repeat("1,", 4100) + `1]`, true},
		{`{"` + strings.Repeat("x", MaxBytes) + `":1}`, true},
	} {
		v, err := Parse([]byte(tc.value))
		if err != nil {
			t.Fatal(err)
		}
		if tc.value == strings.Repeat("[", 8)+strings.Repeat("]", 8) { // deep enough
			if !withinBounds(v, maxDepth, new(int(MaxBytes))) {
				t.Errorf("eight levels are too deep")
			}
			continue
		}
		if got := errors.Is(s.Validate(v), ErrValue); got != tc.bad {
			t.Errorf("%.40s: %v", tc.value, got)
		}
	}
}

// visits counts how often schemas are evaluated, as far as the library says so: those that fail at their type or value
// do not come that far.
type visits struct{ n int }

func (v *visits) Validate(*jsonschema.ValidatorContext, any) { v.n++ }

// count has every schema within s counted.
func count(s *jsonschema.Schema, v *visits, seen map[*jsonschema.Schema]bool) {
	if s == nil || seen[s] {
		return
	}
	seen[s] = true
	s.Extensions = append(s.Extensions, v)
	for _, list := range [][]*jsonschema.Schema{sameValueSchemas(s), oneValueSchemas(s), manyValueSchemas(s), {s.PropertyNames}} {
		for _, below := range list {
			count(below, v, seen)
		}
	}
}

// evaluates holds values against an accepted schema and fails if one takes more steps than were promised.
func evaluates(t *testing.T, text string, values []string) {
	t.Helper()
	s, err := Compile([]byte(text))
	if err != nil {
		return
	}
	if s.Steps() > MaxSteps {
		t.Fatalf("taken with %d steps: %s", s.Steps(), text)
	}
	for _, value := range values {
		v, err := Parse([]byte(value))
		if err != nil {
			t.Fatal(err)
		}
		var n visits
		count(s.compiled, &n, map[*jsonschema.Schema]bool{})
		_ = s.Validate(v)
		if n.n > s.Steps() {
			t.Fatalf("%d evaluations, %d were promised: %s on %.60s", n.n, s.Steps(), text, value)
		}
		s, _ = Compile([]byte(text)) // without the counter
	}
}

// worst are values of 8 KiB that have many values in them.
func worst() []string {
	list := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	var members strings.Builder
	for i := range 900 {
		fmt.Fprintf(&members, `"%c%d":1,`, 'a'+rune(i%6), i)
	}
	abc := func(below string) string {
		return `{"a":` + below + `,"b":` + below + `,"c":` + below + `}`
	}
	deep := `1`
	for range 5 {
		deep = abc(deep)
	}
	return []string{
		`{}`, `[` + list(4000, `1`) + `]`, `{` + strings.TrimSuffix(members.String(), ",") + `}`,
		`{"a":[` + list(2000, `[1]`) + `]}`, `{"a":{"b":[` + list(1300, `{}`) + `]}}`,
		strings.Repeat(`[`, 7) + list(4000, `1`) + strings.Repeat(`]`, 7),
		`[` + list(1000, `[[[]]]`) + `]`, deep, `{"a":"` + strings.Repeat("x", 8000) + `"}`,
	}
}

// random is a schema of nested keywords: mostly applicators, and references to what is there.
func random(r *rand.Rand, depth int) string {
	if depth == 0 {
		return []string{`{}`, `true`, `{"type":"number"}`, `{"$ref":"#"}`, `{"$ref":"#/$defs/x"}`, `{"$ref":"#/$defs/y"}`, `{"pattern":"x+y"}`, `{"uniqueItems":true}`}[r.IntN(8)]
	}
	sub := func() string { return random(r, depth-1) }
	list := func() string {
		var out []string
		for range 1 + r.IntN(3) {
			out = append(out, sub())
		}
		return `[` + strings.Join(out, ",") + `]`
	}
	var members []string
	for _, k := range r.Perm(12)[:1+r.IntN(3)] {
		members = append(members, []func() string{
			func() string { return `"allOf":` + list() },
			func() string { return `"anyOf":` + list() },
			func() string { return `"oneOf":` + list() },
			func() string { return `"not":` + sub() },
			func() string { return `"if":` + sub() + `,"then":` + sub() + `,"else":` + sub() },
			func() string { return `"properties":{"a":` + sub() + `,"b":` + sub() + `}` },
			func() string { return `"patternProperties":{"^[a-c]":` + sub() + `,"1":` + sub() + `}` },
			func() string { return `"additionalProperties":` + sub() },
			func() string { return `"items":` + sub() },
			func() string { return `"prefixItems":` + list() + `,"contains":` + sub() },
			func() string { return `"unevaluatedProperties":` + sub() + `,"unevaluatedItems":` + sub() },
			func() string { return `"propertyNames":` + sub() + `,"dependentSchemas":{"a":` + sub() + `}` },
		}[k]())
	}
	return `{` + strings.Join(members, ",") + `}`
}

func TestNoAcceptedSchemaTakesMoreStepsThanItSays(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	values, taken := worst(), 0
	for range 150 {
		text := strings.TrimSuffix(random(r, 1+r.IntN(2)), "}") + `,"$defs":{"x":` + random(r, 1) + `,"y":` + random(r, 1) + `}}`
		if !strings.HasPrefix(text, "{") {
			continue
		}
		if _, err := Compile([]byte(text)); err == nil {
			taken++
		}
		evaluates(t, text, values)
	}
	if taken < 25 {
		t.Errorf("only %d schemas were taken", taken)
	}
	for _, text := range usual {
		evaluates(t, text, values)
	}
}

func FuzzCompile(f *testing.F) {
	for _, text := range usual {
		f.Add(text)
	}
	f.Add(fanOut(6, `"allOf":[%s,%s]`))
	values := worst()
	f.Fuzz(func(t *testing.T, text string) { evaluates(t, text, values) })
}

// cpu is the time that the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it has no reason to fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWorst is the compilation and the evaluation of schemas that are close to the bounds.
func BenchmarkWorst(b *testing.B) {
	many := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	values := worst()
	for _, tc := range []struct{ name, schema string }{
		{"items anyOf", `{"items":{"anyOf":[` + many(20, `{"minimum":5}`) + `]}}`},
		{"allOf fan-out", fanOut(10, `"allOf":[%s,%s]`)},
		{"objects", `{"allOf":[` + many(760, `{}`) + `]}`},
		{"refs", `{"x":{},"allOf":[` + many(190, `{"$ref":"#/x"}`) + `]}`},
		{"refs elsewhere", func() string {
			var refs, there []string
			for i := range 190 {
				refs = append(refs, fmt.Sprintf(`{"$ref":"#/x/%d"}`, i))
				there = append(there, `{}`)
			}
			return `{"x":[` + strings.Join(there, ",") + `],"allOf":[` + strings.Join(refs, ",") + `]}`
		}()},
		{"ids", func() string {
			var ids []string
			for i := range 380 {
				ids = append(ids, fmt.Sprintf(`{"$id":"urn:u%d"}`, i))
			}
			return `{"allOf":[` + strings.Join(ids, ",") + `]}`
		}()},
		{"unique", `{"uniqueItems":true}`},
		{"pattern", `{"properties":{"a":{"pattern":"(x+x+)+y|(a|x|b)*z"}}}`},
		{"patterns", `{"patternProperties":{` + strings.TrimSuffix(patterns(1), ",") + `}}`},
		{"enum", `{"items":{"enum":[` + many(50, `1.5`) + `]}}`},
	} {
		b.Run(tc.name, func(b *testing.B) {
			b.Run("compile", func(b *testing.B) {
				for b.Loop() {
					if _, err := Compile([]byte(tc.schema)); err != nil {
						b.Log(err)
					}
				}
			})
			s, err := Compile([]byte(tc.schema))
			if err != nil {
				return
			}
			b.Run("evaluate", func(b *testing.B) {
				b.ReportMetric(float64(s.Steps()), "steps")
				b.ReportMetric(float64(s.Size()), "size")
				var docs []any
				for _, value := range values {
					v, _ := Parse([]byte(value))
					docs = append(docs, v)
				}
				var limit time.Duration // of CPU
				for b.Loop() {
					for _, v := range docs {
						begun := cpu()
						_ = s.Validate(v)
						limit = max(limit, cpu()-begun)
					}
				}
				b.ReportMetric(float64(limit.Nanoseconds())/float64(s.Steps()), "ns/step")
				b.ReportMetric(float64(limit.Milliseconds()), "ms-worst")
			})
		})
	}
}

// Steps returns the most steps that a validation can take.
func (s *Schema) Steps() int { return s.steps }
