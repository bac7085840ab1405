package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/sim"
)

// simulation is one run of sim.
type simulation struct {
	plan  sim.Plan
	parts sim.Hooks
	name  string
	links string
	log   string
	admin *admin.Client // nil with links
}

func (a *app) simCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "sim --devices N --rate R", Short: "Simulate many devices, with good and bad connections", Args: positional(cobra.NoArgs),
		Long: `Simulates devices with the SDK in one process. Each has its own keys and folder,
enrolls, connects, publishes events and executes commands (` + sim.Function + `).
Connections break singly (--lossy) and all at once (--storm); at the end all devices must be connected.

The server is that of --data, where the devices are created, and deleted at the end. With
--links it is that of the links: a file with a link of watchword device create on each line.
With --dir the devices stay enrolled for the next run.

Exit status: 0 if every device was connected at the end, else 1.`,
	}
	s := &simulation{}
	f := c.Flags()
	f.IntVar(&s.plan.Devices, "devices", 100, fmt.Sprintf("number of devices, at most %d", sim.MaxDevices))
	f.Float64Var(&s.plan.EventRate, "rate", 10, "events a second, of all devices together")
	f.IntVar(&s.plan.EventBytes, "size", 64, "size of an event in bytes")
	f.DurationVar(&s.plan.Ramp, "ramp", 5*time.Second, "time over which the devices start")
	f.DurationVar(&s.plan.Duration, "for", 30*time.Second, "duration after the ramp; 0: until interrupted")
	f.DurationVar(&s.plan.StormEvery, "storm", 0, "interval at which all connections break at once, as 60s; 0: never")
	lossy := f.String("lossy", "0%", "share of devices with bad connections: slow, stalled, or broken")
	f.DurationVar(&s.plan.ConnLifetime, "line", 10*time.Second, "mean lifetime of a bad connection")
	f.Float64Var(&s.plan.CommandRate, "commands", 0, "commands a second, each answered by a receipt; needs --data")
	f.Uint64Var(&s.plan.Seed, "seed", 1, "seed of the random numbers")
	f.StringVar(&s.parts.Dir, "dir", "", "folder that keeps the devices' folders (default: a temporary folder, which is deleted)")
	f.StringVar(&s.links, "links", "", "file with an enrollment link on each line; - is standard input")
	f.StringVar(&s.name, "name", "sim", "prefix of the devices' ids")
	f.StringVar(&s.log, "log", "", "file for the devices' log")
	f.DurationVar(&s.parts.ReportEvery, "every", 5*time.Second, "interval of progress reports")
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if s.plan.Lossy, err = parseShare(*lossy); err != nil {
			return err
		}
		return a.sim(c.Context(), s)
	}
	return c
}

// parseShare parses "10%" or "0.1".
func parseShare(text string) (float64, error) {
	number, percent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, usage("--lossy %s: must be as 10%% or 0.1", text)
	}
	if percent {
		v /= 100
	}
	return v, nil
}

func (a *app) sim(ctx context.Context, s *simulation) (err error) {
	if err := s.plan.Check(); err != nil {
		return withFlagName(err)
	}
	if s.parts.ReportEvery < 100*time.Millisecond {
		return usage("--every must be 100ms or more")
	}
	if s.log != "" {
		to, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer to.Close()
		s.parts.Log = slog.New(slog.NewTextHandler(to, nil))
	}
	if s.parts.Dir == "" {
		if s.parts.Dir, err = os.MkdirTemp("", "watchword-sim-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(s.parts.Dir)) }()
		s.name += "-" + strconv.FormatUint(rand.Uint64(), 36)[:6] // a deleted device's ID cannot be used again
		defer func() { err = errors.Join(err, s.clean()) }()
	}
	if err := a.simServer(s); err != nil {
		return err
	}
	s.parts.OnReport = func(r sim.Report) {
		if a.format == "jsonl" {
			err = errors.Join(err, a.print(r, nil))
			return
		}
		a.err.Printf("%s\n", summaryLine(r))
	}
	r, err := sim.Run(ctx, s.plan, s.parts)
	if err != nil {
		return withFlagName(err)
	}
	if err := a.print(r, func(w *terminal.Writer) { showSim(w, r) }); err != nil {
		return err
	}
	if !r.OK && ctx.Err() == nil {
		return &exitError{1}
	}
	return nil
}

// withFlagName names the flag in the error of a plan.
func withFlagName(err error) error {
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.Code == watchword.BadRequest && e.Field != "" {
		return usage("--%s %s", e.Field, e.Detail)
	}
	return err
}

// simServer chooses the server, the enrollment links and the orderer.
func (a *app) simServer(s *simulation) error {
	if s.links != "" {
		text, err := readInput(s.links, 16<<20)
		if err != nil {
			return err
		}
		links := strings.Fields(string(text))
		s.parts.Link = func(_ context.Context, n int) (string, error) {
			if n >= len(links) {
				return "", watchword.Refuse(watchword.BadRequest, "%s must have one enrollment link for each device: it has %d, and device %d has none", s.links, len(links), n+1)
			}
			return links[n], nil
		}
		return nil
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	s.admin = cl
	s.parts.Link = func(ctx context.Context, n int) (string, error) {
		d, err := cl.CreateDevice(ctx, s.id(n), watchword.Labels{"kind": "sim"}, 0)
		if err != nil {
			return "", err
		}
		if d.Enrollment != nil {
			return d.Enrollment.Link, nil
		}
		e, err := cl.Link(ctx, s.id(n), 0) // the device exists, but its folder does not
		return e.Link, err
	}
	s.parts.Order = func(ctx context.Context, to watchword.SubjectID, function string, args []byte) error {
		got, err := cl.Send(ctx, admin.CommandOrder{Device: to, Function: function, Args: args, WaitReceipt: 60 * time.Second})
		switch {
		case err != nil:
			return err
		case got.Receipt == nil:
			return watchword.Refuse(watchword.TimedOut, "no receipt arrived within 60 seconds")
		case got.Receipt.Status != watchword.StatusDone:
			return watchword.Refuse(watchword.CommandFailed, "%s", got.Receipt.Status)
		}
		return nil
	}
	return nil
}

func (s *simulation) id(n int) watchword.SubjectID {
	return watchword.SubjectID(fmt.Sprintf("%s-%05d", s.name, n))
}

// clean deletes the devices that the run created.
func (s *simulation) clean() error {
	if s.admin == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // also after an interrupt
	defer cancel()
	var g errgroup.Group
	g.SetLimit(16)
	for n := range s.plan.Devices {
		g.Go(func() error {
			err := s.admin.DeleteDevice(ctx, s.id(n))
			if watchword.CodeOf(err) == watchword.NotFound { // it was never created
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// summaryLine formats a report in one line.
func summaryLine(r sim.Report) string {
	b := fmt.Sprintf("%6.0f s  %d of %d there", r.Seconds, r.Devices.MQTT+r.Devices.HTTPS, r.Devices.Planned)
	if r.Devices.HTTPS > 0 {
		b += fmt.Sprintf(" (%d over HTTPS)", r.Devices.HTTPS)
	}
	b += fmt.Sprintf("  %d events, p99 %s", r.Events.Done, ms(r.Events.Latency.P99))
	if r.Commands.Done > 0 {
		b += fmt.Sprintf("  %d commands, p99 %s", r.Commands.Done, ms(r.Commands.Latency.P99))
	}
	if r.Connections.Broken > 0 {
		b += fmt.Sprintf("  %d lines broken", r.Connections.Broken)
	}
	if n := sum(r.Events.Refused) + sum(r.Commands.Refused); n > 0 {
		b += fmt.Sprintf("  %d refused", n)
	}
	return b
}

func sum(by map[string]int) (n int) {
	for _, k := range by {
		n += k
	}
	return n
}

// ms formats milliseconds for display.
func ms(v float64) string {
	d := time.Duration(v * float64(time.Millisecond))
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 100*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

func showSim(w *terminal.Writer, r sim.Report) {
	w.Printf("devices\t%d of %d there at the end: %d over MQTT, %d over HTTPS; %d enrolled in this run\n",
		r.Devices.MQTT+r.Devices.HTTPS, r.Devices.Planned, r.Devices.MQTT, r.Devices.HTTPS, r.Devices.Enrolled)
	w.Printf("lines\t%d made for MQTT, %d broken by the simulation (%d went dead first), %d slow\n", r.Connections.Made, r.Connections.Broken, r.Connections.Stalled, r.Connections.Slow)
	showTimes(w, "  back in", r.Connections.Reconnect)
	for _, s := range r.Storms {
		all := "not all were back before the next"
		if s.RecoveryMS > 0 {
			all = "all back in " + ms(s.RecoveryMS)
		}
		w.Printf("storm\tat %.0f s: %d devices, %s\n", s.At, s.Devices, all)
	}
	showActs(w, "events", r.Events)
	if r.Commands.Done+sum(r.Commands.Refused)+r.Commands.Late > 0 {
		showActs(w, "commands", r.Commands)
	}
	for _, code := range slices.Sorted(maps.Keys(r.GaveUp)) {
		w.Printf("gave up\t%d  %s\n", r.GaveUp[code], code)
	}
}

func showActs(w *terminal.Writer, name string, a sim.Operations) {
	w.Printf("%s\t%d done, %.1f a second", name, a.Done, a.Rate)
	if a.Late > 0 {
		w.Printf("; %d left out, since those before took too long", a.Late)
	}
	w.Printf("\n")
	showTimes(w, "  done in", a.Latency)
	for _, code := range slices.Sorted(maps.Keys(a.Refused)) {
		w.Printf("  refused\t%d  %s\n", a.Refused[code], code)
	}
}

func showTimes(w *terminal.Writer, name string, t sim.Latency) {
	if t.Count > 0 {
		w.Printf("%s\tp50 %s, p99 %s, most %s\n", name, ms(t.P50), ms(t.P99), ms(t.Max))
	}
}
