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
	// drainTimeout is how long after a program's end its output is still read: it may be
	// held open by a process that could not be killed.
	drainTimeout = 2 * time.Second
	// killTimeout is how long processes that were sent SIGKILL are awaited. One that waits for
	// a device in the kernel does not end before that does.
	killTimeout = 10 * time.Second
	// managerTimeout is how long an end by SIGTERM waits for the end of the agent itself: a
	// service manager sends SIGTERM to both, in no order.
	managerTimeout = time.Second
)

// execute runs the program. Exit status 0 is done, with what it printed as the
// result (see output.result). Any other status is a failure exit_N, with what it printed
// on standard error.
//
// When the program has ended, what it started and left running is killed. Past the
// timeout all of it is killed at once: a failure with code timeout. When ctx ends, the
// program gets SIGTERM, and all of it is killed after the grace. The error is then none of
// [device.Fail], so the command is interrupted ([device.Handler]), unless the program has
// ended with status 0.
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

// program is one that runs.
type program struct {
	tree           *tree
	exited         chan error // what [exec.Cmd.Wait] returned
	stdin          *os.File   // our ends
	readers        [2]*os.File
	copied         chan struct{} // twice, once for each reader
	stdout, stderr outputBuffer
}

// start starts the program in a tree of its own. It copies by itself, since [exec.Cmd]
// would await the end of its output before it says that the program has ended.
func (r *runner) start(f Function, c *device.Command) (*program, error) {
	p := &program{exited: make(chan error, 1), copied: make(chan struct{}, 2)}
	var theirs []*os.File
	var err error
	defer func() {
		for _, file := range theirs {
			_ = file.Close() // the program has its own, or there is none
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
			_, _ = io.Copy(to, p.readers[i]) // what was read until an error counts
			p.copied <- struct{}{}
		}()
	}
	return p, nil
}

// exitCause is how a program came to its end.
type exitCause int

const (
	exitedItself exitCause = iota
	exitedTimeout
	exitedStopped // the agent's end came first
)

var errUnkillable = errors.New("the program does not end after SIGKILL")

// wait waits for the program's end and brings it about where it must. The error is that
// of [exec.Cmd.Wait].
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

// killed kills all of the program and returns how it ended.
func (p *program) killed() error {
	_ = p.tree.kill() // the caller kills again what is left, and says so
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
			_ = r.Close() // ends the copying; what holds the other end gets SIGPIPE
		}
	})
	defer late.Stop()
	_ = p.stdin.Close() // it may be closed already
	for range p.readers {
		<-p.copied
	}
	for _, r := range p.readers {
		_ = r.Close() // nothing is lost: all was read
	}
}
