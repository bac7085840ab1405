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

// MaxDevices is how many devices one run may have.
const MaxDevices = 20_000

// MaxEvent is how large an event may be, in bytes.
const MaxEvent = 32 << 10

const daySeconds = 24 * 60 * 60

// Plan is what is to be done. The zero value of a field leaves its part out.
type Plan struct {
	Devices      int           // 1 to MaxDevices
	EventRate    float64       // events a second, of all devices together
	EventBytes   int           // bytes of an event, at most MaxEvent; 0 means 64
	Ramp         time.Duration // over which the devices begin
	Duration     time.Duration // how long it goes on after the ramp; 0: until the context ends
	StormEvery   time.Duration // every so often all lines break at once
	Lossy        float64       // the share of devices whose lines are bad, 0 to 1
	ConnLifetime time.Duration // how long a bad line holds, in the mean; 0 means 10 s
	CommandRate  float64       // a second, to devices by turns; wants Parts.Order
	Seed         uint64        // of what is left to chance
}

// Check says what is wrong with a plan. Code: bad_request, with the field.
func (p Plan) Check() error {
	switch {
	case p.Devices < 1 || p.Devices > MaxDevices:
		return watchword.RefuseField("devices", "must be 1 to %d", MaxDevices)
	case !(p.EventRate >= 0 && p.EventRate <= 1e6) || p.EventRate > 0 && float64(p.Devices)/p.EventRate > daySeconds: // NaN is neither
		return watchword.RefuseField("rate", "must be 0 to 1000000 events a second, or at least one of each device a day")
	case p.EventBytes < 0 || p.EventBytes > MaxEvent:
		return watchword.RefuseField("size", "must be 0 to %d bytes", MaxEvent)
	case !(p.CommandRate >= 0 && p.CommandRate <= 1e5) || p.CommandRate > 0 && 1/p.CommandRate > daySeconds:
		return watchword.RefuseField("commands", "must be 0 to 100000 a second, or at least one a day")
	case !(p.Lossy >= 0 && p.Lossy <= 1):
		return watchword.RefuseField("lossy", "must be 0 to 1, or 0%% to 100%%")
	case p.Ramp < 0 || p.Duration < 0:
		return watchword.RefuseField("ramp", "no time is negative")
	case p.StormEvery != 0 && p.StormEvery < time.Second:
		return watchword.RefuseField("storm", "must be a second or more")
	case p.ConnLifetime != 0 && p.ConnLifetime < 100*time.Millisecond:
		return watchword.RefuseField("line", "must be 100ms or more")
	}
	return nil
}

// Hooks is what a run needs beside its plan.
type Hooks struct {
	// Dir is where the devices' folders are, or come to be. A device that is enrolled
	// there already goes on as it is.
	Dir string
	// Link returns a link that enrolls the device of that number, counted from 0.
	Link func(ctx context.Context, n int) (string, error)
	// Order sends a command with this function and arguments, and waits for its receipt.
	Order func(ctx context.Context, to watchword.SubjectID, function string, args []byte) error
	// OnReport, if not nil, hears every Every what was seen so far. It must not wait long.
	OnReport    func(Report)
	ReportEvery time.Duration // 0 means 5 s
	Log         *slog.Logger  // of the devices; nil means none
}

// Function is what each device can be asked to do: it returns its arguments.
const Function = "sim.echo"

// Stream is where each device reports its events.
const Stream = "sim"
