package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword/cmd/internal/sdnotify"
)

// supervised is a command that runs until it is stopped, as the service manager sees it.
type supervised struct {
	ready  <-chan struct{}             // closed once it does its work
	status string                      // what it does, for the service manager
	reload func(context.Context) error // reads again what SIGHUP has it read again; an error leaves all as it was, and was not logged
	alive  func(context.Context)       // returns once the parts through which all work passes have answered
}

// hangups returns a channel of SIGHUP, which from then on does not end the process. Neither does SIGPIPE, so that a log whose reader
// ended does not end a server. Programs that are started get the default of both. Call it first.
func hangups() <-chan os.Signal {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // with signal.Ignore programs would inherit it
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// supervise calls run, which ends with ctx, and meanwhile reloads at each SIGHUP and reports to the service manager.
func supervise(ctx context.Context, hangups <-chan os.Signal, s supervised, run func(context.Context) error) error {
	n, err := sdnotify.Open()
	if err != nil {
		slog.Warn("the service manager is not told the state", slog.Any("err", err))
	}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	select {
	case <-s.ready:
		notify("READY", func() error { return n.Ready(s.status) })
	case err := <-ended:
		return err
	}
	watched, stop := context.WithCancel(ctx)
	defer stop()
	if every := n.Watchdog() / 2; every > 0 {
		go watch(watched, n, every, s.alive)
	}
	for {
		select {
		case <-hangups:
			notify("RELOADING", n.Reloading)
			status := s.status
			if err := s.reload(ctx); err != nil {
				slog.Error("not reloaded: what was in use stays in use", slog.Any("err", err))
				status += "; not reloaded: " + err.Error()
			} else {
				slog.Info("reloaded")
			}
			notify("READY", func() error { return n.Ready(status) })
		case <-ctx.Done():
			notify("STOPPING", n.Stopping)
			return <-ended
		case err := <-ended:
			return err
		}
	}
}

// watch tells the watchdog at intervals that the process works, after alive has returned.
func watch(ctx context.Context, n *sdnotify.Notifier, every time.Duration, alive func(context.Context)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		alive(ctx)
		notify("WATCHDOG", n.Alive)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// notify sends a state to the service manager, and logs an error.
func notify(state string, send func() error) {
	if err := send(); err != nil {
		slog.Warn("the service manager was not told the state", slog.String("state", state), slog.Any("err", err))
	}
}
