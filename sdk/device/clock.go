package device

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// How a device goes by the server's word for the time.
const (
	clockTrip  = 10 * time.Second // a question and its answer; half of it is the error
	clockAsk   = 4 * time.Hour    // asked again: crystals drift
	clockGood  = 48 * time.Hour   // without a further answer
	clockRetry = time.Minute      // after no answer
	clockAgree = 30 * time.Second // the own clock is right where it is no further off
)

// clock is what a device knows of the time beside its own clock: what the server
// signed last, and how long that is ago by the monotonic clock.
type clock struct {
	asking sync.Mutex // one question at a time; before mu

	mu     sync.Mutex
	signed time.Time // zero: nothing that counts
	mark   time.Time // its moment by the monotonic clock
	wall   time.Time // and by the own one, right or wrong
	asked  time.Time // the last question, by the monotonic clock
	floor  time.Time // the last signed time, also of an earlier run
	warned bool

	mono func() time.Time // nil means time.Now
}

func (c *clock) monotonic() time.Time {
	if c.mono != nil {
		return c.mono()
	}
	return time.Now()
}

// reading returns the signed time of this moment. It ends where the own clock and
// the monotonic one part: then the device slept, or somebody set its clock.
func (c *clock) reading(wall time.Time) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.signed.IsZero() {
		return time.Time{}, false
	}
	gone := c.monotonic().Sub(c.mark)
	if apart := wall.Round(0).Sub(c.wall) - gone; gone > clockGood || apart.Abs() > token.Skew {
		c.signed, c.asked = time.Time{}, time.Time{}
		return time.Time{}, false
	}
	return c.signed.Add(gone), true
}

// noSooner returns a moment that has certainly passed.
func (c *clock) noSooner() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}

// Time returns the time as the device knows it: by its own clock, or by the
// server's signed word where it has none, or one that is wrong. The zero time where
// it does not know.
func (d *Device) Time() time.Time { return d.now() }

// now returns the time where it is known, and the zero time where it is not: on a
// device without a clock, or with one that is plainly wrong, before the server
// said what time it is.
func (d *Device) now() time.Time { return d.nowUnder(d.trust.Load()) }

func (d *Device) nowUnder(t *token.Trust) time.Time {
	wall := d.o.Now()
	if at, ok := d.clock.reading(wall); ok {
		return at
	}
	if d.o.NoClock || plainlyWrong(wall, t) {
		return time.Time{}
	}
	return wall
}

// plainlyWrong reports whether a clock lies before what the root has signed already.
func plainlyWrong(wall time.Time, t *token.Trust) bool {
	return t != nil && wall.Before(t.Issued.Add(-token.Skew))
}

// reckon returns the best word on the time that there is: to sign with, never to
// judge by.
func (d *Device) reckon() time.Time { return d.reckonUnder(d.trust.Load()) }

func (d *Device) reckonUnder(t *token.Trust) time.Time {
	if at := d.nowUnder(t); !at.IsZero() {
		return at
	}
	best := d.o.Now()
	if floor := d.clock.noSooner(); floor.After(best) {
		best = floor
	}
	if t != nil && t.Issued.After(best) {
		best = t.Issued
	}
	return best
}

// over reports whether an end has certainly passed: by the time where it is known,
// and else by the last that the server signed, so that a device without a clock
// takes nothing after a reboot that was over before it.
func (d *Device) over(end time.Time) bool {
	at := d.now()
	if at.IsZero() {
		at = d.clock.noSooner()
	}
	return at.After(end.Add(token.Skew))
}

// byNonce reports whether only a nonce shows that a command is fresh. The caller
// holds memory.
func (d *Device) byNonce() bool { return d.journal.lost || d.now().IsZero() }

// roadTo is [transport] under the device's own word on the time, and never before
// the trust bundle.
func (d *Device) roadTo(t *token.Trust) (*http.Transport, error) {
	tr, err := transport(t, d.nowUnder(t), d.connect)
	if err != nil {
		return nil, err
	}
	tr.TLSClientConfig.Time = func() time.Time {
		if at := d.nowUnder(t); at.After(t.Issued) {
			return at
		}
		return t.Issued
	}
	return tr, nil
}

// AskTime asks the server for the time where the device does not know it: for those
// who make assertions by themselves. [Device.Run] and tokens do it as they need it.
func (d *Device) AskTime(ctx context.Context) { d.tellTime(ctx) }

// tellTime asks the server for the time where the device does not know it, and
// every few hours where it goes by the server's word. Without an answer it goes
// on as it is, by nonce.
func (d *Device) tellTime(ctx context.Context) {
	if d.id == nil {
		return
	}
	d.clock.asking.Lock()
	defer d.clock.asking.Unlock()
	if !d.timeDue() {
		return
	}
	d.hearTime(ctx, d.id.HTTPS, d.trust.Load())
}

func (d *Device) timeDue() bool {
	_, known := d.clock.reading(d.o.Now())
	if !known && !d.now().IsZero() {
		return false // its own clock does
	}
	pause := clockRetry
	if known {
		pause = clockAsk
	}
	return d.clock.askedBefore(pause)
}

// askedBefore reports whether the last question is longer ago than pause.
func (c *clock) askedBefore(pause time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked.IsZero() || c.monotonic().Sub(c.asked) > pause
}

// doubtTime is told how the server answered what was signed just now. Where it
// found that from the past or the future, the device asks for the time. It
// reports whether it knows better than before.
func (d *Device) doubtTime(ctx context.Context, err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.TokenEarly, watchword.TokenExpired:
	default:
		return false
	}
	d.clock.asking.Lock()
	defer d.clock.asking.Unlock()
	if !d.clock.askedBefore(clockRetry) || d.over(d.trust.Load().Expires) {
		return false // a bundle that is over does not say what time it is
	}
	return d.hearTime(ctx, d.id.HTTPS, d.trust.Load())
}

// onTime gets a token under the right time: known before, or asked for once where
// the server does not agree.
func (d *Device) onTime(ctx context.Context, get func(context.Context) error) error {
	if err := d.revoked.refused(); err != nil {
		return err // every request with a token comes here first
	}
	d.tellTime(ctx)
	err := get(ctx)
	if err != nil && d.doubtTime(ctx, err) {
		return get(ctx)
	}
	return err
}

// hearTime is [Device.askTime] where no answer is no error: the device goes on as
// it is.
func (d *Device) hearTime(ctx context.Context, server string, t *token.Trust) bool {
	better, err := d.askTime(ctx, server, t)
	if err != nil && ctx.Err() == nil {
		d.o.Log.Info("no signed time", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
	return better
}

// askTime asks a server for the time, signed under the time keys of t for a fresh
// nonce, and reports whether the device goes by another time from now on. Nobody
// need be trusted to carry the answer: it can be held back for [clockTrip] at most,
// and is no other's. The caller holds asking. Codes: those of [token.VerifyTime];
// timed_out; token_expired where the answer lies before what the root has signed.
func (d *Device) askTime(ctx context.Context, server string, t *token.Trust) (better bool, err error) {
	c := &d.clock
	began := c.monotonic()
	c.mu.Lock()
	c.asked = began
	c.mu.Unlock()
	nonce := watchword.NewNonce()
	body, err := json.Marshal(api.TimeRequest{Nonce: nonce})
	if err != nil {
		return false, err
	}
	within, cancel := context.WithTimeoutCause(ctx, clockTrip, watchword.Refuse(watchword.TimedOut, "no signed time came within %s", clockTrip))
	defer cancel()
	rc, _ := d.stranger(server)
	a, err := rc.Do(within, rest.Request{Method: http.MethodPost, Path: "/v1/time", Type: "application/json", Body: body, Max: watchword.MaxToken})
	if err != nil {
		return false, err
	}
	took := c.monotonic().Sub(began)
	if took > clockTrip {
		return false, watchword.Refuse(watchword.TimedOut, "the answer took %s: too long to say what time it is now", took.Round(time.Millisecond))
	}
	at, err := token.VerifyTime(string(a.Body), token.NewKeySet(t.Time...), t.Issuer, nonce)
	if err != nil {
		return false, err
	}
	if plainlyWrong(at, t) {
		return false, watchword.Refuse(watchword.TokenExpired, "the signed time lies before the trust bundle that the root signed")
	}
	// Between the question and the answer, and the second that tokens cut off.
	return d.goBy(at.Add(time.Second/2+took/2), t)
}

// goBy takes a signed time of this moment, and remembers it for the next start.
func (d *Device) goBy(at time.Time, t *token.Trust) (better bool, err error) {
	before, wall := d.reckonUnder(t), d.o.Now()
	off := wall.Sub(at)
	c := &d.clock
	c.mu.Lock()
	c.signed, c.mark, c.wall = at, c.monotonic(), wall.Round(0)
	if !d.o.NoClock && off.Abs() <= clockAgree {
		c.signed = time.Time{}
	}
	if c.floor.After(at.Add(token.Skew)) {
		// A fresh answer counts all the same: a server whose clock was ahead for an hour must not cost a fleet.
		d.o.Log.Warn("the server's time went back", slog.Time("from", c.floor), slog.Time("to", at))
	}
	c.floor = at
	first := !c.warned
	c.warned = true
	c.mu.Unlock()
	better = before.Sub(at).Abs() > clockAgree
	if better && d.tokens != nil {
		d.tokens.Forget() // its end was reckoned by another clock
	}
	switch {
	case !first:
	case d.o.NoClock:
		d.o.Log.Info("the time is known by the server's signature")
	case off.Abs() > clockAgree:
		d.o.Log.Warn("the clock of this device is wrong; it goes by the server's signed time", slog.Duration("off", off.Round(time.Second)))
	}
	if d.lock == nil {
		return better, nil
	}
	if err := durable.WriteFile(d.path(clockFile), strconv.AppendInt(nil, at.Unix(), 10), 0o600); err != nil || d.id == nil {
		return better, err
	}
	return better, d.numbers.update(func(c *counts) { c.Time = at.Unix() })
}

// readFloor returns the last signed time of an earlier run; zero if there was none. The counts
// have it too: they have a checksum, and the file is read where they do not.
func (d *Device) readFloor() (time.Time, error) {
	b, err := durable.ReadTrusted(d.path(clockFile), durable.MaxPrivate)
	if unbelieved(err) {
		return time.Time{}, err
	}
	if had := d.numbers.counts().Time; had > 0 {
		return time.Unix(had, 0), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil && n > 0 {
		return time.Unix(n, 0), nil
	}
	d.o.Log.Error("the last signed time is lost; the server is asked anew", slog.String("path", d.path(clockFile)))
	return time.Time{}, nil
}
