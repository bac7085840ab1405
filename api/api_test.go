package api_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/api"
)

// Each type says which address uses it, or is part of one that does.
func TestEveryTypeNamesItsEndpoint(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	address := regexp.MustCompile(`(GET|POST|PUT|DELETE) /[a-z]|/(oauth|v1)/…`)
	says, parts := map[string]bool{}, map[string][]string{} // of each type: whether it says so, and the types that it has
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				ts := s.(*ast.TypeSpec)
				doc := g.Doc.Text()
				if !strings.HasPrefix(doc, ts.Name.Name+" ") {
					t.Errorf("%s has no doc comment that begins with its name", ts.Name.Name)
				}
				says[ts.Name.Name] = address.MatchString(doc)
				ast.Inspect(ts.Type, func(n ast.Node) bool {
					if id, ok := n.(*ast.Ident); ok {
						parts[ts.Name.Name] = append(parts[ts.Name.Name], id.Name)
					}
					return true
				})
			}
		}
	}
	for again := true; again; { // a part of what an address uses is used there too
		again = false
		for name, ids := range parts {
			for _, id := range ids {
				if used, known := says[id]; says[name] && known && !used {
					says[id], again = true, true
				}
			}
		}
	}
	for name, ok := range says {
		if !ok {
			t.Errorf("%s: its doc comment names no address, and no type that has it does", name)
		}
	}
	if len(says) < 50 {
		t.Errorf("looked at %d types", len(says))
	}
}

func TestBase64IsAStringWithPadding(t *testing.T) {
	in := api.RetainedDetail{Payload: []byte{0xff, 0xfe, 0}}
	in.Payload = append(in.Payload, '?')
	b, err := json.Marshal(in)
	if err != nil || !bytes.Contains(b, []byte(`"payload":"//4APw=="`)) {
		t.Fatalf("%s: %v", b, err)
	}
	var out api.RetainedDetail
	if err := json.Unmarshal(b, &out); err != nil || !bytes.Equal(out.Payload, in.Payload) {
		t.Errorf("%v: %v", out.Payload, err)
	}
	if err := json.Unmarshal([]byte(`{"payload":"//4APw"}`), &out); err == nil {
		t.Error("base64 without padding is taken")
	}
	if b, err := json.Marshal(api.EntryDetail{}); err != nil || bytes.Contains(b, []byte("salt")) {
		t.Errorf("%s: %v", b, err)
	}
}
