package device

import (
	"context"
	"testing"
)

func TestFunctionsAreReplaced(t *testing.T) {
	d := &Device{}
	handler := func(Function) Handler { return func(context.Context, *Command) (any, error) { return nil, nil } }
	announced := func(want string) {
		t.Helper()
		got := ""
		for _, f := range d.handlers.list {
			got += f.Name + string(f.Schema) + " "
			if d.handlers.byName[f.Name] == nil {
				t.Errorf("%s has no handler", f.Name)
			}
		}
		if got != want || len(d.handlers.byName) != len(d.handlers.list) {
			t.Errorf("%q is announced, want %q; %d handlers", got, want, len(d.handlers.byName))
		}
	}
	d.HandleFunction(Function{"a", []byte("1")}, handler(Function{}))
	d.Handle("b", handler(Function{}))
	d.HandleFunction(Function{"a", []byte("2")}, handler(Function{})) // the schema of the last one counts
	announced("a2 b ")
	d.ReplaceFunctions([]Function{{"c", nil}, {"a", []byte("3")}}, handler)
	announced("c a3 ")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("an invalid name did not panic")
			}
		}()
		d.ReplaceFunctions([]Function{{"d", nil}, {"a/b", nil}}, handler)
	}()
	announced("c a3 ") // nothing was replaced
	d.ReplaceFunctions(nil, handler)
	announced("")
}
