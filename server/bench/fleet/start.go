package main

import (
	"context"
	"errors"
	"time"
)

var startOperations = []operation{
	{name: "start, until requests are answered", goal: "≤ 1 s", run: func(ctx context.Context, f *fleet, m *meter) error {
		if err := f.stop(); err != nil {
			return err
		}
		if err := f.start(ctx); err != nil {
			return err
		}
		m.took = f.started
		all, err := f.reads()
		m.rows, m.stmts = all.rows, all.statements
		return errors.Join(err, f.settle(ctx))
	}},
}

// settle waits until the server reads nothing more from its store: the sessions of a start have their authority then.
func (f *fleet) settle(ctx context.Context) error {
	last, err := f.reads()
	for quiet := 0; err == nil && quiet < 5; {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		var now reads
		if now, err = f.reads(); now.rows == last.rows {
			quiet++
		} else {
			quiet = 0
		}
		last = now
	}
	return err
}
