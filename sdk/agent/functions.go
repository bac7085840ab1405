// Package agent runs a device's functions as programs and publishes lines of text as events. It reads a functions file (TOML) and
// registers a handler for each function with package device. It refuses functions without a program.
package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/sdk/device"
)

// Function is one function of a functions file. The arguments go to the program's
// standard input as one JSON object without a newline.
type Function struct {
	Name    string
	Run     []string          // the program, looked up in PATH if its name is bare, and its arguments
	Timeout time.Duration     // then all that the program started is killed
	Grace   time.Duration     // how long the program may go on after SIGTERM, when the agent ends; 0 is not at all
	Env     map[string]string // variables that it has besides those of the agent
	Pass    []string          // names of variables of the agent that it has too
	Schema  []byte            // JSON Schema of the arguments, or nil
}

// The bounds of a functions file.
const (
	maxFile        = 1 << 20
	maxTimeout     = time.Hour
	defaultTimeout = 30 * time.Second
	maxGrace       = 15 * time.Second // device.Run waits 20 s for a handler
	defaultGrace   = 5 * time.Second
)

type functionsFile struct {
	Functions map[string]struct {
		Run     []string          `toml:"run"`
		Timeout string            `toml:"timeout"`
		Grace   string            `toml:"grace"`
		Env     map[string]string `toml:"env"`
		Pass    []string          `toml:"pass"`
		Schema  string            `toml:"schema"`
	} `toml:"functions"`
}

// Load reads a functions file. Schemas are looked up beside it. Code:
// config_invalid, with the file and what is wrong where; file_untrusted, also for a schema or a program.
func Load(path string) ([]Function, error) {
	text, err := durable.ReadTrusted(path, maxFile)
	switch watchword.CodeOf(err) {
	case "":
	case watchword.FileUntrusted:
		return nil, err
	case watchword.TooLarge:
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s is over 1 MiB", path)
	default:
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s cannot be read", path)
	}
	var f functionsFile
	if err := decode(path, text, &f); err != nil {
		return nil, err
	}
	var out []Function
	for name, in := range f.Functions {
		fn := Function{Name: name, Run: in.Run, Timeout: defaultTimeout, Grace: defaultGrace, Env: in.Env, Pass: in.Pass}
		wrong := func(format string, a ...any) error {
			return watchword.Refuse(watchword.ConfigInvalid, "%s: functions.%q: %s", path, name, fmt.Sprintf(format, a...))
		}
		if !watchword.ValidName(name) {
			return nil, wrong("a name must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
		}
		if len(in.Run) == 0 {
			return nil, wrong("run is missing")
		}
		if fn.Run[0], err = exec.LookPath(in.Run[0]); err != nil {
			return nil, wrong("run: %s", err)
		}
		if err := durable.CheckFile(fn.Run[0]); err != nil { // who can write to it decides what the device does
			return nil, fileError(err, wrong("run: %s", err))
		}
		if in.Timeout != "" {
			if fn.Timeout, err = time.ParseDuration(in.Timeout); err != nil || fn.Timeout <= 0 || fn.Timeout > maxTimeout {
				return nil, wrong(`timeout must be a duration as "10s", at most 1h`)
			}
		}
		if in.Grace != "" {
			if fn.Grace, err = time.ParseDuration(in.Grace); err != nil || fn.Grace < 0 || fn.Grace > maxGrace {
				return nil, wrong(`grace must be a duration as "5s", at most 15s`)
			}
		}
		for name, value := range in.Env {
			if !validVariable(name) || strings.ContainsRune(value, 0) {
				return nil, wrong("env: %q cannot be set: a name has no = and does not begin with %s, and there is no NUL", name, reservedPrefix)
			}
		}
		for _, name := range in.Pass {
			if !validVariable(name) {
				return nil, wrong("pass: %q cannot be passed on: a name has no = and does not begin with %s", name, reservedPrefix)
			}
		}
		if in.Schema != "" {
			p := in.Schema
			if !filepath.IsAbs(p) {
				p = filepath.Join(filepath.Dir(path), p)
			}
			if fn.Schema, err = durable.ReadTrusted(p, maxFile); err != nil {
				return nil, fileError(err, wrong("schema: %s", err))
			}
		}
		out = append(out, fn)
	}
	slices.SortFunc(out, func(a, b Function) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// fileError returns err where that is what it says, else what is wrong in the functions file.
func fileError(err, wrong error) error {
	if watchword.CodeOf(err) == watchword.FileUntrusted {
		return err
	}
	return wrong
}

func decode(path string, text []byte, into *functionsFile) error {
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(into)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		line, column := strict.Errors[0].Position()
		return watchword.Refuse(watchword.ConfigInvalid, "%s:%d:%d: unknown key %s", path, line, column, strict.Errors[0].Key()[len(strict.Errors[0].Key())-1])
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := e.Position()
		return watchword.Refuse(watchword.ConfigInvalid, "%s:%d:%d: %s", path, line, column, e.Error())
	}
	return err
}

// Options is what [Register] may be told. Its zero value works.
type Options struct {
	// Dedicated says that this process starts no other processes than the programs of one
	// device, so that on Linux each child that it has while a program runs is the program's:
	// it becomes the parent of its descendants' orphans, and kills them with the program.
	Dedicated bool
	// Log is told of processes that could not be killed; nil is [slog.Default].
	Log *slog.Logger
}

type runner struct {
	opts     Options
	noCgroup bool // do as where no control group can be made
}

// Register makes the programs of fs the device's functions. Where programs have control
// groups (Linux), it ends those that an agent before left when it was killed.
func Register(d *device.Device, fs []Function, o Options) {
	r := newRunner(o)
	sweepCgroups()
	for _, f := range fs {
		d.HandleFunction(device.Function{Name: f.Name, Schema: f.Schema}, func(ctx context.Context, c *device.Command) (any, error) {
			return r.execute(ctx, f, c)
		})
	}
}

func newRunner(o Options) *runner {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &runner{opts: o}
}
