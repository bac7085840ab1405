package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testport"
)

// docs/backends.md, typed line by line beside a server and a lamp, with curl, npm's mqtt and Python's paho-mqtt. What the page
// installs is installed already (tools/install-outside.sh): npm and pip are replaced by programs that refuse all other arguments.
func TestBackEnds(t *testing.T) {
	python, err := filepath.Abs("../../bin/outside/python/bin/python3")
	if err != nil {
		t.Fatal(err)
	}
	modules, err := filepath.Abs("../../server/attack/npm/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"bash", "curl", "jq", "node", python, filepath.Join(modules, "mqtt")} {
		_, err := exec.LookPath(p)
		if filepath.IsAbs(p) {
			_, err = os.Stat(p)
		}
		if err != nil {
			if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
				t.Fatalf("%s is missing", p)
			}
			t.Skipf("%s is not installed; make test installs it", p)
		}
	}
	text, err := os.ReadFile("../../docs/backends.md")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin, work := filepath.Join(dir, "bin"), filepath.Join(dir, "work")
	for _, d := range []string{bin, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(self, filepath.Join(bin, "watchword")); err != nil { // testscript's main looks at the name
		t.Fatal(err)
	}
	write(filepath.Join(bin, "python3"), "#!/bin/bash\nexec "+python+" \"$@\"\n", 0o700) // a link would not find its packages
	write(filepath.Join(bin, "npm"), "#!/bin/bash\ntest \"$*\" = 'install mqtt' && ln -s "+modules+" node_modules\n", 0o700)
	write(filepath.Join(bin, "pip"), "#!/bin/bash\ntest \"$*\" = 'install paho-mqtt pyjwt[crypto]'\n", 0o700)
	files := regexp.MustCompile("(?ms)`([a-z]+\\.(?:toml|mjs|py))`[^`]*?^```(?:toml|js|python)\n(.*?)^```$").FindAllStringSubmatch(namesBeforeBlocks(string(text)), -1)
	if len(files) != 3 {
		t.Fatalf("%d files are on the page, want a policy and two programs", len(files))
	}
	for _, f := range files {
		write(filepath.Join(work, f[1]), f[2], 0o600)
	}
	write(filepath.Join(work, "functions.toml"), "[functions.\"lamp.set\"]\nrun = [\"cat\"]\n", 0o600)
	// Each program has seen both events in the end, since each lamp's report follows the line that says that it listens.
	script := "set -eo pipefail\ntrap 'p=$(jobs -p); kill $p 2>/dev/null; wait $p || true; cat ../log-*' EXIT\n" +
		typed("```console\n$ watchword serve &\n$ watchword device create lamp-7 -l kind=lamp | watchword agent enroll - --dir lamp-7\n$ watchword agent run --dir lamp-7 --functions functions.toml &\n```\n"+string(text)) +
		"for log in ../log-*; do\n  case $(cat $log) in\n  *'waiting for events'*) timeout 30 grep -m1 -q '^command done {\"level\": *100}' <(timeout 30 tail -n +1 -f $log 2>/dev/null) || exit 1 ;;\n  esac\ndone\n"
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-c", script)
	c.Dir = work
	c.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+work, "WATCHWORD_DATA="+filepath.Join(work, "data"), "WATCHWORD_METRICS_LISTEN=127.0.0.1:0",
		"NODE_OPTIONS=--dns-result-order=ipv4first", "WATCHWORD_SERVER_HTTPS=localhost:"+testport.Reserve(t), "WATCHWORD_SERVER_MQTTS=localhost:"+testport.Reserve(t))
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	for _, want := range []string{`"state": "done"`, "billing is in force", "event lamp-7 lux 12", "event lamp-7 lux 8", `command done {"level":100}`, `command done {"level": 100}`, `"stream":"lux"`} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// namesBeforeBlocks leaves of a page the names of files that a paragraph begins with, and the blocks behind them.
func namesBeforeBlocks(page string) string {
	var out strings.Builder
	inside := false
	for line := range strings.SplitSeq(page, "\n") {
		fence := strings.HasPrefix(line, "```")
		name := regexp.MustCompile("^`[a-z]+\\.(toml|mjs|py)`").FindString(line)
		switch {
		case fence:
			inside = !inside
			out.WriteString(line + "\n")
		case inside:
			out.WriteString(line + "\n")
		case name != "":
			out.WriteString(name + "\n")
		}
	}
	return out.String()
}
