package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/agent"
)

func TestFunctionsFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "s.json"), []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(text string) ([]agent.Function, error) {
		p := filepath.Join(dir, "f.toml")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return readFunctions(p)
	}
	fs, err := load("[functions.\"lamp.set\"]\nrun = [\"sh\", \"-c\", \"true\"]\ntimeout = \"5s\"\nschema = \"s.json\"\n[functions.\"a\"]\nrun = [\"/bin/sh\"]\n")
	if err != nil || len(fs) != 2 || fs[1].Name != "lamp.set" || fs[1].Timeout != 5*time.Second || string(fs[1].Schema) != `{"type":"object"}` || !filepath.IsAbs(fs[1].Run[0]) {
		t.Fatalf("%+v %v", fs, err)
	}
	for name, tc := range map[string]struct{ text, says string }{
		"no TOML":                    {"[functions", "f.toml:1:"},
		"an unknown key":             {"[functions.\"a\"]\nrum = [\"sh\"]\n", "f.toml:2:1: unknown key rum"},
		"no program":                 {"[functions.\"a\"]\ntimeout = \"5s\"\n", "run is required"},
		"a program nowhere":          {"[functions.\"a\"]\nrun = [\"no-such-program-here\"]\n", "run:"},
		"a bad name":                 {"[functions.\"a/b\"]\nrun = [\"sh\"]\n", "a name must be"},
		"a bad grace":                {"[functions.\"a\"]\nrun = [\"sh\"]\ngrace = \"2m\"\n", "grace must be"},
		"a grace below 0":            {"[functions.\"a\"]\nrun = [\"sh\"]\ngrace = \"-1s\"\n", "grace must be"},
		"our own variable":           {"[functions.\"a\"]\nrun = [\"sh\"]\nenv = {WATCHWORD_BY = \"x\"}\n", "WATCHWORD_BY"},
		"a NUL":                      {"[functions.\"a\"]\nrun = [\"sh\"]\nenv = {A = \"\\u0000\"}\n", "cannot be set"},
		"a value in place of a name": {"[functions.\"a\"]\nrun = [\"sh\"]\npass = [\"A=B\"]\n", "cannot be passed on"},
		"a bad timeout":              {"[functions.\"a\"]\nrun = [\"sh\"]\ntimeout = \"2h\"\n", "timeout must be"},
		"a schema nowhere":           {"[functions.\"a\"]\nrun = [\"sh\"]\nschema = \"none.json\"\n", "schema:"},
	} {
		_, err := load(tc.text)
		if watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readFunctions(filepath.Join(dir, "none.toml")); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("no file: %v", err)
	}
}
