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

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

// The bounds of a run.
const (
	enrollAtOnce = 16
	orderAtOnce  = 1024
	maxStorms    = 1000             // that a report lists
	settling     = 90 * time.Second // for all to be back at the end: a device waits for up to a minute
	behind       = 10               // events that a device may be late with before it leaves some out
)

// fleet is a run.
type fleet struct {
	plan   Plan
	parts  Parts
	start  time.Time
	things []*thing

	enrolling chan struct{}
	breaking  atomic.Bool  // lines may still break
	acted     atomic.Int64 // how long events and commands were sent, once that is over
	begun     atomic.Int64
	enrolled  atomic.Int64
	made      atomic.Int64
	broken    atomic.Int64
	silent    atomic.Int64
	slow      atomic.Int64
	back      clockwork
	events    acts
	commands  acts
	ended     tally

	mu     sync.Mutex
	storms []Storm
	moved  chan struct{} // has a word in it after a device was back
	random *rand.Rand    // under chance
	chance sync.Mutex
	orders sync.WaitGroup // under way
}

type acts struct {
	took    clockwork
	late    atomic.Int64
	refused tally
}

// storm is a break of all lines, until all are back.
type storm struct {
	number  int // in storms, -1 where the list is full
	at      time.Time
	missing int
}

// Run does what p says until it is over or ctx ends, and returns what was seen. All
// devices are closed when it returns. Codes: bad_request, those of enrollment, and
// those of opening the folders.
func Run(ctx context.Context, p Plan, parts Parts) (Report, error) {
	if err := p.Check(); err != nil {
		return Report{}, err
	}
	if p.Commands > 0 && parts.Order == nil {
		return Report{}, watchword.RefuseField("commands", "nobody here may order")
	}
	if p.Size == 0 {
		p.Size = 64
	}
	if p.Line == 0 {
		p.Line = 10 * time.Second
	}
	if parts.Every == 0 {
		parts.Every = 5 * time.Second
	}
	if parts.Log == nil {
		parts.Log = slog.New(slog.DiscardHandler)
	}
	f := &fleet{
		plan: p, parts: parts, start: time.Now(), enrolling: make(chan struct{}, enrollAtOnce), moved: make(chan struct{}, 1), random: rand.New(rand.NewPCG(p.Seed, 1)),
	}
	f.breaking.Store(true)
	return f.run(ctx)
}

func (f *fleet) run(ctx context.Context) (Report, error) {
	for n := range f.plan.Devices {
		f.things = append(f.things, &thing{fleet: f, number: n, bad: f.random.Float64() < f.plan.Lossy})
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx)) // of the devices: they are looked at before they go
	defer stop()
	g, all := errgroup.WithContext(life)
	for _, t := range f.things {
		g.Go(func() error { return t.live(all) })
	}
	acting, still := context.WithCancel(all) // of what is done to them
	ordering, enough := context.WithCancel(all)
	defer enough()
	defer context.AfterFunc(ctx, enough)() // then nobody wants to wait any more
	var hands sync.WaitGroup
	hands.Go(func() { f.tell(acting) })
	hands.Go(func() { f.blow(acting) })
	hands.Go(func() { f.order(acting, ordering) })
	for _, t := range f.things {
		hands.Go(func() { t.report(acting) })
	}
	f.wait(ctx, all)
	f.breaking.Store(false)
	still()
	hands.Wait()
	for _, t := range f.things { // a dead line would pass for one that is there
		for _, l := range t.dead() {
			l.snap()
		}
	}
	f.acted.Store(int64(f.acting()))
	f.orders.Wait()
	f.settle(ctx, all)
	r := f.look()
	r.OK = r.Devices.MQTT+r.Devices.HTTPS == r.Devices.Planned && len(r.Ended) == 0
	stop()
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return r, err
}

// wait is until the time is over, somebody interrupts, or a device cannot even begin.
func (f *fleet) wait(ctx, all context.Context) {
	var over <-chan time.Time
	if f.plan.For > 0 {
		t := time.NewTimer(f.plan.Ramp + f.plan.For)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-over:
	case <-ctx.Done():
	case <-all.Done():
	}
}

// sleep reports false where ctx ended first.
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

// settle gives those that are away the time to come back.
func (f *fleet) settle(ctx, all context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	defer context.AfterFunc(all, cancel)()
	for {
		r := f.look()
		gone := 0
		for _, n := range r.Ended {
			gone += n
		}
		if r.Devices.MQTT+r.Devices.HTTPS+gone >= r.Devices.Planned {
			return
		}
		select {
		case <-f.moved:
		case <-ctx.Done():
			return
		}
	}
}

func (f *fleet) tell(ctx context.Context) {
	for f.parts.Tell != nil && sleep(ctx, f.parts.Every) {
		f.parts.Tell(f.look())
	}
}

// blow breaks all lines every so often.
func (f *fleet) blow(ctx context.Context) {
	if f.plan.Storm == 0 || !sleep(ctx, f.plan.Ramp) {
		return
	}
	for sleep(ctx, f.plan.Storm) {
		var lines []*line
		s := &storm{number: -1, at: time.Now()}
		f.mu.Lock()
		for _, t := range f.things {
			if l := t.hit(s); l != nil {
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
			l.cut()
		}
	}
}

// returned is told by a device that a storm had hit.
func (f *fleet) returned(s *storm) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.missing--; s.missing == 0 && s.number >= 0 {
		f.storms[s.number].Back = float64(time.Since(s.at).Microseconds()) / 1000
	}
}

// order sends commands to the devices by turns until ctx ends; those that are under way
// then end with life.
func (f *fleet) order(ctx, life context.Context) {
	if f.plan.Commands == 0 || !sleep(ctx, f.plan.Ramp) {
		return
	}
	every := time.Duration(float64(time.Second) / f.plan.Commands)
	hands := make(chan struct{}, orderAtOnce)
	for n, due := 0, time.Now(); sleep(ctx, time.Until(due)); n, due = n+1, due.Add(every) {
		id := f.things[n%len(f.things)].id()
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
			err := f.parts.Order(life, id, Function, fmt.Appendf(nil, `{"n":%d}`, n))
			if life.Err() != nil { // nobody waited for its end
				return
			}
			if f.commands.done(due, err); err != nil {
				f.parts.Log.Warn("command not done", slog.String("device", string(id)), slog.Any("err", err))
			}
		})
	}
}

// acting is how long events and commands have been sent.
func (f *fleet) acting() time.Duration {
	if d := f.acted.Load(); d > 0 {
		return time.Duration(d)
	}
	return max(time.Since(f.start)-f.plan.Ramp, 0)
}

func (a *acts) done(due time.Time, err error) {
	if err != nil {
		a.refused.add(err)
		return
	}
	a.took.took(time.Since(due))
}

func (a *acts) look(over time.Duration) Acts {
	t := a.took.times()
	out := Acts{Done: t.Count, Took: t, Late: int(a.late.Load()), Refused: a.refused.all()}
	if over > 0 {
		out.Rate = float64(t.Count) / over.Seconds()
	}
	return out
}

// look is what was seen so far.
func (f *fleet) look() Report {
	acting := f.acting()
	r := Report{
		Seconds: time.Since(f.start).Seconds(), Ended: f.ended.all(), Events: f.events.look(acting), Commands: f.commands.look(acting),
		Devices: Devices{Planned: f.plan.Devices, Begun: int(f.begun.Load()), Enrolled: int(f.enrolled.Load())},
		Lines:   Lines{Made: int(f.made.Load()), Broken: int(f.broken.Load()), Silent: int(f.silent.Load()), Slow: int(f.slow.Load()), Back: f.back.times()},
	}
	for _, t := range f.things {
		switch t.over() {
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

// folder is where the device of that number lives.
func (f *fleet) folder(n int) string { return filepath.Join(f.parts.Dir, fmt.Sprintf("%05d", n)) }

// open opens a device, and enrolls it unless it is.
func (f *fleet) open(ctx context.Context, t *thing) (*device.Device, error) {
	d, err := device.OpenWith(f.folder(t.number), device.Options{
		Log: f.parts.Log, Connected: t.connected, Dial: t.dial,
		Revoked: func(time.Duration) { t.ended(watchword.Refuse(watchword.SubjectRevoked, "the device is revoked")) },
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
	link, err := f.parts.Link(ctx, t.number)
	if err == nil {
		err = d.Enroll(ctx, link)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	f.enrolled.Add(1)
	return d, nil
}
