package main

import (
	"bytes"
	"cmp"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/sdk/agent"
)

// maxFunctionsFile is how many bytes a functions file, and a schema that it names, may have.
const maxFunctionsFile = 1 << 20

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

// readFunctions reads a functions file. Schemas are looked up beside it. Code:
// config_invalid, with the file and what is wrong where; file_untrusted, also for a schema or a program.
func readFunctions(path string) ([]agent.Function, error) {
	text, err := durable.ReadTrusted(path, maxFunctionsFile)
	switch watchword.CodeOf(err) {
	case "":
	case watchword.FileUntrusted:
		return nil, err
	case watchword.TooLarge:
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s must have at most 1 MiB", path)
	default:
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s cannot be read", path)
	}
	var f functionsFile
	if err := decodeFunctions(path, text, &f); err != nil {
		return nil, err
	}
	var out []agent.Function
	for name, in := range f.Functions {
		fn := agent.Function{Name: name, Run: in.Run, Timeout: duration(in.Timeout, agent.DefaultTimeout), Grace: duration(in.Grace, agent.DefaultGrace), Env: in.Env, Pass: in.Pass}
		fn, err := fn.Check()
		if err == nil && in.Schema != "" {
			p := in.Schema
			if !filepath.IsAbs(p) {
				p = filepath.Join(filepath.Dir(path), p)
			}
			if fn.Schema, err = durable.ReadTrusted(p, maxFunctionsFile); err != nil && watchword.CodeOf(err) != watchword.FileUntrusted {
				err = watchword.Refuse(watchword.ConfigInvalid, "schema: %s", err)
			}
		}
		if watchword.CodeOf(err) == watchword.FileUntrusted { // it names the file to correct
			return nil, err
		}
		if err != nil {
			return nil, watchword.Refuse(watchword.ConfigInvalid, "%s: functions.%q: %s", path, name, watchword.DetailOf(err))
		}
		out = append(out, fn)
	}
	slices.SortFunc(out, func(a, b agent.Function) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// duration returns what a text says; -1, which [agent.Function.Check] refuses, where it is no duration.
func duration(text string, missing time.Duration) time.Duration {
	if text == "" {
		return missing
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return -1
	}
	return d
}

func decodeFunctions(path string, text []byte, into *functionsFile) error {
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
