package agent

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

func run(t *testing.T, timeout time.Duration, script, args string) (any, error) {
	t.Helper()
	return runWith(t.Context(), newRunner(Options{}), Function{Timeout: timeout}, script, args)
}

func runWith(ctx context.Context, r *runner, f Function, script, args string) (any, error) {
	f.Name, f.Run = "f", []string{"/bin/sh", "-c", script}
	return r.execute(ctx, f, &device.Command{ID: "cmd_1", Function: "f", By: "alice", Seq: 7, Raw: []byte(args)})
}

func TestProgramOutputBecomesTheResult(t *testing.T) {
	for _, tc := range []struct{ name, script, args, want string }{
		{"JSON as it is", `cat`, `{"level":40}`, `{"level":40}`},
		{"text as output", `echo hello`, `{}`, `{"output":"hello"}`},
		{"nothing", `true`, `{}`, `null`},
		{"what it may know", `echo "$WATCHWORD_COMMAND $WATCHWORD_FUNCTION $WATCHWORD_BY $WATCHWORD_SEQ"`, `{}`, `{"output":"cmd_1 f alice 7"}`},
		{"no newline after the arguments", `wc -c | tr -d ' '`, `{}`, `2`},
	} {
		got, err := run(t, time.Minute, tc.script, tc.args)
		b, jerr := json.Marshal(got)
		if err != nil || jerr != nil || string(b) != tc.want {
			t.Errorf("%s: %s %v %v, want %s", tc.name, b, err, jerr, tc.want)
		}
	}
	got, err := run(t, time.Minute, `head -c 100000 /dev/zero | tr '\0' x`, `{}`)
	b, jerr := json.Marshal(got)
	if err != nil || jerr != nil || len(b) > watchword.MaxDocument || !strings.Contains(string(b), `"left_out":`) {
		t.Errorf("a program that talks too much: %d bytes, %v", len(b), err)
	}
}

func TestProgramFailures(t *testing.T) {
	for _, tc := range []struct{ name, script, code, detail string }{
		{"with a status and a word", `echo broken >&2; exit 3`, "exit_3", "broken"},
		{"with a word on standard output", `echo sorry; exit 1`, "exit_1", "sorry"},
		{"by a signal", `kill -9 $$`, "program", ""},
	} {
		_, err := run(t, time.Minute, tc.script, `{}`)
		f, ok := errors.AsType[*device.Failure](err)
		if !ok || f.Code != tc.code || !strings.Contains(f.Error(), tc.detail) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	// What runs too long is killed, with all that it started: the pipe's other end is closed at once.
	start := time.Now()
	_, err := run(t, 200*time.Millisecond, `sleep 60 & sleep 60; wait`, `{}`)
	f, ok := errors.AsType[*device.Failure](err)
	if !ok || f.Code != "timeout" || time.Since(start) > 20*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}

func TestFunctionsFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "s.json"), []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(text string) ([]Function, error) {
		p := filepath.Join(dir, "f.toml")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(p)
	}
	fs, err := load("[functions.\"lamp.set\"]\nrun = [\"sh\", \"-c\", \"true\"]\ntimeout = \"5s\"\nschema = \"s.json\"\n[functions.\"a\"]\nrun = [\"/bin/sh\"]\n")
	if err != nil || len(fs) != 2 || fs[1].Name != "lamp.set" || fs[1].Timeout != 5*time.Second || string(fs[1].Schema) != `{"type":"object"}` || !filepath.IsAbs(fs[1].Run[0]) {
		t.Fatalf("%+v %v", fs, err)
	}
	for name, tc := range map[string]struct{ text, says string }{
		"no TOML":             {"[functions", "f.toml:1:"},
		"an unknown key":      {"[functions.\"a\"]\nrum = [\"sh\"]\n", "f.toml:2:1: unknown key rum"},
		"no program":          {"[functions.\"a\"]\ntimeout = \"5s\"\n", "run is missing"},
		"a program nowhere":   {"[functions.\"a\"]\nrun = [\"no-such-program-here\"]\n", "run:"},
		"a bad name":          {"[functions.\"a/b\"]\nrun = [\"sh\"]\n", "a name must be"},
		"a bad grace":         {"[functions.\"a\"]\nrun = [\"sh\"]\ngrace = \"2m\"\n", "grace must be"},
		"a grace below 0":     {"[functions.\"a\"]\nrun = [\"sh\"]\ngrace = \"-1s\"\n", "grace must be"},
		"our own variable":    {"[functions.\"a\"]\nrun = [\"sh\"]\nenv = {WATCHWORD_BY = \"x\"}\n", "WATCHWORD_BY"},
		"a NUL":               {"[functions.\"a\"]\nrun = [\"sh\"]\nenv = {A = \"\\u0000\"}\n", "cannot be set"},
		"a name that is none": {"[functions.\"a\"]\nrun = [\"sh\"]\npass = [\"A=B\"]\n", "cannot be passed on"},
		"a bad timeout":       {"[functions.\"a\"]\nrun = [\"sh\"]\ntimeout = \"2h\"\n", "timeout must be"},
		"a schema nowhere":    {"[functions.\"a\"]\nrun = [\"sh\"]\nschema = \"none.json\"\n", "schema:"},
	} {
		_, err := load(tc.text)
		if watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(filepath.Join(dir, "none.toml")); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("no file: %v", err)
	}
}
