package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/sdk/device"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"watchword": main})
}

// The scripts run the real main; each is also an example.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("WATCHWORD_DATA", filepath.Join(e.WorkDir, "data"))
			e.Setenv("WATCHWORD_SERVER_HTTPS", "localhost:0")
			e.Setenv("WATCHWORD_SERVER_MQTTS", "localhost:0")
			e.Setenv("WATCHWORD_METRICS_LISTEN", "127.0.0.1:0")
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status":        wantStatus,
			"awaiting":      awaiting,
			"until":         until,
			"repeat":        repeat,
			"capture":       capture,
			"mangle":        replaceInFile,
			"retain":        retain,
			"unpack":        unpack,
			"upgraded":      upgraded,
			"forward-proxy": forwardProxy,
		},
	})
}

// wantStatus runs a program and wants its exit status: status 3 watchword device show ghost.
func wantStatus(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: status N program args…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%v: exit status %d, want %s", args[1:], got, args[0])
	}
}

// awaiting waits until a file is there: awaiting data/server.json.
func awaiting(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s did not come", path)
		}
	}
}

// until runs a program again and again until its standard output matches a pattern: until PATTERN program args….
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: until PATTERN program args…")
	}
	pattern := regexp.MustCompile("(?m)" + args[0])
	for end := time.Now().Add(30 * time.Second); ; {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("the output of %v did not match %s: %v", args[1:], args[0], err)
		}
	}
}

// repeat runs a program several times, one after another, or, with & at the end, all at once: repeat N program args… [&].
func repeat(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[0])
	if err != nil || len(args) < 2 || neg {
		ts.Fatalf("usage: repeat N program args… [&]")
	}
	words := args[1:]
	atOnce := words[len(words)-1] == "&"
	if atOnce {
		words = words[:len(words)-1]
	}
	var all []*exec.Cmd
	for range n {
		if !atOnce {
			ts.Check(ts.Exec(words[0], words[1:]...))
			continue
		}
		path, err := exec.LookPath(words[0])
		ts.Check(err)
		c := exec.Command(path, words[1:]...)
		c.Dir = ts.MkAbs(".")
		for _, name := range []string{"HOME", "PATH", "WATCHWORD_DATA"} {
			c.Env = append(c.Env, name+"="+ts.Getenv(name))
		}
		ts.Check(c.Start())
		all = append(all, c)
	}
	for _, c := range all {
		ts.Check(c.Wait())
	}
}

// capture puts what a pattern's group found in the last standard output into a
// variable: capture CODE '"user_code": "([^"]+)"'.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: capture VARIABLE PATTERN")
	}
	found := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) != 2 {
		ts.Fatalf("%s is not in the output", args[1])
	}
	ts.Setenv(args[0], found[1])
}

// replaceInFile changes the first of a text in a file: mangle FILE OLD NEW.
func replaceInFile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 || neg {
		ts.Fatalf("usage: mangle FILE OLD NEW")
	}
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(text, args[1], args[2], 1)), 0o600))
}

// retain publishes a retained message over MQTT as an enrolled device: retain FOLDER TOPIC PAYLOAD.
func retain(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 || neg {
		ts.Fatalf("usage: retain FOLDER TOPIC PAYLOAD")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	d, err := device.OpenShared(ts.MkAbs(args[0]), device.Options{})
	ts.Check(err)
	w, err := connectMQTT(ctx, d)
	ts.Check(err)
	_, err = w.client.Publish(ctx, &paho.Publish{Topic: args[1], QoS: 1, Retain: true, Payload: []byte(args[2])})
	ts.Check(err)
	ts.Check(w.client.Disconnect(&paho.Disconnect{}))
}

func TestEveryCodeHasAnExitStatus(t *testing.T) {
	for _, c := range watchword.Codes {
		if s, ok := exitStatusByCode[c]; !ok || s < 1 || s > 8 {
			t.Errorf("code %s has exit status %d", c, s)
		}
	}
	if len(exitStatusByCode) != len(watchword.Codes) {
		t.Errorf("%d statuses for %d codes", len(exitStatusByCode), len(watchword.Codes))
	}
}

func TestDemoOnce(t *testing.T) {
	bin, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "watchword") // testscript's main looks at the name
	if err := os.Symlink(bin, link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	c := exec.CommandContext(ctx, link, "demo", "--once", "--json", "--devices", "5")
	c.Stdout, c.Stderr = &out, &errs
	c.Env = append(os.Environ(), "TMPDIR="+dir)
	if err := c.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), errs.String())
	}
	var got struct {
		OK    bool
		Steps []struct {
			Name string
			OK   bool
			MS   float64
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := strings.Fields("serve enroll token connect publish publish_denied call_denied command receipt forged_command_refused replayed_command_refused refresh revoke cut audit")
	if !got.OK || len(got.Steps) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i, s := range got.Steps {
		if s.Name != want[i] || !s.OK || s.MS <= 0 {
			t.Errorf("step %d is %+v, want %s", i, s, want[i])
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "watchword-demo-*")); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v, %v", left, err)
	}
}

// docs/getting-started.md, typed line by line in an empty folder.
func TestGettingStarted(t *testing.T) {
	for _, p := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
				t.Fatalf("%s is missing", p)
			}
			t.Skipf("%s is not installed; make test installs it", p)
		}
	}
	text, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(dir, "bin", "watchword")); err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	port := testport.Reserve(t) // 8443 may be taken
	script := "set -eo pipefail\ntrap 'p=$(jobs -p); kill $p 2>/dev/null; wait $p' EXIT\nexport WATCHWORD_METRICS_LISTEN=127.0.0.1:0 WATCHWORD_PAIRING_INTERVAL=1ms WATCHWORD_SERVER_MQTTS=localhost:0 WATCHWORD_SERVER_HTTPS=localhost:" + port + "\n" +
		strings.ReplaceAll(typed(string(text)), "localhost:8443", "localhost:"+port)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-c", script)
	c.Dir = work
	c.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "HOME="+work)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	for _, want := range []string{`"api:/v1/self/#"`, `"denied"`, "lamp-9 is active", "receipt verified", `result {"set":40}`, "DENIED", "args.level 99 > maximum 80", "exit status 5", `"interval":30`, "is revoked", "verified  ", "receipt signed by key", "token_revoked\"|subject_revoked\""} {
		found := false
		for w := range strings.SplitSeq(want, "|") {
			found = found || bytes.Contains(out, []byte(w))
		}
		if !found {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// typed is what a reader types: the lines after "$ ", and what belongs to them.
// After a line that ends in & it waits, as a reader does, until the program says that it is up.
func typed(doc string) string {
	var out strings.Builder
	inside, n := false, 0
	for line := range strings.SplitSeq(doc, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside && strings.HasSuffix(line, " &"):
			n++
			log := fmt.Sprintf("../log-%d", n)
			fmt.Fprintf(&out, ": > %s\n%s > %s 2>&1 &\n", log, strings.TrimSuffix(strings.TrimPrefix(line, "$ "), " &"), log)
			fmt.Fprintf(&out, "timeout 30 grep -m1 -q -E '^next|runs with server|^waiting|^event: session' <(timeout 30 tail -n +1 -f %s 2>/dev/null)\n", log)
		case inside:
			fmt.Fprintln(&out, strings.TrimPrefix(line, "$ "))
		}
	}
	return out.String()
}

// Each block of README.md that is marked sh works when it is pasted, in order, in an empty folder. git and go are replaced
// by scripts, which refuse all arguments except those that lead to this source and this program.
func TestREADME(t *testing.T) {
	for _, p := range []string{"bash", "mosquitto_pub"} {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
				t.Fatalf("%s is missing", p)
			}
			t.Skipf("%s is not installed; make test installs it", p)
		}
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	stand := filepath.Join(dir, "stand-ins")
	for _, d := range []string{stand, filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(self, filepath.Join(dir, "watchword")); err != nil { // testscript's main looks at the name
		t.Fatal(err)
	}
	if _, err := os.Stat("../../cmd/watchword/main.go"); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"git": `test "$*" = "clone https://github.com/watchword-iot/watchword" && mkdir watchword`,
		"go": `test "$(basename "$PWD")" = watchword || exit 1
case "$1 $2 $3" in
"run ./cmd/watchword demo") shift 2; exec ` + filepath.Join(dir, "watchword") + ` "$@" ;;
"build -o bin/") test "$4" = ./cmd/watchword && mkdir -p bin && ln -s ` + filepath.Join(dir, "watchword") + ` bin/watchword ;;
*) exit 1 ;;
esac`,
	} {
		if err := os.WriteFile(filepath.Join(stand, name), []byte("#!/bin/bash\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ports := [2]string{testport.Reserve(t), testport.Reserve(t)}
	var pasted strings.Builder
	inside := false
	for line := range strings.SplitSeq(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```sh"
		case inside:
			pasted.WriteString(strings.ReplaceAll(line, "-p 8883", "-p "+ports[1]) + "\n")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-c", "set -eo pipefail\ntrap 'p=$(jobs -p); kill $p 2>/dev/null; wait $p' EXIT\n"+pasted.String())
	c.Dir = filepath.Join(dir, "work")
	c.Env = append(os.Environ(), "PATH="+stand+":"+os.Getenv("PATH"), "HOME="+c.Dir, "WATCHWORD_METRICS_LISTEN=127.0.0.1:0",
		"WATCHWORD_SERVER_HTTPS=localhost:"+ports[0], "WATCHWORD_SERVER_MQTTS=localhost:"+ports[1])
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, pasted.String(), out)
	}
	for _, want := range []string{"ok    audit", "for lamp-7, number 1", "receipt verified", `result {"level":40}`} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// unpack writes the files of an archive of server/testdata/upgrade to a folder, with their modes: unpack 2026-11-28c old.
func unpack(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: unpack ARCHIVE DIR")
	}
	archive, err := filepath.Abs(filepath.Join("..", "..", "server", "testdata", "upgrade", args[0]+".tar.gz"))
	ts.Check(err)
	f, err := os.Open(archive)
	ts.Check(err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ts.Check(err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		ts.Check(err)
		path := filepath.Join(ts.MkAbs(args[1]), filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			ts.Check(os.MkdirAll(path, h.FileInfo().Mode().Perm()))
			continue
		}
		b, err := io.ReadAll(r)
		ts.Check(err)
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o700))
		ts.Check(os.WriteFile(path, b, h.FileInfo().Mode().Perm()))
	}
}

// upgraded does to the database of a folder what the start of a later build does, by its number of a schema: upgraded data 9999.
func upgraded(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: upgraded DIR SCHEMA")
	}
	path := filepath.Join(ts.MkAbs(args[0]), "watchword.db")
	db, err := sql.Open("sqlite", "file:"+path)
	ts.Check(err)
	_, err = db.Exec(`VACUUM INTO ?`, path+".before-"+args[1])
	ts.Check(err)
	ts.Check(os.Chmod(path+".before-"+args[1], 0o600))
	_, err = db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (?, 1)`, args[1])
	ts.Check(err)
	ts.Check(db.Close())
}
