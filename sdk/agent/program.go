package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/sdk/device"
)

const (
	// drainTimeout is how long output is read after the end of a program: a process that could not be killed may hold the
	// pipe open.
	drainTimeout = 2 * time.Second
	// killTimeout is how long to wait for the end of processes that were sent SIGKILL. A process that waits for a device in
	// the kernel ends only after that.
	killTimeout = 10 * time.Second
	// managerTimeout is how long to wait for the end of the agent after a program ended by SIGTERM: a service manager sends
	// SIGTERM to both, in any order.
	managerTimeout = time.Second
)

// execute runs the program. Exit status 0 is done, with the output as the result (see output.result). Any other status is a
// failure exit_N, with the standard error output.
//
// When the program has ended, the processes that it left running are killed. After the timeout all its processes are killed
// at once: a failure with code timeout. When ctx ends, the program gets SIGTERM, and all its processes are killed after the
// grace period. The error is then not one of [device.Fail], so the command is interrupted ([device.Handler]), unless the
// program has ended with status 0.
func (r *runner) execute(ctx context.Context, f Function, c *device.Command) (any, error) {
	if ctx.Err() != nil {
		return nil, errors.New("the program was not started")
	}
	p, err := r.start(f, c)
	if err != nil {
		return nil, device.Fail("program", err)
	}
	defer p.tree.close()
	end, err := p.wait(ctx, f)
	kerr := p.tree.kill()
	p.drain()
	if kerr != nil {
		r.opts.Log.Warn("a program left processes that could not be killed", "function", f.Name, "command", string(c.ID), "err", kerr)
	}
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case end == exitedTimeout:
		return nil, device.Fail("timeout", fmt.Errorf("the program ran longer than %s", f.Timeout))
	case end == exitedStopped && err != nil:
		return nil, fmt.Errorf("the program ended by %w", err)
	case exited && exit.Exited():
		message := strings.TrimSpace(p.stderr.text())
		if message == "" {
			message = strings.TrimSpace(p.stdout.text())
		}
		return nil, device.Fail(fmt.Sprintf("exit_%d", exit.ExitCode()), errors.New(message))
	case err != nil:
		return nil, device.Fail("program", err)
	}
	return p.stdout.result(), nil
}

// program is a running program.
type program struct {
	tree           *tree
	exited         chan error // what [exec.Cmd.Wait] returned
	stdin          *os.File   // the agent's ends of the pipes
	readers        [2]*os.File
	copied         chan struct{} // twice, once for each reader
	stdout, stderr outputBuffer
}

// start starts the program in a process tree of its own. It copies the output itself, since [exec.Cmd] would wait for the
// end of the output before it reports the end of the program.
func (r *runner) start(f Function, c *device.Command) (*program, error) {
	p := &program{exited: make(chan error, 1), copied: make(chan struct{}, 2)}
	var theirs []*os.File
	var err error
	defer func() {
		for _, file := range theirs {
			_ = file.Close() // the program has its own descriptor, or was not started
		}
		if err != nil {
			for _, file := range []*os.File{p.stdin, p.readers[0], p.readers[1]} {
				if file != nil {
					_ = file.Close() // nothing was read or written
				}
			}
		}
	}()
	pipe := func() (read, write *os.File) {
		if err == nil {
			read, write, err = os.Pipe()
		}
		return read, write
	}
	stdin, ours := pipe()
	out, stdout := pipe()
	errs, stderr := pipe()
	for _, file := range []*os.File{stdin, stdout, stderr} {
		if file != nil {
			theirs = append(theirs, file)
		}
	}
	p.stdin, p.readers = ours, [2]*os.File{out, errs}
	if err != nil {
		return nil, err
	}
	mark := rand.Text()
	env := environment(f, c, mark)
	p.tree = newTree(*r, mark)
	for {
		cmd := exec.Command(f.Run[0], f.Run[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = stdin, stdout, stderr, env
		p.tree.attach(cmd)
		if err = cmd.Start(); err == nil {
			p.tree.started(cmd.Process.Pid)
			go func() { p.exited <- cmd.Wait() }()
			break
		}
		if !p.tree.withoutCgroup() {
			p.tree.close()
			return nil, err
		}
	}
	go func() {
		_, _ = p.stdin.Write(c.Raw) // a program need not read its arguments
		_ = p.stdin.Close()
	}()
	for i, to := range []*outputBuffer{&p.stdout, &p.stderr} {
		go func() {
			_, _ = io.Copy(to, p.readers[i]) // the output before an error is used
			p.copied <- struct{}{}
		}()
	}
	return p, nil
}

// exitCause is the reason for which a program ended.
type exitCause int

const (
	exitedItself exitCause = iota
	exitedTimeout
	exitedStopped // because the agent ends
)

var errUnkillable = errors.New("the program does not end after SIGKILL")

// wait waits for the end of the program, and ends it if necessary. The error is that of [exec.Cmd.Wait].
func (p *program) wait(ctx context.Context, f Function) (exitCause, error) {
	timeout := time.NewTimer(f.Timeout)
	defer timeout.Stop()
	select {
	case err := <-p.exited:
		if !endedBySIGTERM(err) {
			return exitedItself, err
		}
		select {
		case <-ctx.Done():
			return exitedStopped, err
		case <-time.After(managerTimeout):
			return exitedItself, err
		}
	case <-timeout.C:
		return exitedTimeout, p.killed()
	case <-ctx.Done():
	}
	p.tree.terminate()
	grace := time.NewTimer(f.Grace)
	defer grace.Stop()
	select {
	case err := <-p.exited:
		return exitedStopped, err
	case <-grace.C:
	case <-timeout.C:
	}
	return exitedStopped, p.killed()
}

// killed kills all processes of the program and returns how it ended.
func (p *program) killed() error {
	_ = p.tree.kill() // the caller kills the remaining ones again, and logs it
	select {
	case err := <-p.exited:
		return err
	case <-time.After(killTimeout):
		return errUnkillable
	}
}

// drain reads the rest of the output and closes the pipes. After it stdout and stderr
// do not change.
func (p *program) drain() {
	late := time.AfterFunc(drainTimeout, func() {
		for _, r := range p.readers {
			_ = r.Close() // ends the copying; a writer at the other end gets SIGPIPE
		}
	})
	defer late.Stop()
	_ = p.stdin.Close() // it may be closed already
	for range p.readers {
		<-p.copied
	}
	for _, r := range p.readers {
		_ = r.Close() // all was read
	}
}
