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

// How a device goes by the server's statement for the time.
const (
	timeRoundTrip    = 10 * time.Second // a question and its answer; half of it is the error
	timeRefreshEvery = 4 * time.Hour    // asked again: crystals drift
	timeValid        = 48 * time.Hour   // without a further answer
	timeRetry        = time.Minute      // after no answer
	maxClockOffset   = 30 * time.Second // the device's clock is right where it is no further off
)

// signedClock is what a device knows of the time beside its own clock: what the server
// signed last, and how long that is ago by the monotonic clock.
type signedClock struct {
	requestMu sync.Mutex // one question at a time; before mu

	mu          sync.Mutex
	signed      time.Time // zero: nothing that counts
	signedMono  time.Time // its moment by the monotonic clock
	signedWall  time.Time // and by the own one, right or wrong
	lastRequest time.Time // the last question, by the monotonic clock
	floor       time.Time // the last signed time, also of an earlier run
	warned      bool

	mono func() time.Time // nil means time.Now
}

func (c *signedClock) monotonic() time.Time {
	if c.mono != nil {
		return c.mono()
	}
	return time.Now()
}

// reading returns the signed time of this moment. It ends where the device's clock and
// the monotonic one part: then the device slept, or somebody set its clock.
func (c *signedClock) reading(wall time.Time) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.signed.IsZero() {
		return time.Time{}, false
	}
	gone := c.monotonic().Sub(c.signedMono)
	if drift := wall.Round(0).Sub(c.signedWall) - gone; gone > timeValid || drift.Abs() > token.Skew {
		c.signed, c.lastRequest = time.Time{}, time.Time{}
		return time.Time{}, false
	}
	return c.signed.Add(gone), true
}

// lowerBound returns a moment that has certainly passed.
func (c *signedClock) lowerBound() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}

// Time returns the current time: that of the device's clock, or of the server's signed time where the device has no clock or a
// wrong one. It returns the zero time where the time is not known.
func (d *Device) Time() time.Time { return d.now() }

// now returns the time where it is known, and the zero time where it is not: on a
// device without a clock, or with one that is plainly wrong, before the server
// said what time it is.
func (d *Device) now() time.Time { return d.nowUnder(d.trust.Load()) }

func (d *Device) nowUnder(t *token.Trust) time.Time {
	wall := d.opts.Now()
	if at, ok := d.clock.reading(wall); ok {
		return at
	}
	if d.opts.NoClock || isBeforeTrust(wall, t) {
		return time.Time{}
	}
	return wall
}

// isBeforeTrust reports whether a clock lies before what the root has signed already.
func isBeforeTrust(wall time.Time, t *token.Trust) bool {
	return t != nil && wall.Before(t.Issued.Add(-token.Skew))
}

// bestTime returns the best word on the time that there is: to sign with, never to
// judge by.
func (d *Device) bestTime() time.Time { return d.bestTimeUnder(d.trust.Load()) }

func (d *Device) bestTimeUnder(t *token.Trust) time.Time {
	if at := d.nowUnder(t); !at.IsZero() {
		return at
	}
	best := d.opts.Now()
	if floor := d.clock.lowerBound(); floor.After(best) {
		best = floor
	}
	if t != nil && t.Issued.After(best) {
		best = t.Issued
	}
	return best
}

// hasExpired reports whether an end has certainly passed: by the time where it is known,
// and else by the last that the server signed, so that a device without a clock
// takes nothing after a reboot that was over before it.
func (d *Device) hasExpired(end time.Time) bool {
	at := d.now()
	if at.IsZero() {
		at = d.clock.lowerBound()
	}
	return at.After(end.Add(token.Skew))
}

// needsNonce reports whether only a nonce shows that a command is fresh. The caller
// holds memory.
func (d *Device) needsNonce() bool { return d.journal.lost || d.now().IsZero() }

// transportFor is [newTransport] under the device's own word on the time, and never before
// the trust bundle.
func (d *Device) transportFor(t *token.Trust) (*http.Transport, error) {
	tr, err := newTransport(t, d.nowUnder(t), d.connect)
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

// SyncTime asks the server for the time where the device does not know it: for callers
// that sign assertions themselves. [Device.Run] and the token methods do it when they need it.
func (d *Device) SyncTime(ctx context.Context) { d.syncTimeIfDue(ctx) }

// syncTimeIfDue asks the server for the time where the device does not know it, and
// every few hours where it goes by the server's statement. Without an answer it goes
// on as it is, by nonce.
func (d *Device) syncTimeIfDue(ctx context.Context) {
	if d.identity == nil {
		return
	}
	d.clock.requestMu.Lock()
	defer d.clock.requestMu.Unlock()
	if !d.timeDue() {
		return
	}
	d.trySyncTime(ctx, d.identity.HTTPS, d.trust.Load())
}

func (d *Device) timeDue() bool {
	_, known := d.clock.reading(d.opts.Now())
	if !known && !d.now().IsZero() {
		return false // its own clock does
	}
	pause := timeRetry
	if known {
		pause = timeRefreshEvery
	}
	return d.clock.lastRequestBefore(pause)
}

// lastRequestBefore reports whether the last question is longer ago than pause.
func (c *signedClock) lastRequestBefore(pause time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastRequest.IsZero() || c.monotonic().Sub(c.lastRequest) > pause
}

// timeRejected is told how the server answered what was signed just now. Where it
// found that from the past or the future, the device asks for the time. It
// reports whether it knows better than before.
func (d *Device) timeRejected(ctx context.Context, err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.TokenEarly, watchword.TokenExpired:
	default:
		return false
	}
	d.clock.requestMu.Lock()
	defer d.clock.requestMu.Unlock()
	if !d.clock.lastRequestBefore(timeRetry) || d.hasExpired(d.trust.Load().Expires) {
		return false // a bundle that is over does not say what time it is
	}
	return d.trySyncTime(ctx, d.identity.HTTPS, d.trust.Load())
}

// withTime gets a token under the right time: known before, or asked for once where
// the server does not agree.
func (d *Device) withTime(ctx context.Context, get func(context.Context) error) error {
	if err := d.revoked.current(); err != nil {
		return err // every request with a token comes here first
	}
	d.syncTimeIfDue(ctx)
	err := get(ctx)
	if err != nil && d.timeRejected(ctx, err) {
		return get(ctx)
	}
	return err
}

// trySyncTime is [Device.requestTime] where no answer is not an error: the device goes on as
// it is.
func (d *Device) trySyncTime(ctx context.Context, server string, t *token.Trust) bool {
	changed, err := d.requestTime(ctx, server, t)
	if err != nil && ctx.Err() == nil {
		d.opts.Log.Info("no signed time", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
	return changed
}

// requestTime asks a server for the time, signed under the time keys of t for a fresh
// nonce, and reports whether the device goes by another time from now on. Nobody
// need be trusted to carry the answer: it can be held back for [timeRoundTrip] at most,
// and is no other's. The caller holds asking. Codes: those of [token.VerifyTime];
// timed_out; token_expired where the answer lies before what the root has signed.
func (d *Device) requestTime(ctx context.Context, server string, t *token.Trust) (changed bool, err error) {
	c := &d.clock
	start := c.monotonic()
	c.mu.Lock()
	c.lastRequest = start
	c.mu.Unlock()
	nonce := watchword.NewNonce()
	body, err := json.Marshal(api.TimeRequest{Nonce: nonce})
	if err != nil {
		return false, err
	}
	bounded, cancel := context.WithTimeoutCause(ctx, timeRoundTrip, watchword.Refuse(watchword.TimedOut, "no signed time came within %s", timeRoundTrip))
	defer cancel()
	rc, _ := d.unverifiedClient(server)
	a, err := rc.Do(bounded, rest.Request{Method: http.MethodPost, Path: "/v1/time", Type: "application/json", Body: body, Max: watchword.MaxToken})
	if err != nil {
		return false, err
	}
	duration := c.monotonic().Sub(start)
	if duration > timeRoundTrip {
		return false, watchword.Refuse(watchword.TimedOut, "the answer took %s: too long to say what time it is now", duration.Round(time.Millisecond))
	}
	at, err := token.VerifyTime(string(a.Body), token.NewKeySet(t.Time...), t.Issuer, nonce)
	if err != nil {
		return false, err
	}
	if isBeforeTrust(at, t) {
		return false, watchword.Refuse(watchword.TokenExpired, "the signed time lies before the trust bundle that the root signed")
	}
	// Between the question and the answer, and the second that tokens cut off.
	return d.applyTime(at.Add(time.Second/2+duration/2), t)
}

// applyTime takes a signed time of this moment, and remembers it for the next start.
func (d *Device) applyTime(at time.Time, t *token.Trust) (changed bool, err error) {
	before, wall := d.bestTimeUnder(t), d.opts.Now()
	off := wall.Sub(at)
	c := &d.clock
	c.mu.Lock()
	c.signed, c.signedMono, c.signedWall = at, c.monotonic(), wall.Round(0)
	if !d.opts.NoClock && off.Abs() <= maxClockOffset {
		c.signed = time.Time{}
	}
	if c.floor.After(at.Add(token.Skew)) {
		// A fresh answer counts all the same: a server whose clock was ahead for an hour must not cost a fleet.
		d.opts.Log.Warn("the server's time went back", slog.Time("from", c.floor), slog.Time("to", at))
	}
	c.floor = at
	first := !c.warned
	c.warned = true
	c.mu.Unlock()
	changed = before.Sub(at).Abs() > maxClockOffset
	if changed && d.tokens != nil {
		d.tokens.Forget() // its end was reckoned by another clock
	}
	switch {
	case !first:
	case d.opts.NoClock:
		d.opts.Log.Info("the time is known by the server's signature")
	case off.Abs() > maxClockOffset:
		d.opts.Log.Warn("the clock of this device is wrong; it goes by the server's signed time", slog.Duration("off", off.Round(time.Second)))
	}
	if d.lock == nil {
		return changed, nil
	}
	if err := durable.WriteFile(d.path(clockFile), strconv.AppendInt(nil, at.Unix(), 10), 0o600); err != nil || d.identity == nil {
		return changed, err
	}
	return changed, d.counters.update(func(c *counters) { c.Time = at.Unix() })
}

// readFloor returns the last signed time of an earlier run; zero if there was none. The counts
// have it too: they have a checksum, and the file is read where they do not.
func (d *Device) readFloor() (time.Time, error) {
	b, err := durable.ReadTrusted(d.path(clockFile), durable.MaxPrivate)
	if isUntrustedFile(err) {
		return time.Time{}, err
	}
	if stored := d.counters.values().Time; stored > 0 {
		return time.Unix(stored, 0), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil && n > 0 {
		return time.Unix(n, 0), nil
	}
	d.opts.Log.Error("the last signed time is lost; the server is asked anew", slog.String("path", d.path(clockFile)))
	return time.Time{}, nil
}
