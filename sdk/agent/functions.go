// Package agent runs a device's functions as programs and publishes lines of text as events. It registers a handler for each
// function with package device.
package agent

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/sdk/device"
)

// Function is a function of the device that a program implements. The program reads the arguments from standard input, as
// one JSON object without a newline.
type Function struct {
	Name    string
	Run     []string          // the program, looked up in PATH if its name is bare, and its arguments
	Timeout time.Duration     // maximum time of the program; then all its processes are killed
	Grace   time.Duration     // time for which the program may go on after SIGTERM, when the agent ends; 0: none
	Env     map[string]string // additional environment variables
	Pass    []string          // names of variables of the agent that are passed on
	Schema  []byte            // JSON Schema of the arguments, or nil
}

// Defaults and limits of a function.
const (
	DefaultTimeout = 30 * time.Second
	DefaultGrace   = 5 * time.Second
)

const (
	maxTimeout = time.Hour
	maxGrace   = 15 * time.Second // device.Run waits 20 s for a handler
)

// Check looks up the program, and returns the function with the program's path instead of its name. The owner of the
// program must be trusted, since any user with write access determines what the device does. Codes: config_invalid, with
// the reason; file_untrusted.
func (f Function) Check() (Function, error) {
	wrong := func(format string, a ...any) error {
		return watchword.Refuse(watchword.ConfigInvalid, format, a...)
	}
	if !watchword.ValidName(f.Name) {
		return Function{}, wrong("a name must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
	}
	if len(f.Run) == 0 {
		return Function{}, wrong("run is required")
	}
	program, err := exec.LookPath(f.Run[0])
	if err != nil {
		return Function{}, wrong("run: %s", err)
	}
	if err := durable.CheckFile(program); err != nil {
		if watchword.CodeOf(err) == watchword.FileUntrusted {
			return Function{}, err
		}
		return Function{}, wrong("run: %s", err)
	}
	f.Run = append([]string{program}, f.Run[1:]...)
	if f.Timeout <= 0 || f.Timeout > maxTimeout {
		return Function{}, wrong(`timeout must be a duration such as "10s", at most 1h`)
	}
	if f.Grace < 0 || f.Grace > maxGrace {
		return Function{}, wrong(`grace must be a duration such as "5s", at most 15s`)
	}
	for name, value := range f.Env {
		if !validVariable(name) || strings.ContainsRune(value, 0) {
			return Function{}, wrong("env: %q cannot be set: a name must not contain = or NUL, or begin with %s", name, reservedPrefix)
		}
	}
	for _, name := range f.Pass {
		if !validVariable(name) {
			return Function{}, wrong("pass: %q cannot be passed on: a name must not contain = or begin with %s", name, reservedPrefix)
		}
	}
	return f, nil
}

// Options are the options of [Register]. The zero value is ready to use.
type Options struct {
	// Dedicated states that this process starts no other processes than the programs of one device. On Linux the process
	// then becomes the parent of its descendants' orphans, treats each child as the program's while one runs, and kills
	// them with the program.
	Dedicated bool
	// Log logs processes that could not be killed; nil is [slog.Default].
	Log *slog.Logger
}

type runner struct {
	opts     Options
	noCgroup bool // behave as if no control group can be created
}

// Programs are the programs that [Register] registered with a device.
type Programs struct {
	device *device.Device
	runner *runner
}

// Register registers the programs of fs, which must have passed [Function.Check], as the device's functions. If programs
// have control groups (Linux), it kills programs that an earlier agent left when it was killed.
func Register(d *device.Device, fs []Function, o Options) *Programs {
	p := &Programs{d, newRunner(o)}
	sweepCgroups()
	for _, f := range fs {
		d.HandleFunction(device.Function{Name: f.Name, Schema: f.Schema}, p.handler(f))
	}
	return p
}

// Replace replaces all functions of the device by fs, which must have passed [Function.Check]. A program that runs goes on.
func (p *Programs) Replace(fs []Function) {
	byName := map[string]Function{}
	var list []device.Function
	for _, f := range fs {
		byName[f.Name] = f
		list = append(list, device.Function{Name: f.Name, Schema: f.Schema})
	}
	p.device.ReplaceFunctions(list, func(f device.Function) device.Handler { return p.handler(byName[f.Name]) })
}

func (p *Programs) handler(f Function) device.Handler {
	return func(ctx context.Context, c *device.Command) (any, error) { return p.runner.execute(ctx, f, c) }
}

func newRunner(o Options) *runner {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &runner{opts: o}
}
