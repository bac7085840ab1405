package devices

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword/server/attack/hostile"
)

// Agent is `watchword agent run` in a process of its own.
type Agent struct {
	bin, dir string
	cmd      *exec.Cmd
	ended    chan error
	said     buffer
	memory   int64
}

// NewAgent returns an agent with that binary, whose files are all in dir.
func NewAgent(bin, dir string) *Agent { return &Agent{bin: bin, dir: dir} }

func (a *Agent) path(name string) string { return filepath.Join(a.dir, name) }

// Enroll implements [hostile.Device].
func (a *Agent) Enroll(ctx context.Context, link string) error {
	c := exec.CommandContext(ctx, a.bin, "agent", "enroll", link, "--dir", a.path("device"))
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Start implements [hostile.Device].
func (a *Agent) Start() error {
	toml := fmt.Sprintf("[functions.%q]\nrun = [\"/bin/sh\", \"-c\", 'read -r args; echo \"$args\" >>\"%s\"; echo \"$args\"']\n", hostile.Function, a.path("acts"))
	if err := os.WriteFile(a.path("functions.toml"), []byte(toml), 0o600); err != nil {
		return err
	}
	a.cmd = exec.Command(a.bin, "agent", "run", "--dir", a.path("device"), "--functions", a.path("functions.toml"))
	a.cmd.Stderr, a.cmd.Stdout = &a.said, &a.said
	if err := a.cmd.Start(); err != nil {
		return err
	}
	a.ended = make(chan error, 1)
	go func() { a.ended <- a.cmd.Wait() }()
	return nil
}

// Stop implements [hostile.Device].
func (a *Agent) Stop() error {
	select {
	case err := <-a.ended:
		return errors.Join(errors.New("the agent had ended by itself"), err)
	default:
	}
	a.memory = max(a.memory, a.highest())
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	t := time.NewTimer(20 * time.Second)
	defer t.Stop()
	select {
	case err := <-a.ended:
		return err // nil: status 0
	case <-t.C:
		return errors.Join(errors.New("the agent does not end"), a.cmd.Process.Kill())
	}
}

// Acted implements [hostile.Device].
func (a *Agent) Acted() ([]int64, error) {
	b, err := os.ReadFile(a.path("acts"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int64
	for line := range strings.Lines(string(b)) {
		var in struct{ N int64 }
		if err := json.Unmarshal([]byte(line), &in); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		out = append(out, in.N)
	}
	return out, nil
}

// Output returns what the agent has printed.
func (a *Agent) Output() string { return a.said.String() }

// Memory returns the agent's peak memory until it was last stopped, in bytes (VmHWM of proc(5)); 0
// if unknown.
func (a *Agent) Memory() int64 { return a.memory }

func (a *Agent) highest() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns what was written.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
