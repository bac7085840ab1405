//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

// A caller that can write to the functions file, a schema or a program decides what the device does: none is taken from others.
func TestUntrustedFunctionsFilesAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file, schema, program := filepath.Join(dir, "functions.toml"), filepath.Join(dir, "schema.json"), filepath.Join(dir, "run.sh")
	must(os.WriteFile(file, fmt.Appendf(nil, "[functions.f]\nrun = [%q]\nschema = \"schema.json\"\n", program), 0o644))
	must(os.WriteFile(schema, []byte(`{}`), 0o644))
	must(os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	if _, err := readFunctions(file); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, schema, program} {
		info, err := os.Stat(path)
		must(err)
		for what, f := range map[string]func() error{
			"of another user":     func() error { return os.Chown(path, 54321, 54321) },
			"that others write":   func() error { return os.Chmod(path, info.Mode()|0o002) },
			"that a group writes": func() error { return os.Chmod(path, info.Mode()|0o020) },
		} {
			must(f())
			if _, err := readFunctions(file); watchword.CodeOf(err) != watchword.FileUntrusted || !strings.Contains(err.Error(), path) {
				t.Errorf("%s %s: %v", path, what, err)
			}
			must(os.Chown(path, 0, 0))
			must(os.Chmod(path, info.Mode()))
		}
	}
}
