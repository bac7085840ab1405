//go:build unix && !linux

package agent

import (
	"errors"
	"os/exec"
	"syscall"
)

// tree is the process group of one program. A child that leaves the group (setsid)
// is not found.
type tree struct{ pid int }

func newTree(runner, string) *tree { return &tree{} }

func (t *tree) attach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func (t *tree) started(pid int) { t.pid = pid }

func (t *tree) withoutCgroup() bool { return false }

// terminate sends SIGTERM to the process group.
func (t *tree) terminate() { _ = syscall.Kill(-t.pid, syscall.SIGTERM) } // it may have ended

// kill sends SIGKILL to the process group.
func (t *tree) kill() error {
	if err := syscall.Kill(-t.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.EPERM) {
		return err // EPERM: of a group with nothing but zombies (macOS)
	}
	return nil
}

func sweepCgroups() {}

func (t *tree) close() {}
