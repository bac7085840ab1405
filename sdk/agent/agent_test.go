package agent

import (
	"context"
	"encoding/json"
	"errors"
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

func TestFunctionsAreChecked(t *testing.T) {
	good := Function{Name: "lamp.set", Run: []string{"sh", "-c", "true"}, Timeout: time.Hour, Grace: 15 * time.Second, Env: map[string]string{"A": "b"}, Pass: []string{"HOME"}}
	f, err := good.Check()
	if err != nil || !strings.HasPrefix(f.Run[0], "/") || len(f.Run) != 3 || good.Run[0] != "sh" {
		t.Errorf("%+v, %v; what it was made of is %v", f, err, good.Run)
	}
	for name, tc := range map[string]struct {
		edit func(*Function)
		says string
	}{
		"a bad name":         {func(f *Function) { f.Name = "a/b" }, "a name must be"},
		"no program":         {func(f *Function) { f.Run = nil }, "run is required"},
		"a program nowhere":  {func(f *Function) { f.Run = []string{"no-such-program-here"} }, "run:"},
		"no timeout":         {func(f *Function) { f.Timeout = 0 }, "timeout must be"},
		"too long a timeout": {func(f *Function) { f.Timeout = time.Hour + 1 }, "timeout must be"},
		"too long a grace":   {func(f *Function) { f.Grace = 15*time.Second + 1 }, "grace must be"},
		"a grace below 0":    {func(f *Function) { f.Grace = -1 }, "grace must be"},
		"our own variable":   {func(f *Function) { f.Env = map[string]string{"WATCHWORD_BY": "x"} }, "WATCHWORD_BY"},
		"a NUL":              {func(f *Function) { f.Env = map[string]string{"A": "\x00"} }, "cannot be set"},
		"our own, passed on": {func(f *Function) { f.Pass = []string{"WATCHWORD_BY"} }, "cannot be passed on"},
		"an invalid name":    {func(f *Function) { f.Pass = []string{"A=B"} }, "cannot be passed on"},
	} {
		f := good
		tc.edit(&f)
		if _, err := f.Check(); watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
