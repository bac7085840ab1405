package watchword_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Code and documents refer only to documents of the repository, not to the project's internal design documents.
func TestReferencesNameDocumentsOfTheRepository(t *testing.T) {
	internal := regexp.MustCompile(`\bDESIGN\b|\b(?:INTERFACE|STYLE)\.md\b`)
	this, read := "references_test.go", 0
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || file == "bin"):
			return filepath.SkipDir
		case d.IsDir() || file == this:
			return nil
		}
		switch ext := filepath.Ext(file); {
		case ext == ".go", ext == ".md", ext == ".sql", ext == ".sh", ext == ".toml", d.Name() == "Makefile":
		default:
			return nil
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		read++
		n := 0
		for line := range strings.Lines(string(b)) {
			n++
			if m := internal.FindString(line); m != "" {
				t.Errorf("%s:%d refers to %s: name the page of docs/ or the section of the standard that says it", file, n, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if read < 500 {
		t.Errorf("read %d files", read)
	}
}

// A relative link of a document leads to a file or folder of the repository.
func TestLinksOfDocumentsLeadSomewhere(t *testing.T) {
	link, links := regexp.MustCompile(`\]\(([^)#\s]+)`), 0
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || file == "bin"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(file) != ".md":
			return nil
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], ":") {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if links < 100 {
		t.Errorf("looked at %d links", links)
	}
}

// Each decision has a number of its own, which its title repeats.
func TestDecisionsAreNumbered(t *testing.T) {
	files, err := filepath.Glob("docs/decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files { // sorted by name
		if want := fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(filepath.Base(f), want) {
			t.Errorf("%s must begin with %s", f, want)
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if title := strings.TrimLeft(strings.TrimPrefix(string(text), "# "), "0"); !strings.HasPrefix(title, fmt.Sprint(i+1)) {
			t.Errorf("%s: the title does not begin with the number %d", f, i+1)
		}
	}
}
