package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
)

func (a *app) demoCommand() *cobra.Command {
	c := &cobra.Command{Use: "demo", Short: "Show enrollment, tokens, commands and revocation on loopback", Args: positional(cobra.NoArgs)}
	devices := c.Flags().Int("devices", 3, "number of devices, 3 to 50")
	once := c.Flags().Bool("once", false, "exit after the last step")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *devices < 3 || *devices > 50 {
			return usage("--devices must be 3 to 50")
		}
		return a.demo(c.Context(), *devices, *once)
	}
	return c
}

// demoStep is one step of the demonstration, as --json prints it.
type demoStep struct {
	Name   string  `json:"name"`
	OK     bool    `json:"ok"`
	MS     float64 `json:"ms"`
	Detail string  `json:"detail,omitempty"`
}

// demo runs the steps in a temporary folder, which is deleted afterwards.
func (a *app) demo(ctx context.Context, devices int, once bool) (err error) {
	dir, err := os.MkdirTemp("", "watchword-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	t := &demoRun{dir: dir, data: filepath.Join(dir, "server"), count: devices, out: a.out}
	if a.format != "table" {
		t.out = terminal.New(io.Discard, false)
	}
	t.colour = t.out.IsTerminal() && os.Getenv("NO_COLOR") == ""
	logs, err := os.OpenFile(filepath.Join(dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logs.Close()
	t.log = slog.New(slog.NewTextHandler(logs, nil))
	ctx, cancel := context.WithCancel(ctx)
	ok := t.run(ctx)
	if a.format != "table" {
		if err := a.print(map[string]any{"ok": ok, "steps": t.steps}, nil); err != nil {
			cancel()
			return err
		}
	}
	if ok && !once {
		t.waitInterrupt(ctx)
	}
	cancel()
	if err := t.close(); err != nil {
		return err
	}
	if !ok {
		return &exitError{1}
	}
	return nil
}

// waitInterrupt waits for an interrupt while server and devices run.
func (t *demoRun) waitInterrupt(ctx context.Context) {
	t.out.Printf("\nThe server and the devices keep running. In another terminal:\n\n"+
		"  export WATCHWORD_DATA=%s\n"+
		"  %s device list\n"+
		"  %s command send lamp-1 lamp.set level:=70 --wait 10s\n"+
		"  %s event watch\n"+
		"  %s policy explain --subject lamp-1 --action call --resource fn:lamp-2/lamp.set level:=99\n"+
		"  %s audit list\n\nInterrupt with Ctrl-C; the folder is then deleted.\n", t.data, program(), program(), program(), program(), program())
	for n := 0; ; n++ {
		timer := time.NewTimer(5 * time.Second)
		select {
		case <-timer.C:
			for _, l := range t.devices[:2] {
				if err := l.dev.Publish(ctx, "lux", 30+n%20); err != nil && ctx.Err() == nil {
					t.log.Warn("publish", slog.Any("err", err))
				}
			}
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// run executes the steps and stops at the first that fails.
func (t *demoRun) run(ctx context.Context) bool {
	t.out.Printf("Watchword: a server, %d devices, an operator and an attacker, on loopback, with real keys and TLS.\n\n", t.count)
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"serve", t.serve},
		{"enroll", t.enroll},
		{"token", t.token},
		{"connect", t.connect},
		{"publish", t.publish},
		{"publish_denied", t.publishDenied},
		{"call_denied", t.callDenied},
		{"command", t.command},
		{"receipt", t.receipt},
		{"forged_command_refused", t.forgedCommand},
		{"replayed_command_refused", t.replayedCommand},
		{"refresh", t.refresh},
		{"revoke", t.revoke},
		{"cut", t.sessionCut},
		{"audit", t.audit},
	} {
		limit, cancel := context.WithTimeout(ctx, 30*time.Second)
		start := time.Now()
		detail, err := s.do(limit)
		cancel()
		took := time.Since(start)
		if t.measured > 0 { // the step measured only a part of its duration
			took, t.measured = t.measured, 0
		}
		done := demoStep{Name: s.name, OK: err == nil, MS: float64(took.Microseconds()) / 1000, Detail: detail}
		if err != nil {
			done.Detail = err.Error()
		}
		t.steps = append(t.steps, done)
		t.printStep(done)
		if err != nil {
			return false
		}
	}
	return true
}

// printStep prints a step as one line.
func (t *demoRun) printStep(s demoStep) {
	switch {
	case s.OK && t.colour:
		t.out.Printf("\x1b[32mok  \x1b[0m")
	case s.OK:
		t.out.Printf("ok  ")
	case t.colour:
		t.out.Printf("\x1b[31mFAIL\x1b[0m")
	default:
		t.out.Printf("FAIL")
	}
	if t.colour {
		t.out.Printf("  %-25s \x1b[2m%8.1f ms\x1b[0m  %s\n", s.Name, s.MS, s.Detail)
	} else {
		t.out.Printf("  %-25s %8.1f ms  %s\n", s.Name, s.MS, s.Detail)
	}
}

// close stops the devices, then the server.
func (t *demoRun) close() error {
	if t.stop != nil {
		t.stop()
	}
	t.running.Wait()
	var errs []error
	for _, l := range t.devices {
		if l.dev != nil {
			errs = append(errs, l.dev.Close())
		}
	}
	if t.served != nil {
		t.stopServer()
		errs = append(errs, <-t.served)
	}
	return errors.Join(errs...)
}

// serve starts the server with an empty folder.
func (t *demoRun) serve(ctx context.Context) (string, error) {
	cfg := server.Defaults()
	cfg.Data = t.data
	cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = "localhost:0", "localhost:0", ""
	if err := cfg.Check(); err != nil {
		return "", err
	}
	s, err := server.New(ctx, cfg, server.Options{Log: t.log, Version: version()})
	if err != nil {
		return "", err
	}
	up, down := context.WithCancel(context.Background())
	t.stopServer, t.served = down, make(chan error, 1)
	go func() { t.served <- s.Run(up) }()
	select {
	case <-s.Ready():
	case err := <-t.served:
		t.served <- err
		return "", err
	}
	return fmt.Sprintf("%s, with new keys, store, certificate authority and operator", s.Info().URL), nil
}

func claimsOf(payload []byte) (c struct {
	Perm []json.RawMessage `json:"perm"`
	EXP  int64             `json:"exp"`
	IAT  int64             `json:"iat"`
}, err error,
) {
	err = json.Unmarshal(payload, &c)
	return c, err
}
