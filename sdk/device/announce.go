package device

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
)

// announce sends the list of functions with handlers to the server. Functions that the server refuses are logged by name
// and left out of the next attempt. If a refusal names no function, the one with the longest schema is left out. If all are
// refused, nothing is announced: with an empty list the server would accept every function name.
func (r *run) announce(ctx context.Context) error {
	r.handlers.mu.RLock()
	list, open := slices.Clone(r.handlers.list), r.handlers.fallback != nil
	r.handlers.mu.RUnlock()
	if open {
		list = nil
	}
	for empty := len(list) == 0; empty || len(list) > 0; {
		err := r.Announce(ctx, list...)
		switch watchword.CodeOf(err) {
		default:
			return err
		case watchword.BadRequest, watchword.TooLarge:
		}
		i := refusedFunction(err, list)
		if i < 0 {
			return err
		}
		r.opts.Log.Error("the server refuses a function, which is not announced", slog.String("function", list[i].Name),
			slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
		list = slices.Delete(list, i, i+1)
	}
	return nil
}

// refusedFunction returns the index of the function that a refusal names, or else of the one with the longest schema; -1 if
// none has a schema.
func refusedFunction(err error, list []Function) int {
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		if name, ok := strings.CutPrefix(e.Field, "functions."); ok {
			if i := slices.IndexFunc(list, func(f Function) bool { return f.Name == name }); i >= 0 {
				return i
			}
		}
	}
	longest := -1
	for i, f := range list {
		if len(f.Schema) > 0 && (longest < 0 || len(f.Schema) > len(list[longest].Schema)) {
			longest = i
		}
	}
	return longest
}
