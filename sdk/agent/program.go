package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword/sdk/device"
)

// maxOutput is how much of a program's output goes into the receipt, in bytes.
const maxOutput = 16 << 10

// carryOut runs the program. Exit status 0 is done, with what it printed as the
// result: as it is, if it is JSON, else as {"output": text}. Any other status is
// a failure exit_N, with what it printed on standard error. Past the timeout the
// program and all that it started are killed.
func (f Function) carryOut(ctx context.Context, c *device.Command) (any, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.Timeout, errTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.Run[0], f.Run[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	cmd.Stdin = bytes.NewReader(c.Raw)
	cmd.Env = append(os.Environ(),
		"WATCHWORD_COMMAND="+string(c.ID), "WATCHWORD_FUNCTION="+c.Function, "WATCHWORD_BY="+string(c.By), fmt.Sprintf("WATCHWORD_SEQ=%d", c.Seq))
	out, errs := &capped{}, &capped{}
	cmd.Stdout, cmd.Stderr = out, errs
	err := cmd.Run()
	switch exit, exited := errors.AsType[*exec.ExitError](err); {
	case errors.Is(context.Cause(ctx), errTimeout):
		return nil, device.Fail("timeout", fmt.Errorf("the program ran longer than %s", f.Timeout))
	case exited && exit.Exited():
		said := strings.TrimSpace(errs.kept.String())
		if said == "" {
			said = strings.TrimSpace(out.kept.String())
		}
		return nil, device.Fail(fmt.Sprintf("exit_%d", exit.ExitCode()), errors.New(said))
	case err != nil:
		return nil, device.Fail("program", err)
	}
	return out.result(), nil
}

var errTimeout = errors.New("timeout")

// capped keeps the beginning of what is written and counts the rest.
type capped struct {
	kept bytes.Buffer // a field: embedded, its ReadFrom would take everything
	over int
}

// Write never fails: a program that talks too much must not be killed by SIGPIPE for it.
func (c *capped) Write(b []byte) (int, error) {
	keep := min(len(b), maxOutput-c.kept.Len())
	c.kept.Write(b[:keep])
	c.over += len(b) - keep
	return len(b), nil
}

func (c *capped) result() any {
	b := bytes.TrimSpace(c.kept.Bytes())
	switch {
	case len(b) == 0:
		return nil
	case c.over == 0 && json.Valid(b):
		return json.RawMessage(b)
	case c.over > 0:
		return map[string]any{"output": string(b), "left_out": c.over}
	default:
		return map[string]any{"output": string(b)}
	}
}
