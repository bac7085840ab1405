package command

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/twin"
)

// A schema may be in the store from before there was a bound on what it may take.
func TestExpensiveSchemaIsNotEvaluated(t *testing.T) {
	eight := strings.TrimSuffix(strings.Repeat(`{"$ref":"#"},`, 8), ",")
	fs := []twin.Function{
		{Name: "stored", Schema: []byte(`{"items":{"allOf":[` + eight + `]},"properties":{"a":{"$ref":"#"}}}`)},
		{Name: "level", Schema: []byte(`{"properties":{"level":{"type":"integer","maximum":100}}}`)},
		{Name: "free"},
	}
	s := newSchemas()
	for _, tc := range []struct {
		function, args string
		code           watchword.Code
		field          string
	}{
		{"stored", `{}`, watchword.ArgsInvalid, ""},
		{"level", `{"level":100}`, "", ""},
		{"level", `{"level":101}`, watchword.ArgsInvalid, "args.level"},
		{"level", `{"level":1e401}`, watchword.ArgsInvalid, "args"},
		{"free", `{"level":1e401}`, "", ""},
		{"none", `{}`, watchword.FunctionUnknown, ""},
	} {
		for range 2 { // compiled, and remembered
			err := s.check(fs, tc.function, []byte(tc.args))
			if watchword.CodeOf(err) != tc.code {
				t.Errorf("%s %s: %v", tc.function, tc.args, err)
			}
			if e, ok := err.(*watchword.Error); ok && e.Field != tc.field {
				t.Errorf("%s %s: field %q", tc.function, tc.args, e.Field)
			}
		}
	}
}

func TestCompiledSchemasAreBoundedByBytes(t *testing.T) {
	s := newSchemas()
	for i := range 2000 {
		text := `{"title":"` + strings.Repeat("x", i) + `","allOf":[` + strings.TrimSuffix(strings.Repeat(`{},`, 20), ",") + `]}`
		if _, err := s.compiled([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if s.compiledByHash.Bytes() > schemasBytes {
			t.Fatalf("%d bytes after %d schemas", s.compiledByHash.Bytes(), i)
		}
	}
	if s.compiledByHash.Bytes() < schemasBytes/4 {
		t.Errorf("only %d bytes are counted", s.compiledByHash.Bytes())
	}
}
