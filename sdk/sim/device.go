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

// simDevice is one device of a run.
type simDevice struct {
	fleet  *fleet
	number int
	lossy  bool // its connections are lossy

	mu           sync.Mutex
	dev          *device.Device // nil until it is enrolled
	conns        map[*conn]struct{}
	mqttConn     *conn     // the current MQTT connection, or nil
	transport    string    // "mqtt", "https", or "" if it has no connection
	offlineSince time.Time // time since which it has had no unbroken connection
	storm        *storm    // the storm from which it has not reconnected yet
	ended        bool      // it will not reconnect
}

// run runs the device, from its time in the ramp on.
func (sd *simDevice) run(ctx context.Context) error {
	f := sd.fleet
	if !sleep(ctx, time.Duration(int64(f.plan.Ramp)*int64(sd.number)/int64(f.plan.Devices))) {
		return nil
	}
	f.begun.Add(1)
	d, err := f.open(ctx, sd)
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
	sd.mu.Lock()
	sd.dev = d
	sd.mu.Unlock()
	if err = d.Run(ctx); err != nil && ctx.Err() == nil {
		sd.giveUp(err)
	}
	return d.Close()
}

// sendEvents sends the device's events, each at its scheduled time.
func (sd *simDevice) sendEvents(ctx context.Context) {
	f := sd.fleet
	if f.plan.EventRate == 0 {
		return
	}
	every := time.Duration(float64(f.plan.Devices) / f.plan.EventRate * float64(time.Second))
	var phase float64
	sd.random(func(r *rand.Rand) { phase = r.Float64() })
	if !sleep(ctx, f.plan.Ramp+time.Duration(phase*float64(every))) {
		return
	}
	event := []byte(`{"n":` + strings.Repeat("0", max(f.plan.EventBytes-6, 1)) + `}`)
	event[5] = '1'
	for due := time.Now(); sleep(ctx, time.Until(due)); due = due.Add(every) {
		if late := int(time.Since(due) / every); late > maxBacklog {
			f.events.late.Add(int64(late))
			due = due.Add(time.Duration(late) * every)
		}
		sd.mu.Lock()
		d := sd.dev
		sd.mu.Unlock()
		if d == nil {
			f.events.late.Add(1)
			continue
		}
		err := d.Publish(ctx, Stream, event)
		if ctx.Err() != nil {
			return
		}
		if f.events.done(due, err); err != nil {
			f.hooks.Log.Warn("event not taken", slog.String("device", string(d.ID())), slog.Any("err", err))
		}
	}
}

// random calls f with the run's random number generator.
func (sd *simDevice) random(f func(*rand.Rand)) {
	sd.fleet.randomMu.Lock()
	defer sd.fleet.randomMu.Unlock()
	f(sd.fleet.random)
}

func (sd *simDevice) id() watchword.SubjectID {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.dev == nil {
		return ""
	}
	return sd.dev.ID()
}

func (sd *simDevice) mqttAddress() string {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.dev == nil {
		return ""
	}
	return sd.dev.MQTT()
}

func (sd *simDevice) currentTransport() string {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	return sd.transport
}

// connOpened is called for each new connection.
func (sd *simDevice) connOpened(l *conn) {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.conns == nil {
		sd.conns = map[*conn]struct{}{}
	}
	sd.conns[l] = struct{}{}
	if l.mqtt {
		sd.fleet.made.Add(1)
		sd.mqttConn = l
	}
}

// stalledConns returns the device's stalled connections.
func (sd *simDevice) stalledConns() (out []*conn) {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	for l := range sd.conns {
		if l.stalled.Load() {
			out = append(out, l)
		}
	}
	return out
}

// connClosed is called when a connection was closed by either side.
func (sd *simDevice) connClosed(l *conn) {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	delete(sd.conns, l)
	if sd.mqttConn == l {
		sd.mqttConn, sd.transport = nil, ""
	}
}

// connBroken is called when the simulation has broken a connection.
func (sd *simDevice) connBroken(l *conn) {
	sd.fleet.broken.Add(1)
	if l.stalled.Load() {
		sd.fleet.stalled.Add(1)
	}
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.mqttConn == l && sd.offlineSince.IsZero() {
		sd.offlineSince = time.Now()
	}
}

// hitByStorm returns the connection of the device that a storm breaks, nil if it has none.
func (sd *simDevice) hitByStorm(s *storm) *conn {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.mqttConn == nil || sd.transport == "" || sd.storm != nil {
		return nil
	}
	sd.storm = s
	return sd.mqttConn
}

// connected is called by the SDK when the device has connected.
func (sd *simDevice) connected(over string) {
	sd.mu.Lock()
	if over == "mqtt" && sd.mqttConn == nil { // it was broken at this moment
		sd.mu.Unlock()
		return
	}
	sd.transport = over
	since, s := sd.offlineSince, sd.storm
	sd.offlineSince, sd.storm = time.Time{}, nil
	sd.mu.Unlock()
	if !since.IsZero() {
		sd.fleet.reconnects.add(time.Since(since))
	}
	if s != nil {
		sd.fleet.returned(s)
	}
	select {
	case sd.fleet.returnedSignal <- struct{}{}:
	default:
	}
}

// giveUp counts once a device that will not reconnect; the other devices go on.
func (sd *simDevice) giveUp(err error) {
	sd.mu.Lock()
	first := !sd.ended
	sd.ended, sd.transport = true, ""
	sd.mu.Unlock()
	if !first {
		return
	}
	sd.fleet.ended.add(err)
	select {
	case sd.fleet.returnedSignal <- struct{}{}:
	default:
	}
}
