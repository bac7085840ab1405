package attack_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// The tests here run the real binary, as processes that can be killed.

var buildBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "watchword-attack-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "watchword")
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/watchword").CombinedOutput()
	if err != nil {
		return "", &buildError{err, string(out)}
	}
	return path, nil
})

type buildError struct {
	err error
	out string
}

func (b *buildError) Error() string { return b.err.Error() + "\n" + b.out }

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := buildBinary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a temporary folder
	}
	os.Exit(code)
}

// serverProcess is a running watchword.
type serverProcess struct {
	*exec.Cmd
	t     testing.TB
	lines chan string // lines of standard error
	mu    sync.Mutex
	all   bytes.Buffer
}

func start(t testing.TB, data string, args ...string) *serverProcess {
	t.Helper()
	bin, err := buildBinary()
	must(t, err)
	p := &serverProcess{Cmd: exec.Command(bin, args...), t: t, lines: make(chan string, 1000)}
	p.Env = append([]string{"WATCHWORD_SERVER_HTTPS=localhost:0", "WATCHWORD_SERVER_MQTTS=localhost:0", "WATCHWORD_METRICS_LISTEN=127.0.0.1:0"}, append(os.Environ(), "WATCHWORD_DATA="+data)...)
	r, err := p.StderrPipe()
	must(t, err)
	must(t, p.Start())
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			p.mu.Lock()
			p.all.WriteString(s.Text() + "\n")
			p.mu.Unlock()
			select {
			case p.lines <- s.Text():
			default:
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill() // dead already, or to be
		_ = p.Wait()
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Log(p.all.String())
		}
	})
	return p
}

// until waits for a line with that text.
func (p *serverProcess) until(text string) {
	p.t.Helper()
	for limit := time.After(30 * time.Second); ; {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("it ended before it said %q", text)
			}
			if strings.Contains(line, text) {
				return
			}
		case <-limit:
			p.t.Fatalf("it did not say %q", text)
		}
	}
}

// kill9 kills it as a power cut does, and waits until it is gone.
func (p *serverProcess) kill9() {
	p.t.Helper()
	must(p.t, p.Process.Signal(syscall.SIGKILL))
	_ = p.Wait() // killed
}

// command runs a watchword to its end.
func command(t testing.TB, data, stdin string, args ...string) (stdout string, status int) {
	t.Helper()
	bin, err := buildBinary()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, bin, args...)
	c.Env = append(os.Environ(), "WATCHWORD_DATA="+data)
	c.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	if c.ProcessState == nil {
		t.Fatal(err)
	}
	if c.ProcessState.ExitCode() != 0 {
		t.Logf("%v: %s", args, errs.String())
	}
	return out.String(), c.ProcessState.ExitCode()
}

// port returns the port of the server that runs on a folder.
func port(t testing.TB, data string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "server.json"))
	must(t, err)
	var place struct{ HTTPS string }
	must(t, json.Unmarshal(b, &place))
	return place.HTTPS[strings.LastIndex(place.HTTPS, ":")+1:]
}

func TestAKilledServerLosesNoCommandAndTheDeviceActsOnce(t *testing.T) {
	dir := t.TempDir()
	data, lamp := filepath.Join(dir, "data"), filepath.Join(dir, "lamp-1")
	t.Setenv("WATCHWORD_SERVER_HTTPS", "localhost:"+testport.Reserve(t)) // one port for all starts
	s := start(t, data, "serve")
	s.until("next ")

	link, status := command(t, data, "", "device", "create", "lamp-1")
	if status != 0 {
		t.Fatal("device create")
	}
	if _, status := command(t, data, link, "agent", "enroll", "-", "--dir", lamp); status != 0 {
		t.Fatal("agent enroll")
	}
	acts := filepath.Join(dir, "acts")
	functions := filepath.Join(dir, "functions.toml")
	must(t, os.WriteFile(functions, []byte("[functions.\"lamp.set\"]\nrun = [\"/bin/sh\", \"-c\", \"cat >> "+acts+"; echo >> "+acts+"\"]\n"), 0o600))
	for round := range 3 {
		out, status := command(t, data, "", "command", "send", "lamp-1", "lamp.set", "round:="+string('0'+rune(round)))
		s.kill9() // right after the answer
		if status != 0 {
			t.Fatal("command send")
		}
		id := strings.TrimSpace(out)
		s = start(t, data, "serve")
		s.until("next ")
		agent := start(t, data, "agent", "run", "--dir", lamp, "--functions", functions)
		cl, err := admin.Local(data)
		must(t, err)
		c, err := cl.Commands(t.Context(), admin.Filter{Device: "lamp-1"}, 10)
		must(t, err)
		if len(c) != round+1 || string(c[0].ID) != id || c[0].Seq != int64(round+1) {
			t.Fatalf("after the kill there are %+v", c)
		}
		done, err := cl.Command(t.Context(), c[0].ID, 30*time.Second)
		must(t, err)
		if done.State != "done" {
			t.Fatalf("the command is %s", done.State)
		}
		agent.kill9()
	}
	// Whatever is handed over again now, nothing acts again.
	agent := start(t, data, "agent", "run", "--dir", lamp, "--functions", functions)
	agent.until("runs with server")
	b, err := os.ReadFile(acts)
	must(t, err)
	if got, want := string(b), "{\"round\":0}\n{\"round\":1}\n{\"round\":2}\n"; got != want {
		t.Errorf("acts:\n%swant:\n%s", got, want)
	}
	must(t, s.Process.Signal(syscall.SIGTERM))
	if err := s.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}

// A device is killed at a moment of chance while commands rain on it: each
// command acts once or is signed as interrupted, and none acts twice.
func TestADeviceKilledAnywhereNeverActsTwice(t *testing.T) {
	dir := t.TempDir()
	data, lamp := filepath.Join(dir, "data"), filepath.Join(dir, "lamp-1")
	s := start(t, data, "serve")
	s.until("next ")
	link, _ := command(t, data, "", "device", "create", "lamp-1")
	if _, status := command(t, data, link, "agent", "enroll", "-", "--dir", lamp); status != 0 {
		t.Fatal("agent enroll")
	}
	acts := filepath.Join(dir, "acts")
	functions := filepath.Join(dir, "functions.toml")
	must(t, os.WriteFile(functions, []byte("[functions.\"act\"]\nrun = [\"/bin/sh\", \"-c\", \"echo $WATCHWORD_COMMAND >> "+acts+"; sleep 0.03\"]\n"), 0o600))
	cl, err := admin.Local(data)
	must(t, err)
	agent := start(t, data, "agent", "run", "--dir", lamp, "--functions", functions)
	var sent []api.Command
	for i := range 60 {
		c, err := cl.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "act"})
		must(t, err)
		sent = append(sent, c)
		if i%12 == 11 {
			agent.kill9()
			agent = start(t, data, "agent", "run", "--dir", lamp, "--functions", functions)
		}
	}
	ends := map[string]int{}
	for _, c := range sent {
		c, err := cl.Command(t.Context(), c.ID, 50*time.Second)
		must(t, err)
		ends[string(c.State)]++
	}
	b, err := os.ReadFile(acts)
	must(t, err)
	times := map[string]int{}
	for _, id := range strings.Fields(string(b)) {
		times[id]++
		if times[id] > 1 {
			t.Errorf("%s acted %d times", id, times[id])
		}
	}
	if ends["done"]+ends["interrupted"] != len(sent) || len(times) < ends["done"] {
		t.Errorf("%d commands ended as %v, %d acts", len(sent), ends, len(times))
	}
	t.Logf("%v, %d acts", ends, len(times))
}

// The agent is stopped while a program runs: the program and all its processes end, and the next start sends the receipt
// with that status.
func TestAgentStoppedMidFunctionSignsInterrupted(t *testing.T) {
	dir := t.TempDir()
	data, lamp := filepath.Join(dir, "data"), filepath.Join(dir, "lamp-1")
	s := start(t, data, "serve")
	s.until("next ")
	link, _ := command(t, data, "", "device", "create", "lamp-1")
	if _, status := command(t, data, link, "agent", "enroll", "-", "--dir", lamp); status != 0 {
		t.Fatal("agent enroll")
	}
	begun, functions := filepath.Join(dir, "begun"), filepath.Join(dir, "functions.toml")
	must(t, os.WriteFile(functions, []byte("[functions.\"act\"]\ngrace = \"200ms\"\nenv = {BEGUN = \""+begun+"\"}\n"+
		"run = [\"/bin/sh\", \"-c\", \"trap '' TERM; (setsid sleep 1000 & echo $! >$BEGUN.1; mv $BEGUN.1 $BEGUN); while :; do sleep 0.1; done\"]\n"), 0o600))
	cl, err := admin.Local(data)
	must(t, err)
	agent := start(t, data, "agent", "run", "--dir", lamp, "--functions", functions)
	c, err := cl.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "act"})
	must(t, err)
	var pid string
	for wait := testwait.Within(); pid == ""; {
		wait.Check(t, "the program's start")
		b, _ := os.ReadFile(begun) // not there yet
		pid = strings.TrimSpace(string(b))
	}
	must(t, agent.Process.Signal(syscall.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	if err := testwait.For(t, "the agent's end", ended); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("what the program started runs on: %s", stat)
	}
	c, err = cl.Command(t.Context(), c.ID, 0) // it was handed in before the end
	must(t, err)
	if c.State != "interrupted" || c.Receipt == nil || !strings.Contains(string(c.Receipt.Result), `"code":"interrupted"`) {
		t.Errorf("%s %+v", c.State, c.Receipt)
	}
}

// Lines that cannot be published end neither the agent nor the lines behind them, and
// commands go on; each event is what was read.
func TestAgentContinuesAfterBadLine(t *testing.T) {
	dir := t.TempDir()
	data, lamp := filepath.Join(dir, "data"), filepath.Join(dir, "lamp-1")
	s := start(t, data, "serve")
	s.until("next ")
	link, _ := command(t, data, "", "device", "create", "lamp-1")
	if _, status := command(t, data, link, "agent", "enroll", "-", "--dir", lamp); status != 0 {
		t.Fatal("agent enroll")
	}
	functions := filepath.Join(dir, "functions.toml")
	must(t, os.WriteFile(functions, []byte("[functions.\"act\"]\nrun = [\"cat\"]\n"), 0o600))
	cl, err := admin.Local(data)
	must(t, err)
	events, opened := make(chan api.Event, 10), make(chan struct{})
	go func() {
		_ = cl.Watch(t.Context(), "lamp-1", "", sync.OnceFunc(func() { close(opened) }), func(e api.Event) error {
			events <- e
			return nil
		}) // until the test ends
	}()
	testwait.For(t, "the stream of events", opened)
	bin, err := buildBinary()
	must(t, err)
	agent := exec.Command(bin, "agent", "run", "--dir", lamp, "--functions", functions, "--stdin", "log")
	var said bytes.Buffer
	agent.Stderr = &said
	in, err := agent.StdinPipe()
	must(t, err)
	must(t, agent.Start())
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	t.Cleanup(func() { _ = agent.Process.Kill() }) // it has ended, or the test failed
	next := func(want string) {
		t.Helper()
		e := testwait.For(t, "the event "+want, events)
		raw, err := base64.StdEncoding.DecodeString(e.DataBase64)
		must(t, err)
		if got := string(e.Data) + string(raw); got != want || e.Stream != "log" {
			t.Errorf("got %q in %s, want %q", got, e.Stream, want)
		}
	}
	_, err = io.WriteString(in, "1\n"+strings.Repeat("x", 33_000)+"\n a\xffb\r\n"+strings.Repeat("\x01", 30_000)+"\n5\n")
	must(t, err)
	next("1")
	next(" a\xffb")
	next("5")
	c, err := cl.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "act", Args: json.RawMessage(`{"a":1}`)})
	must(t, err)
	if c, err = cl.Command(t.Context(), c.ID, 50*time.Second); err != nil || c.State != "done" {
		t.Errorf("%s %v", c.State, err)
	}
	_, err = io.WriteString(in, "last")
	must(t, errors.Join(err, in.Close()))
	next("\"last\"")
	if err := testwait.For(t, "the agent's end", ended); err != nil {
		t.Errorf("at the end of its input: %v", err)
	}
	for _, want := range []string{`msg="line passed over" line=2 bytes=33000 code=too_large`, `msg="line passed over" line=4 bytes=30000 code=too_large`} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it did not say %s:\n%s", want, said.String())
		}
	}
}

func TestServeRefusesUnsafeConfiguration(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	s := start(t, data, "serve")
	s.until("next ")
	for _, tc := range []struct {
		name   string
		change func(t *testing.T) (env []string, args []string)
		status int
		says   string
	}{
		{"a folder in use", func(*testing.T) ([]string, []string) { return nil, nil }, 4, "in use"},
		{"a key that others can read", func(t *testing.T) ([]string, []string) {
			other := filepath.Join(t.TempDir(), "d")
			must(t, os.MkdirAll(filepath.Join(other, "keys"), 0o700))
			must(t, os.WriteFile(filepath.Join(other, "keys", "kek"), []byte("x"), 0o644))
			return []string{"WATCHWORD_DATA=" + other}, nil
		}, 1, "can be read"},
		{"a folder in which others can write", func(t *testing.T) ([]string, []string) {
			other := filepath.Join(t.TempDir(), "d")
			must(t, os.Mkdir(other, 0o777))
			must(t, os.Chmod(other, 0o777))
			return []string{"WATCHWORD_DATA=" + other}, nil
		}, 1, "chmod go-w"},
		{"an address beyond loopback without names", func(*testing.T) ([]string, []string) {
			return []string{"WATCHWORD_SERVER_HTTPS=0.0.0.0:0"}, nil
		}, 2, "server.names"},
		{"plain MQTT beyond loopback", func(*testing.T) ([]string, []string) {
			return []string{"WATCHWORD_SERVER_MQTT=0.0.0.0:1883"}, nil
		}, 2, "loopback"},
		{"an unknown key, with its line", func(t *testing.T) ([]string, []string) {
			f := filepath.Join(t.TempDir(), "w.toml")
			must(t, os.WriteFile(f, []byte("[server]\nhttps = \"localhost:0\"\nnamse = [\"x\"]\n"), 0o600))
			return nil, []string{"--config", f}
		}, 2, "w.toml:3:1: unknown key server.namse; did you mean server.names?"},
		{"a wrong type, with its line", func(t *testing.T) ([]string, []string) {
			f := filepath.Join(t.TempDir(), "w.toml")
			must(t, os.WriteFile(f, []byte("[token]\nlifetime = 7\n"), 0o600))
			return nil, []string{"--config", f}
		}, 2, "w.toml:2:"},
		{"an invalid variable", func(*testing.T) ([]string, []string) {
			return []string{"WATCHWORD_LIMITS_CONNECTIONS=many"}, nil
		}, 2, "WATCHWORD_LIMITS_CONNECTIONS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env, args := tc.change(t)
			bin, err := buildBinary()
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), testwait.Limit) // a server that starts all the same is ended
			defer cancel()
			c := exec.CommandContext(ctx, bin, append([]string{"serve"}, args...)...)
			c.Env = append(append(os.Environ(), "WATCHWORD_DATA="+data, "WATCHWORD_SERVER_HTTPS=localhost:0", "WATCHWORD_SERVER_MQTTS=localhost:0", "WATCHWORD_METRICS_LISTEN=127.0.0.1:0"), env...)
			var errs bytes.Buffer
			c.Stdout, c.Stderr = io.Discard, &errs
			_ = c.Run() // its status is what counts
			if got := c.ProcessState.ExitCode(); got != tc.status || !strings.Contains(errs.String(), tc.says) {
				t.Errorf("status %d, want %d; it said %q, want %q", got, tc.status, errs.String(), tc.says)
			}
		})
	}
}
