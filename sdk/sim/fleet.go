package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

// Limits of a run.
const (
	maxEnrolling     = 16
	maxCommands      = 1024
	maxStorms        = 1000             // in a report
	reconnectTimeout = 90 * time.Second // for all devices to reconnect at the end: a device waits for up to a minute
	maxBacklog       = 10               // events that a device may be late with before it skips some
)

// fleet is the state of a run.
type fleet struct {
	plan    Plan
	hooks   Hooks
	start   time.Time
	devices []*simDevice

	enrolling  chan struct{}
	breaking   atomic.Bool  // connections may still be broken
	sendTime   atomic.Int64 // duration for which events and commands were sent, once that has ended
	begun      atomic.Int64
	enrolled   atomic.Int64
	made       atomic.Int64
	broken     atomic.Int64
	stalled    atomic.Int64
	slow       atomic.Int64
	reconnects histogram
	events     opStats
	commands   opStats
	ended      codeCounter

	mu             sync.Mutex
	storms         []Storm
	returnedSignal chan struct{} // has a token after a device has reconnected
	random         *rand.Rand    // guarded by chance
	randomMu       sync.Mutex
	orders         sync.WaitGroup // in progress
}

type opStats struct {
	latency histogram
	late    atomic.Int64
	refused codeCounter
}

// storm is a simultaneous break of all connections, until all devices have reconnected.
type storm struct {
	number  int // index in storms, -1 if the list is full
	at      time.Time
	missing int
}

// Run runs the plan p until its duration has passed or ctx ends, and returns the report. All devices are closed when it
// returns. Codes: bad_request, those of enrollment, and those of opening the folders.
func Run(ctx context.Context, p Plan, parts Hooks) (Report, error) {
	if err := p.Check(); err != nil {
		return Report{}, err
	}
	if p.CommandRate > 0 && parts.Order == nil {
		return Report{}, watchword.RefuseField("commands", "must be 0, since no operator's key is given")
	}
	if p.EventBytes == 0 {
		p.EventBytes = 64
	}
	if p.ConnLifetime == 0 {
		p.ConnLifetime = 10 * time.Second
	}
	if parts.ReportEvery == 0 {
		parts.ReportEvery = 5 * time.Second
	}
	if parts.Log == nil {
		parts.Log = slog.New(slog.DiscardHandler)
	}
	f := &fleet{
		plan: p, hooks: parts, start: time.Now(), enrolling: make(chan struct{}, maxEnrolling), returnedSignal: make(chan struct{}, 1), random: rand.New(rand.NewPCG(p.Seed, 1)),
	}
	f.breaking.Store(true)
	return f.run(ctx)
}

func (f *fleet) run(ctx context.Context) (Report, error) {
	for n := range f.plan.Devices {
		f.devices = append(f.devices, &simDevice{fleet: f, number: n, lossy: f.random.Float64() < f.plan.Lossy})
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx)) // context of the devices: their state is read before they end
	defer stop()
	all, stopAll := context.WithCancel(life)
	defer stopAll()
	var devices sync.WaitGroup
	var once sync.Once
	var failure error // error of the first device that failed, which ends the others
	for _, t := range f.devices {
		devices.Go(func() {
			if err := t.run(all); err != nil {
				once.Do(func() { failure = err; stopAll() })
			}
		})
	}
	acting, still := context.WithCancel(all) // context of storms and orders
	ordering, enough := context.WithCancel(all)
	defer enough()
	defer context.AfterFunc(ctx, enough)() // an interrupt ends all waiting
	var hands sync.WaitGroup
	hands.Go(func() { f.reportLoop(acting) })
	hands.Go(func() { f.stormLoop(acting) })
	hands.Go(func() { f.commandLoop(acting, ordering) })
	for _, t := range f.devices {
		hands.Go(func() { t.sendEvents(acting) })
	}
	f.wait(ctx, all)
	f.breaking.Store(false)
	still()
	hands.Wait()
	for _, t := range f.devices { // a stalled connection would be counted as connected
		for _, l := range t.stalledConns() {
			l.reset()
		}
	}
	f.sendTime.Store(int64(f.elapsed()))
	f.orders.Wait()
	f.waitForReconnects(ctx, all)
	r := f.snapshot()
	r.OK = r.Devices.MQTT+r.Devices.HTTPS == r.Devices.Planned && len(r.GaveUp) == 0
	stop()
	devices.Wait()
	if errors.Is(failure, context.Canceled) {
		failure = nil
	}
	return r, failure
}

// wait waits until the duration has passed, ctx ends, or a device cannot start.
func (f *fleet) wait(ctx, all context.Context) {
	var over <-chan time.Time
	if f.plan.Duration > 0 {
		t := time.NewTimer(f.plan.Ramp + f.plan.Duration)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-over:
	case <-ctx.Done():
	case <-all.Done():
	}
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// waitForReconnects waits for devices without a connection to reconnect.
func (f *fleet) waitForReconnects(ctx, all context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reconnectTimeout)
	defer cancel()
	defer context.AfterFunc(all, cancel)()
	for {
		r := f.snapshot()
		gone := 0
		for _, n := range r.GaveUp {
			gone += n
		}
		if r.Devices.MQTT+r.Devices.HTTPS+gone >= r.Devices.Planned {
			return
		}
		select {
		case <-f.returnedSignal:
		case <-ctx.Done():
			return
		}
	}
}

func (f *fleet) reportLoop(ctx context.Context) {
	for f.hooks.OnReport != nil && sleep(ctx, f.hooks.ReportEvery) {
		f.hooks.OnReport(f.snapshot())
	}
}

// stormLoop breaks all connections at intervals.
func (f *fleet) stormLoop(ctx context.Context) {
	if f.plan.StormEvery == 0 || !sleep(ctx, f.plan.Ramp) {
		return
	}
	for sleep(ctx, f.plan.StormEvery) {
		var lines []*conn
		s := &storm{number: -1, at: time.Now()}
		f.mu.Lock()
		for _, t := range f.devices {
			if l := t.hitByStorm(s); l != nil {
				lines = append(lines, l)
			}
		}
		s.missing = len(lines)
		if len(f.storms) < maxStorms && s.missing > 0 {
			s.number = len(f.storms)
			f.storms = append(f.storms, Storm{At: s.at.Sub(f.start).Seconds(), Devices: s.missing})
		}
		f.mu.Unlock()
		for _, l := range lines {
			l.breakConn()
		}
	}
}

// returned is called when a device has reconnected after a storm.
func (f *fleet) returned(s *storm) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.missing--; s.missing == 0 && s.number >= 0 {
		f.storms[s.number].RecoveryMS = float64(time.Since(s.at).Microseconds()) / 1000
	}
}

// commandLoop sends commands to the devices in round robin until ctx ends; commands in progress then end with life.
func (f *fleet) commandLoop(ctx, life context.Context) {
	if f.plan.CommandRate == 0 || !sleep(ctx, f.plan.Ramp) {
		return
	}
	every := time.Duration(float64(time.Second) / f.plan.CommandRate)
	hands := make(chan struct{}, maxCommands)
	for n, due := 0, time.Now(); sleep(ctx, time.Until(due)); n, due = n+1, due.Add(every) {
		id := f.devices[n%len(f.devices)].id()
		if id == "" {
			continue
		}
		select {
		case hands <- struct{}{}:
		default:
			f.commands.late.Add(1)
			continue
		}
		f.orders.Go(func() {
			defer func() { <-hands }()
			err := f.hooks.Order(life, id, Function, fmt.Appendf(nil, `{"n":%d}`, n))
			if life.Err() != nil { // its result is not counted
				return
			}
			if f.commands.done(due, err); err != nil {
				f.hooks.Log.Warn("command not done", slog.String("device", string(id)), slog.Any("err", err))
			}
		})
	}
}

// elapsed returns for how long events and commands have been sent.
func (f *fleet) elapsed() time.Duration {
	if d := f.sendTime.Load(); d > 0 {
		return time.Duration(d)
	}
	return max(time.Since(f.start)-f.plan.Ramp, 0)
}

func (a *opStats) done(due time.Time, err error) {
	if err != nil {
		a.refused.add(err)
		return
	}
	a.latency.add(time.Since(due))
}

func (a *opStats) snapshot(over time.Duration) Operations {
	t := a.latency.latency()
	out := Operations{Done: t.Count, Latency: t, Late: int(a.late.Load()), Refused: a.refused.all()}
	if over > 0 {
		out.Rate = float64(t.Count) / over.Seconds()
	}
	return out
}

// snapshot returns the report of the run so far.
func (f *fleet) snapshot() Report {
	acting := f.elapsed()
	r := Report{
		Seconds: time.Since(f.start).Seconds(), GaveUp: f.ended.all(), Events: f.events.snapshot(acting), Commands: f.commands.snapshot(acting),
		Devices:     Devices{Planned: f.plan.Devices, Begun: int(f.begun.Load()), Enrolled: int(f.enrolled.Load())},
		Connections: Connections{Made: int(f.made.Load()), Broken: int(f.broken.Load()), Stalled: int(f.stalled.Load()), Slow: int(f.slow.Load()), Reconnect: f.reconnects.latency()},
	}
	for _, t := range f.devices {
		switch t.currentTransport() {
		case "mqtt":
			r.Devices.MQTT++
		case "https":
			r.Devices.HTTPS++
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Storms = append([]Storm{}, f.storms...)
	return r
}

// folder returns the folder of the device with that number.
func (f *fleet) folder(n int) string { return filepath.Join(f.hooks.Dir, fmt.Sprintf("%05d", n)) }

// open opens a device, and enrolls it if needed.
func (f *fleet) open(ctx context.Context, t *simDevice) (*device.Device, error) {
	d, err := device.OpenWith(f.folder(t.number), device.Options{
		Log: f.hooks.Log, Connected: t.connected, Dial: t.dial,
		Revoked: func(time.Duration) { t.giveUp(watchword.Refuse(watchword.SubjectRevoked, "the device is revoked")) },
	})
	if err != nil || d.Enrolled() {
		return d, err
	}
	select {
	case f.enrolling <- struct{}{}:
		defer func() { <-f.enrolling }()
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), d.Close())
	}
	link, err := f.hooks.Link(ctx, t.number)
	if err == nil {
		err = d.Enroll(ctx, link)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	f.enrolled.Add(1)
	return d, nil
}
