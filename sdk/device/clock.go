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
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
	"github.com/watchword-iot/watchword/token"
)

// Time that the server signs.
const (
	timeRoundTrip    = 10 * time.Second // maximum duration of a request; half of it is the maximum error
	timeRefreshEvery = 4 * time.Hour    // interval of requests: oscillators drift
	timeValid        = 48 * time.Hour   // how long a signed time is used without a newer one
	timeRetry        = 20 * time.Second // pause after a request without an answer
	maxClockOffset   = 30 * time.Second // a device clock within this offset of the signed time is not corrected
)

// signedClock is the time that the server signed last, and the monotonic time that has passed since then.
type signedClock struct {
	requestMu requestLock // one request at a time; locked before mu

	mu          sync.Mutex
	signed      time.Time // zero: there is no valid signed time
	signedMono  time.Time // when signed was received, by the monotonic clock
	signedWall  time.Time // and by the device's clock, which may be wrong
	lastRequest time.Time // time of the last request, by the monotonic clock
	floor       time.Time // the last signed time, also of an earlier run
	warned      bool

	mono func() time.Time // nil means time.Now
}

// requestLock is a mutex whose holder may wait for the server, so that waiting for it ends with a context.
type requestLock struct {
	once sync.Once
	held chan struct{}
}

func (l *requestLock) lock(ctx context.Context) bool {
	l.once.Do(func() { l.held = make(chan struct{}, 1) })
	select {
	case l.held <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *requestLock) unlock() { <-l.held }

func (c *signedClock) monotonic() time.Time {
	if c.mono != nil {
		return c.mono()
	}
	return time.Now()
}

// reading returns the current time by the last signed time. It returns false once the device's clock and the monotonic
// clock have diverged: then the device was suspended, or its clock was set.
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

// lowerBound returns a time that is certainly not in the future.
func (c *signedClock) lowerBound() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}

// Time returns the current time: that of the device's clock, or the server's signed time if the device has no clock or a
// wrong one. It returns the zero time if the time is unknown.
func (d *Device) Time() time.Time { return d.now() }

// now returns the current time, and the zero time if it is unknown: on a device without a clock, or with a clock that is
// provably wrong, before the server has sent signed time.
func (d *Device) now() time.Time { return d.nowWithTrust(d.trust.Load()) }

func (d *Device) nowWithTrust(t *token.Trust) time.Time {
	wall := d.opts.Now()
	if at, ok := d.clock.reading(wall); ok {
		return at
	}
	if d.opts.NoClock || isBeforeTrust(wall, t) {
		return time.Time{}
	}
	return wall
}

// isBeforeTrust reports whether a clock is earlier than the times that the root has signed in t.
func isBeforeTrust(wall time.Time, t *token.Trust) bool {
	return t != nil && wall.Before(t.Issued.Add(-token.Skew))
}

// bestTime returns the best estimate of the time. It is used for signing, never for verifying.
func (d *Device) bestTime() time.Time { return d.bestTimeWithTrust(d.trust.Load()) }

func (d *Device) bestTimeWithTrust(t *token.Trust) time.Time {
	if at := d.nowWithTrust(t); !at.IsZero() {
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

// hasExpired reports whether end has certainly passed: by the current time if it is known, else by the last time that the
// server signed. So a device without a clock accepts nothing after a reboot that had expired before it.
func (d *Device) hasExpired(end time.Time) bool {
	at := d.now()
	if at.IsZero() {
		at = d.clock.lowerBound()
	}
	return at.After(end.Add(token.Skew))
}

// needsNonce reports whether only a nonce can show that a command is fresh. The caller holds stateMu.
func (d *Device) needsNonce() bool { return d.journal.lost || d.now().IsZero() }

// transportFor returns [tlstrust.NewTransport] with the device's own time, and never a time before the trust bundle.
func (d *Device) transportFor(t *token.Trust) (*http.Transport, error) {
	tr, err := tlstrust.NewTransport(t, d.nowWithTrust(t), d.connect)
	if err != nil {
		return nil, err
	}
	tr.TLSClientConfig.Time = func() time.Time {
		if at := d.nowWithTrust(t); at.After(t.Issued) {
			return at
		}
		return t.Issued
	}
	return tr, nil
}

// SyncTime requests signed time from the server if the device does not know the time. Applications need it only if they
// sign assertions themselves: [Device.Run] and the token methods call it when needed.
func (d *Device) SyncTime(ctx context.Context) { d.syncTimeIfDue(ctx) }

// syncTimeIfDue requests signed time if the device does not know the time, and every few hours if it depends on signed
// time. Without an answer the device continues unchanged, with nonces.
func (d *Device) syncTimeIfDue(ctx context.Context) {
	if d.identity == nil {
		return
	}
	if !d.clock.requestMu.lock(ctx) {
		return
	}
	defer d.clock.requestMu.unlock()
	if !d.timeDue() {
		return
	}
	d.trySyncTime(ctx, d.Server(), d.trust.Load())
}

func (d *Device) timeDue() bool {
	_, known := d.clock.reading(d.opts.Now())
	if !known && !d.now().IsZero() {
		return false // the device's own clock is used
	}
	pause := timeRetry
	if known {
		pause = timeRefreshEvery
	}
	return d.clock.lastRequestBefore(pause)
}

// lastRequestBefore reports whether the last request was made longer ago than pause.
func (c *signedClock) lastRequestBefore(pause time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastRequest.IsZero() || c.monotonic().Sub(c.lastRequest) > pause
}

// untilRequest returns how long it takes until lastRequestBefore(pause).
func (c *signedClock) untilRequest(pause time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastRequest.IsZero() {
		return 0
	}
	return pause + time.Millisecond - c.monotonic().Sub(c.lastRequest)
}

// timeRejected takes the server's answer to something that was just signed. If the server refused its time as past or
// future, the device requests signed time. The result reports whether the device's time has changed.
func (d *Device) timeRejected(ctx context.Context, err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.TokenEarly, watchword.TokenExpired:
	default:
		return false
	}
	if !d.clock.requestMu.lock(ctx) {
		return false
	}
	defer d.clock.requestMu.unlock()
	if !d.clock.lastRequestBefore(timeRetry) || d.hasExpired(d.trust.Load().Expires) {
		return false // an expired bundle does not prove that the clock is wrong
	}
	return d.trySyncTime(ctx, d.Server(), d.trust.Load())
}

// withTime calls get with the correct time: requested before if it is unknown, and once more if the server refuses the
// time.
func (d *Device) withTime(ctx context.Context, get func(context.Context) error) error {
	if err := d.revoked.current(); err != nil {
		return err // every request with a token calls this first
	}
	d.syncTimeIfDue(ctx)
	err := get(ctx)
	if err != nil && d.timeRejected(ctx, err) {
		return get(ctx)
	}
	return err
}

// trySyncTime calls [Device.requestTime]; an error is ignored, and the device continues unchanged.
//
// A signed time outside the life of the trust bundle needs a second confirmation: a newer bundle, which the root signed, whose
// life contains it. The device fetches that bundle and asks again.
func (d *Device) trySyncTime(ctx context.Context, server string, t *token.Trust) bool {
	changed, err := d.requestTime(ctx, server, t)
	if errors.Is(err, errOutsideTrust) && d.client != nil {
		if rerr := d.renewTrust(ctx); rerr != nil {
			err = errors.Join(err, rerr)
		} else if newer := d.trust.Load(); isNewer(newer, t) {
			changed, err = d.requestTime(ctx, server, newer)
		}
	}
	if err != nil && ctx.Err() == nil {
		d.opts.Log.Info("no signed time", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
	return changed
}

// requestTime requests the time from a server, signed by a time key of t for a new nonce, and reports whether the device's
// time has changed. The network is not trusted: it can delay the answer by at most [timeRoundTrip], and cannot replace it.
// The caller holds requestMu. Codes: those of [token.VerifyTime]; timed_out; token_expired and token_early if the answer is
// outside the life of t ([errOutsideTrust]).
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
		return false, watchword.Refuse(watchword.TimedOut, "the answer took %s, too long for a signed time", duration.Round(time.Millisecond))
	}
	at, err := token.VerifyTime(string(a.Body), token.NewKeySet(t.Time...), token.ClaimedIssuer(string(a.Body), t.IssuerNames()), nonce)
	if err != nil {
		return false, err
	}
	switch {
	case isBeforeTrust(at, t):
		return false, watchword.Wrap(errOutsideTrust, watchword.TokenExpired, "the signed time is before iat of the trust bundle")
	case at.After(t.Expires.Add(token.Skew)):
		return false, watchword.Wrap(errOutsideTrust, watchword.TokenEarly, "the signed time is after exp of the trust bundle")
	}
	// The time is between request and answer, and tokens have whole seconds.
	return d.applyTime(at.Add(time.Second/2+duration/2), t)
}

// errOutsideTrust is the cause of a refusal of signed time that only a newer trust bundle can confirm.
var errOutsideTrust = errors.New("the trust bundle does not confirm the time")

// usesOwnClock reports whether the device's time is that of its own clock.
func (d *Device) usesOwnClock() bool {
	_, signed := d.clock.reading(d.opts.Now())
	return !signed && !d.now().IsZero()
}

// dropTimeOutside forgets signed times that are outside the life of a newer bundle: what the root signed later counts more than what
// a server said of the time before. The time is requested again.
func (d *Device) dropTimeOutside(t *token.Trust) error {
	at, known := d.clock.reading(d.opts.Now())
	c := &d.clock
	c.mu.Lock()
	outside := func(at time.Time) bool {
		return at.Before(t.Issued.Add(-token.Skew)) || at.After(t.Expires.Add(token.Skew))
	}
	floor := c.floor
	if known && outside(at) {
		c.signed = time.Time{}
	}
	if c.signed.IsZero() {
		c.lastRequest = time.Time{}
	}
	if floor.After(t.Expires.Add(token.Skew)) {
		floor = t.Issued
	}
	changed := !floor.Equal(c.floor)
	c.floor = floor
	c.mu.Unlock()
	if known && outside(at) {
		d.opts.Log.Warn("the trust bundle contradicts the time that the server signed before", slog.Time("from", at), slog.Time("to", t.Issued))
		d.tokens.Forget() // their expiry was computed by that time
	}
	if !changed || d.lock == nil {
		return nil
	}
	return d.storeFloor(floor)
}

// storeFloor stores the last signed time for the next start.
func (d *Device) storeFloor(at time.Time) error {
	if err := durable.WriteFile(d.path(clockFile), strconv.AppendInt(nil, at.Unix(), 10), 0o600); err != nil || d.identity == nil {
		return err
	}
	return d.counters.update(func(c *counters) { c.Time = at.Unix() })
}

// applyTime uses a signed current time, and stores it for the next start.
func (d *Device) applyTime(at time.Time, t *token.Trust) (changed bool, err error) {
	before, wall := d.bestTimeWithTrust(t), d.opts.Now()
	off := wall.Sub(at)
	c := &d.clock
	c.mu.Lock()
	c.signed, c.signedMono, c.signedWall = at, c.monotonic(), wall.Round(0)
	if !d.opts.NoClock && off.Abs() <= maxClockOffset {
		c.signed = time.Time{}
	}
	if c.floor.After(at.Add(token.Skew)) {
		// A new answer is used even if it is earlier: a server whose clock was ahead for an hour must not make a fleet
		// unusable.
		d.opts.Log.Warn("the server's time went back", slog.Time("from", c.floor), slog.Time("to", at))
	}
	c.floor = at
	first := !c.warned
	c.warned = true
	c.mu.Unlock()
	changed = before.Sub(at).Abs() > maxClockOffset
	if changed && d.tokens != nil {
		d.tokens.Forget() // their expiry was computed by another clock
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
	return changed, d.storeFloor(at)
}

// readFloor returns the last signed time of an earlier run; zero if there was none. The counters file has it too, with a
// checksum; the file is read if the counters file lacks it.
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
