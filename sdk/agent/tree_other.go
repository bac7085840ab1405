//go:build !unix

package agent

import (
	"errors"
	"os"
	"os/exec"
)

// tree is one program alone: what it starts is not found.
type tree struct{ process *os.Process }

func newTree(runner, string) *tree { return &tree{} }

func (t *tree) attach(*exec.Cmd) {}

func (t *tree) started(pid int) {
	t.process, _ = os.FindProcess(pid) // nil where it has ended
}

func (t *tree) withoutCgroup() bool { return false }

// terminate does nothing: there is no SIGTERM here. The grace passes.
func (t *tree) terminate() {}

// kill ends the program.
func (t *tree) kill() error {
	if t.process == nil {
		return nil
	}
	if err := t.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, os.ErrPermission) {
		return err // ErrPermission: it has ended (Windows)
	}
	return nil
}

func sweepCgroups() {}

func (t *tree) close() {
	if t.process != nil {
		_ = t.process.Release() // a handle that is not used again
	}
}

func endedBySIGTERM(error) bool { return false }
