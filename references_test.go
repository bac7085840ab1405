package watchword_test

import (
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
