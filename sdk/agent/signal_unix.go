//go:build unix

package agent

import (
	"errors"
	"os/exec"
	"syscall"
)

// endedBySIGTERM reports whether a program was ended by SIGTERM, or has the exit status that shells use for it.
func endedBySIGTERM(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && (status.Signaled() && status.Signal() == syscall.SIGTERM || status.Exited() && status.ExitStatus() == 128+int(syscall.SIGTERM))
}
