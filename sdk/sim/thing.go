package sim

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

// thing is one device of a run.
type thing struct {
	fleet  *fleet
	number int
	bad    bool // its lines are

	mu    sync.Mutex
	dev   *device.Device // nil until it is enrolled
	lines map[*line]struct{}
	line  *line     // for MQTT, while there is one
	where string    // "mqtt", "https", or "" while it is neither
	away  time.Time // since when it has been without a line that was broken
	storm *storm    // it has not come back from
	gone  bool      // it will not come back
}

// live is the device's life, from its place in the ramp on.
func (t *thing) live(ctx context.Context) error {
	f := t.fleet
	if !sleep(ctx, time.Duration(int64(f.plan.Ramp)*int64(t.number)/int64(f.plan.Devices))) {
		return nil
	}
	f.begun.Add(1)
	d, err := f.open(ctx, t)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	d.Handle(Function, func(_ context.Context, c *device.Command) (any, error) {
		var args map[string]any
		if err := c.Args(&args); err != nil {
			return nil, device.Refuse("bad_args", err)
		}
		return args, nil
	})
	t.mu.Lock()
	t.dev = d
	t.mu.Unlock()
	if err = d.Run(ctx); err != nil && ctx.Err() == nil {
		t.ended(err)
	}
	return d.Close()
}

// report sends the device's events, each at its time.
func (t *thing) report(ctx context.Context) {
	f := t.fleet
	if f.plan.Rate == 0 {
		return
	}
	every := time.Duration(float64(f.plan.Devices) / f.plan.Rate * float64(time.Second))
	var phase float64
	t.chance(func(r *rand.Rand) { phase = r.Float64() })
	if !sleep(ctx, f.plan.Ramp+time.Duration(phase*float64(every))) {
		return
	}
	event := []byte(`{"n":` + strings.Repeat("0", max(f.plan.Size-6, 1)) + `}`)
	event[5] = '1'
	for due := time.Now(); sleep(ctx, time.Until(due)); due = due.Add(every) {
		if late := int(time.Since(due) / every); late > behind {
			f.events.late.Add(int64(late))
			due = due.Add(time.Duration(late) * every)
		}
		t.mu.Lock()
		d := t.dev
		t.mu.Unlock()
		if d == nil {
			f.events.late.Add(1)
			continue
		}
		err := d.Publish(ctx, Stream, event)
		if ctx.Err() != nil {
			return
		}
		if f.events.done(due, err); err != nil {
			f.parts.Log.Warn("event not taken", slog.String("device", string(d.ID())), slog.Any("err", err))
		}
	}
}

// chance lets f draw from the run's random numbers.
func (t *thing) chance(f func(*rand.Rand)) {
	t.fleet.chance.Lock()
	defer t.fleet.chance.Unlock()
	f(t.fleet.random)
}

func (t *thing) id() watchword.SubjectID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dev == nil {
		return ""
	}
	return t.dev.ID()
}

func (t *thing) mqttAddress() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dev == nil {
		return ""
	}
	return t.dev.MQTT()
}

func (t *thing) over() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.where
}

// open is told of each line.
func (t *thing) open(l *line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines == nil {
		t.lines = map[*line]struct{}{}
	}
	t.lines[l] = struct{}{}
	if l.mqtt {
		t.fleet.made.Add(1)
		t.line = l
	}
}

// dead returns the device's lines that nothing goes through.
func (t *thing) dead() (out []*line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.lines {
		if l.dead.Load() {
			out = append(out, l)
		}
	}
	return out
}

// shut is told of the end of each line, whoever ended it.
func (t *thing) shut(l *line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.lines, l)
	if t.line == l {
		t.line, t.where = nil, ""
	}
}

// broke is told of the end of a line that the simulation ended.
func (t *thing) broke(l *line) {
	t.fleet.broken.Add(1)
	if l.dead.Load() {
		t.fleet.silent.Add(1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.line == l && t.away.IsZero() {
		t.away = time.Now()
	}
}

// hit returns the line of a device that a storm hits, nil where there is none.
func (t *thing) hit(s *storm) *line {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.line == nil || t.where == "" || t.storm != nil {
		return nil
	}
	t.storm = s
	return t.line
}

// connected is the device's word.
func (t *thing) connected(over string) {
	t.mu.Lock()
	if over == "mqtt" && t.line == nil { // it broke just now
		t.mu.Unlock()
		return
	}
	t.where = over
	since, s := t.away, t.storm
	t.away, t.storm = time.Time{}, nil
	t.mu.Unlock()
	if !since.IsZero() {
		t.fleet.back.took(time.Since(since))
	}
	if s != nil {
		t.fleet.returned(s)
	}
	select {
	case t.fleet.moved <- struct{}{}:
	default:
	}
}

// ended counts a device that will not come back, once; the others go on.
func (t *thing) ended(err error) {
	t.mu.Lock()
	first := !t.gone
	t.gone, t.where = true, ""
	t.mu.Unlock()
	if !first {
		return
	}
	t.fleet.ended.add(err)
	select {
	case t.fleet.moved <- struct{}{}:
	default:
	}
}
