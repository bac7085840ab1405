// Package sim simulates many devices. Each is a device of package device with its own keys and folder. The devices start during a
// ramp, publish events and execute commands, and their connections break: single ones at random, or all at once (a storm). A run
// returns a report of counts and latencies.
package sim

import (
	"context"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword"
)

// MaxDevices is the maximum number of devices in one run.
const MaxDevices = 20_000

// MaxEvent is the maximum size of an event, in bytes.
const MaxEvent = 32 << 10

const daySeconds = 24 * 60 * 60

// Plan describes a run. A field with its zero value disables its part.
type Plan struct {
	Devices      int           // 1 to MaxDevices
	EventRate    float64       // events a second, of all devices together
	EventBytes   int           // size of an event in bytes, at most MaxEvent; 0 means 64
	Ramp         time.Duration // time over which the devices start
	Duration     time.Duration // duration after the ramp; 0: until the context ends
	StormEvery   time.Duration // interval at which all connections break at once
	Lossy        float64       // share of devices with lossy connections, 0 to 1
	ConnLifetime time.Duration // mean lifetime of a lossy connection; 0 means 10 s
	CommandRate  float64       // commands a second, to the devices in round robin; needs Hooks.Order
	Seed         uint64        // of the random number generator
}

// Check validates a plan. Code: bad_request, with the field.
func (p Plan) Check() error {
	switch {
	case p.Devices < 1 || p.Devices > MaxDevices:
		return watchword.RefuseField("devices", "must be 1 to %d", MaxDevices)
	case !(p.EventRate >= 0 && p.EventRate <= 1e6) || p.EventRate > 0 && float64(p.Devices)/p.EventRate > daySeconds: // also refuses NaN
		return watchword.RefuseField("rate", "must be 0 to 1000000 events a second, or at least one of each device a day")
	case p.EventBytes < 0 || p.EventBytes > MaxEvent:
		return watchword.RefuseField("size", "must be 0 to %d bytes", MaxEvent)
	case !(p.CommandRate >= 0 && p.CommandRate <= 1e5) || p.CommandRate > 0 && 1/p.CommandRate > daySeconds:
		return watchword.RefuseField("commands", "must be 0 to 100000 a second, or at least one a day")
	case !(p.Lossy >= 0 && p.Lossy <= 1):
		return watchword.RefuseField("lossy", "must be 0 to 1, or 0%% to 100%%")
	case p.Ramp < 0 || p.Duration < 0:
		return watchword.RefuseField("ramp", "must not be negative")
	case p.StormEvery != 0 && p.StormEvery < time.Second:
		return watchword.RefuseField("storm", "must be at least 1s")
	case p.ConnLifetime != 0 && p.ConnLifetime < 100*time.Millisecond:
		return watchword.RefuseField("line", "must be at least 100ms")
	}
	return nil
}

// Hooks are the functions and settings that a run needs besides its plan.
type Hooks struct {
	// Dir is the folder of the devices' folders. A device that is enrolled there already is used unchanged.
	Dir string
	// Link returns a link that enrolls the device with number n, counted from 0.
	Link func(ctx context.Context, n int) (string, error)
	// Order orders a command with this function and these arguments, and waits for its receipt.
	Order func(ctx context.Context, to watchword.SubjectID, function string, args []byte) error
	// OnReport, if not nil, is called with the report so far at the interval ReportEvery. It must not block for long.
	OnReport    func(Report)
	ReportEvery time.Duration // 0 means 5 s
	Log         *slog.Logger  // of the devices; nil means none
}

// Function is the function of each device: it returns its arguments.
const Function = "sim.echo"

// Stream is the stream to which each device publishes its events.
const Stream = "sim"
