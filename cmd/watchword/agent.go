package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/agent"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

func (a *app) agentCommand() *cobra.Command {
	return commandGroup("agent", "Run a device: keys, session, commands, events", a.agentEnroll(), a.agentPair(), a.agentRun(), a.agentToken(), a.agentAssertion(), a.agentStatus(), a.agentRekey())
}

func dirFlag(c *cobra.Command) *string {
	dir := c.Flags().String("dir", "", "folder with the device's keys and state")
	_ = c.MarkFlagRequired("dir") // the flag exists
	return dir
}

// clockFlag adds --no-clock.
func clockFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("no-clock", false, "the device has no clock: get signed time from the server, and execute only commands with the device's nonce until it has it")
}

func (a *app) agentEnroll() *cobra.Command {
	c := &cobra.Command{Use: "enroll LINK|FILE|- --dir DIR", Short: "Make keys and enroll them with a one-time link", Args: positional(cobra.ExactArgs(1))}
	dir := dirFlag(c)
	sign := c.Flags().String("sign", "P-256", "curve of the signing key: P-256 or Ed25519")
	seal := c.Flags().String("seal", "P-256", "curve of the sealing key: P-256 or X25519")
	noClock := clockFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := curves(*sign, *seal); err != nil {
			return err
		}
		link := args[0]
		if !strings.HasPrefix(link, "https://") {
			b, err := readTrusted(link, 4096)
			if err != nil {
				return err
			}
			link = strings.TrimSpace(string(b))
		}
		d, err := device.OpenWith(*dir, device.Options{SignCurve: *sign, SealCurve: *seal, NoClock: *noClock})
		if err != nil {
			return err
		}
		defer d.Close()
		if err := d.Enroll(c.Context(), link); err != nil {
			return err
		}
		return a.printStatus(d)
	}
	return c
}

// agentStatus is the output of agent status.
type agentStatus struct {
	Enrolled bool   `json:"enrolled"`
	ID       string `json:"id,omitempty"`
	Server   string `json:"server,omitempty"`
	Sign     string `json:"sign_key,omitempty"`
	Seal     string `json:"seal_key,omitempty"`
	Epoch    int64  `json:"epoch"`
	Seq      int64  `json:"seq"`
	Lost     string `json:"journal_lost,omitempty"`
	Bundle   int64  `json:"trust_version,omitempty"`
	Until    string `json:"trust_until,omitempty"`
	CA       string `json:"ca,omitempty"`
}

func (a *app) printStatus(d *device.Device) error {
	s := agentStatus{Enrolled: d.Enrolled(), ID: string(d.ID()), Server: d.Server()}
	if sign, seal := d.Keys(); sign != nil {
		s.Sign, s.Seal = string(sign.ID()), string(seal.ID())
	}
	if t := d.Trust(); t != nil {
		s.Bundle, s.Until, s.CA = t.Version, t.Expires.UTC().Format("2006-01-02T15:04:05Z"), d.CAFile()
	}
	s.Epoch, s.Seq = d.Position()
	s.Lost = d.MemoryLost()
	return a.print(s, func(w *terminal.Writer) {
		if !s.Enrolled {
			w.Printf("not enrolled\n")
			return
		}
		w.Printf("device\t%s\nserver\t%s\nsign key\t%s\nseal key\t%s\nlast command\t%d.%d\ntrust bundle\tversion %d, until %s\nca\t%s\n",
			s.ID, s.Server, s.Sign, s.Seal, s.Epoch, s.Seq, s.Bundle, s.Until, s.CA)
		if s.Lost != "" {
			w.Printf("journal\tlost; until the next command, only one with this device's nonce is executed: %s\n", s.Lost)
		}
	})
}

func (a *app) agentStatus() *cobra.Command {
	c := &cobra.Command{Use: "status --dir DIR", Short: "Show what the device's folder holds", Args: positional(cobra.NoArgs)}
	dir := dirFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		return withDevice(*dir, device.Options{}, a.printStatus)
	}
	return c
}

// withDevice opens an existing device folder and calls f.
func withDevice(dir string, o device.Options, f func(*device.Device) error) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	d, err := device.OpenShared(dir, o)
	if err != nil {
		return err
	}
	return errors.Join(f(d), d.Close())
}

func (a *app) agentToken() *cobra.Command {
	c := &cobra.Command{Use: "token --dir DIR", Short: "Print an access token, for example for a stock MQTT client", Args: positional(cobra.NoArgs)}
	dir, noClock := dirFlag(c), clockFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withDevice(*dir, device.Options{NoClock: *noClock}, func(d *device.Device) error {
			t, err := d.NewToken(c.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]string{"access_token": t}, func(w *terminal.Writer) { w.Printf("%s\n", t) })
		})
	}
	return c
}

func (a *app) agentAssertion() *cobra.Command {
	c := &cobra.Command{Use: "assertion --dir DIR", Short: "Print a client assertion: valid once, for five minutes", Args: positional(cobra.NoArgs)}
	dir, noClock := dirFlag(c), clockFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withDevice(*dir, device.Options{NoClock: *noClock}, func(d *device.Device) error {
			d.SyncTime(c.Context())
			t, err := d.Assertion(token.AssertionLifetime)
			if err != nil {
				return err
			}
			return a.print(map[string]string{"client_assertion": t}, func(w *terminal.Writer) { w.Printf("%s\n", t) })
		})
	}
	return c
}

func (a *app) agentRun() *cobra.Command {
	c := &cobra.Command{
		Use: "run --dir DIR", Short: "Keep a session open, execute commands, publish lines", Args: positional(cobra.NoArgs),
		Long: "Keep a session open, execute commands and publish lines until SIGTERM or SIGINT. SIGHUP reads the functions file again and\n" +
			"opens the log file again.",
	}
	dir := dirFlag(c)
	functions := c.Flags().String("functions", "", "TOML file that maps functions to programs")
	stream := c.Flags().String("stdin", "", "publish each line of standard input as an event of this stream, until it ends")
	queueBytes := c.Flags().Int64("stdin-queue-bytes", agent.DefaultQueueBytes, "size of the file in which lines wait until they are published; when it is full no more is read")
	every := c.Flags().Duration("rekey-every", 0, "change both keys when they reach this age, for example 720h; 0: never")
	logged := c.Flags().Bool("require-log-proof", false, "execute only commands that come with a proof that the server's audit log contains them")
	renamedFlag(c, "logged-only", "--require-log-proof")
	logFile := c.Flags().String("log-file", "", "absolute path of a file for the log, which SIGHUP opens again (default: standard error)")
	noClock := clockFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		hup := hangups()
		if *every != 0 && *every < rekeyShortest {
			return usage("--rekey-every must be %s or more", rekeyShortest)
		}
		if *stream != "" {
			if err := checkStream(*stream); err != nil {
				return err
			}
			if *queueBytes < agent.MinQueueBytes || *queueBytes > agent.MaxQueueBytes {
				return usage("--stdin-queue-bytes must be from %d to %d", agent.MinQueueBytes, agent.MaxQueueBytes)
			}
		}
		if *logFile != "" && !filepath.IsAbs(*logFile) {
			return usage("--log-file must be an absolute path")
		}
		log, err := a.openLog(server.LogConfig{Level: "info", File: *logFile})
		if err != nil {
			return err
		}
		d, err := device.OpenWith(*dir, device.Options{NoClock: *noClock, RequireLogProof: *logged, Connected: func(over string) { slog.Info("connected", slog.String("over", over)) }})
		if err != nil {
			return err
		}
		defer d.Close()
		if !d.Enrolled() {
			return usage("%s is not enrolled; see %s agent enroll --help", *dir, program())
		}
		reload := func(context.Context) error { return log.reopen() }
		if *functions != "" {
			fs, err := readFunctions(*functions)
			if err != nil {
				return err
			}
			programs := agent.Register(d, fs, agent.Options{Dedicated: true})
			reload = func(context.Context) error {
				fs, err := readFunctions(*functions)
				if err == nil {
					programs.Replace(fs)
				}
				return errors.Join(log.reopen(), err)
			}
		}
		var lines *agent.LineQueue
		if *stream != "" {
			if lines, err = openLines(*dir, *queueBytes); err != nil {
				return err
			}
		}
		ready := make(chan struct{})
		close(ready) // a device works without a connection too: it keeps its receipts and connects when it can
		s := supervised{ready: ready, status: "runs " + string(d.ID()) + " of " + d.Server(), reload: reload, alive: func(context.Context) { d.Position() }}
		return supervise(c.Context(), hup, s, func(ctx context.Context) error {
			return withRekey(ctx, d, *every, func(ctx context.Context) error { return a.runAgent(ctx, d, *stream, lines) })
		})
	}
	return c
}

// openLines opens the file of the lines of standard input in a device's folder. It returns nil if it cannot be written, as on
// a full disk: lines are then published without it.
func openLines(dir string, limit int64) (*agent.LineQueue, error) {
	q, err := agent.OpenLineQueue(filepath.Join(dir, "lines.queue"), limit, slog.Default())
	if code := watchword.CodeOf(err); err != nil && code == watchword.Internal {
		slog.Error("the file of lines cannot be used: lines are published without it, and do not survive the end of the agent", slog.Any("err", err))
		return nil, nil
	}
	return q, err
}

// readLines publishes the lines of standard input until it ends or ctx does.
func readLines(ctx context.Context, d *device.Device, stream string, q *agent.LineQueue) error {
	if q == nil {
		return agent.Lines(ctx, os.Stdin, func(ctx context.Context, v any) error { return d.Publish(ctx, stream, v) }, slog.Default())
	}
	return errors.Join(q.Lines(ctx, os.Stdin, stream, d.Publish), q.Close())
}

func (a *app) runAgent(ctx context.Context, d *device.Device, stream string, lines *agent.LineQueue) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	a.err.Printf("%s runs with server %s\n", d.ID(), d.Server())
	if stream == "" {
		return <-ran
	}
	read := make(chan error, 1)
	go func() { read <- readLines(ctx, d, stream, lines) }()
	select {
	case err := <-ran:
		cancel()
		if lines != nil { // its reads end with ctx
			err = errors.Join(err, <-read)
		}
		return err
	case err := <-read:
		if err != nil { // commands go on without lines
			slog.Error("standard input is not read any more", slog.Any("err", err))
			return <-ran
		}
		cancel()
		return <-ran
	}
}

// checkStream refuses an invalid stream name before lines are read.
func checkStream(stream string) error {
	for s := range strings.SplitSeq(stream, "/") {
		if err := watchword.CheckName("stream", s); err != nil {
			return usage("--stdin %s: must be names joined by /", stream)
		}
	}
	return nil
}
