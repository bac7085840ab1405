package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The comment of a function, method or type begins with its name, or names it in a list ("Suspend, Resume and Revoke ...").
// What a comment links to, such as [watchword.Code], exists. A sentence of it that begins with a small letter begins with a
// name: of a parameter, a result or a field.
func TestCommentsNameWhatExists(t *testing.T) {
	link := regexp.MustCompile(`(?:^|[^A-Za-z0-9])\[\*?([A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z][A-Za-z0-9]*){0,2})\]`)
	type parsed struct {
		path string
		ast  *ast.File
	}
	var files []parsed
	sentence := regexp.MustCompile(`\. ([a-z][A-Za-z0-9]*) [a-z]+`)
	names, packages := map[string]bool{}, map[string]bool{} // by the package's name: package.Name and package.Type.Member
	members := map[string]bool{}                            // package.Member
	for _, s := range sources(t) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.FromSlash(s.path), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, parsed{s.path, f})
		packages[f.Name.Name] = true
		eachDeclared(f, func(name string) {
			names[f.Name.Name+"."+name] = true
			members[f.Name.Name+"."+name[strings.LastIndex(name, ".")+1:]] = true
		})
	}
	links, docs := 0, 0
	for _, f := range files {
		for _, group := range f.ast.Comments {
			for _, m := range link.FindAllStringSubmatch(group.Text(), -1) {
				s := m[1]
				first, _, dotted := strings.Cut(s, ".")
				// Of another module, or a word that is no symbol of ours.
				foreign := dotted && !packages[first] && first == strings.ToLower(first) || !dotted && !ast.IsExported(s)
				if foreign {
					continue
				}
				links++
				if !names[s] && !names[f.ast.Name.Name+"."+s] {
					t.Errorf("%s: a comment links to [%s], which does not exist", f.path, s)
				}
			}
		}
		for _, d := range f.ast.Decls {
			name, doc := documented(d)
			words := strings.Fields(doc.Text())
			if len(words) == 0 {
				continue
			}
			docs++
			list := words[:1]
			for len(list) < len(words) && (strings.HasSuffix(list[len(list)-1], ",") || words[len(list)] == "and" || list[len(list)-1] == "and") {
				list = words[:len(list)+1]
			}
			used := map[string]bool{"nil": true}
			ast.Inspect(d, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					used[id.Name] = true
				}
				return true
			})
			for _, m := range sentence.FindAllStringSubmatch(strings.Join(words, " "), -1) {
				if !used[m[1]] && !members[f.ast.Name.Name+"."+m[1]] && !strings.HasSuffix(f.path, "_test.go") {
					t.Errorf("%s: the comment of %s speaks of %q, which it does not have", f.path, name, m[1])
				}
			}
			found := false
			for _, w := range list {
				found = found || strings.TrimRight(w, ",:") == name
			}
			switch {
			case found, words[0] == "A", words[0] == "An", words[0] == "The":
			case strings.HasSuffix(f.path, "_test.go"): // what a test shows is a sentence of its own
			default:
				t.Errorf("%s: the comment of %s begins with %q", f.path, name, words[0])
			}
		}
	}
	if links < 400 || docs < 4000 {
		t.Errorf("looked at %d links and %d comments", links, docs)
	}
}

// documented returns the name and the comment of a function or of a single type.
func documented(d ast.Decl) (name string, doc *ast.CommentGroup) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		return d.Name.Name, d.Doc
	case *ast.GenDecl:
		if x, ok := d.Specs[0].(*ast.TypeSpec); ok && len(d.Specs) == 1 && !d.Lparen.IsValid() {
			return x.Name.Name, d.Doc
		}
	}
	return "", nil
}

// Comments, texts of the programs and their tests, and documents use the terms of the standards and plain technical English. A word or phrase of refusedWords is
// a metaphor, or a relative clause without a noun. The first word of a comment is exempt, since it may be a name.
func TestProseIsPlain(t *testing.T) {
	refused := regexp.MustCompile(`(?i)\b(?:` + strings.Join(refusedWords, "|") + `)\b`)
	quoted := regexp.MustCompile("`[^`]*`|\"[^\"]*\"|\\b[A-Za-z]*[a-z][A-Z][A-Za-z]*\\b")
	namesWords := []string{"comments_test.go", "refusal_texts_test.go"} // words that are refused
	read := 0
	check := func(path, text string) {
		read++
		for line := range strings.Lines(text) {
			if m := refused.FindString(quoted.ReplaceAllString(line, "")); m != "" {
				t.Errorf("%s: %q in: %.160s", path, m, strings.TrimSpace(line))
			}
		}
	}
	for _, s := range sources(t) {
		if slices.Contains(namesWords, s.path) {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.FromSlash(s.path), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(s.path, "server/sqlite/") { // statements have old names of tables
			ast.Inspect(f, func(n ast.Node) bool {
				if x, ok := n.(*ast.BasicLit); ok && x.Kind == token.STRING && strings.Contains(x.Value, " ") {
					text, err := strconv.Unquote(x.Value)
					if err != nil {
						t.Fatal(err)
					}
					check(s.path, text)
				}
				return true
			})
		}
		for _, group := range f.Comments {
			_, text, _ := strings.Cut(strings.Join(strings.Fields(group.Text()), " "), " ")
			check(s.path, text)
		}
	}
	var pages []string
	for _, pattern := range []string{"README.md", "CHANGELOG.md", "docs/*.md", "docs/decisions/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		switch page = filepath.ToSlash(page); page {
		case "docs/renamed-names.md": // has the old names
		default:
			b, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			check(page, string(b))
		}
	}
	if read < 20_000 || len(pages) < 30 {
		t.Errorf("read %d texts, %d of them pages", read, len(pages))
	}
}

// refusedWords are regular expressions of the words and phrases that TestProseIsPlain refuses.
var refusedWords = []string{
	"nobody", "somebody", "anybody", "everybody", "whoever", // name the subject: "no client", "a subject", "the caller"
	"(?:of|to|for|those) who",         // name the noun: "a client that"
	"hears?", "heard", "lies", "dies", // "receives", "is in", "ends"
	"stands? (?:in|on|by|there|beside|behind|under|at|alone|twice)", "what stands", // "is in", "depends on", "existing"
	"papers?", "doors?", "house", "strangers?", "in hand", // "credential", "endpoint", "system topic", "unauthenticated client", "in flight"
	"believe[sd]?", "for ever", "(?:it|they|which|that) (?:is|are) over", // "trusts", "forever", "has expired"
}
