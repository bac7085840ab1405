package device

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// hours is a device beside a server of the time, with every clock in the test's hand.
type hours struct {
	*Device
	t      *testing.T
	mono   time.Time // of the device
	wall   time.Time // of the device, right or wrong
	server time.Time
	signer *jose.Signer
	answer func(nonce string) string // what the server says; nil: the truth
	asked  int
}

func newHours(t *testing.T, o Options) *hours {
	t.Helper()
	h := &hours{t: t, mono: time.Now(), wall: time.Unix(1000, 0), server: time.Unix(1_790_000_000, 0), signer: testSigner(t)}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked++
		var q struct{ Nonce string }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/v1/time" {
			t.Errorf("asked for %s: %v", r.URL, err)
		}
		say := h.answer
		if say == nil {
			say = func(nonce string) string { return h.sign(h.signer, nonce) }
		}
		_, _ = io.WriteString(w, say(q.Nonce))
	}))
	t.Cleanup(srv.Close)
	o.Log, o.Now = slog.New(slog.DiscardHandler), func() time.Time { return h.wall }
	d, err := OpenWith(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	h.Device = d
	d.clock.mono = func() time.Time { return h.mono }
	d.identity = &identity{ID: "lamp-1", Issuer: srv.URL, HTTPS: srv.URL}
	d.trust.Store(&token.Trust{
		Issuer: srv.URL, Time: []*jose.PublicKey{h.signer.Public()}, Issued: h.server.Add(-24 * time.Hour), Expires: h.server.Add(60 * 24 * time.Hour),
	})
	return h
}

func testSigner(t *testing.T) *jose.Signer {
	t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *hours) sign(s *jose.Signer, nonce string) string {
	raw, err := token.SignTime(s, h.identity.Issuer, nonce, h.server)
	if err != nil {
		h.t.Error(err)
	}
	return raw
}

// pass lets every clock run on alike.
func (h *hours) pass(by time.Duration) {
	h.mono, h.wall, h.server = h.mono.Add(by), h.wall.Add(by), h.server.Add(by)
}

func (h *hours) ask() error {
	_, err := h.requestTime(h.t.Context(), h.identity.HTTPS, h.trust.Load())
	return err
}

// knows fails unless the device knows the time to within a few seconds.
func (h *hours) knows(when string, want bool) {
	h.t.Helper()
	off := h.Time().Sub(h.server).Abs()
	if got := off <= timeRoundTrip/2+time.Second; got != want || !want && !h.Time().IsZero() {
		h.t.Errorf("%s: the device says %s where it is %s", when, h.Time(), h.server)
	}
}

func TestADeviceWithoutAClockUsesSignedTime(t *testing.T) {
	h := newHours(t, Options{NoClock: true})
	h.knows("before", false)
	h.syncTimeIfDue(t.Context())
	h.knows("after an answer", true)
	h.pass(timeRefreshEvery)
	h.syncTimeIfDue(t.Context())
	h.knows("hours later", true)
	if h.asked != 1 {
		t.Errorf("asked %d times", h.asked)
	}
	h.pass(time.Second)
	h.syncTimeIfDue(t.Context())
	if h.asked != 2 {
		t.Errorf("not asked again: %d", h.asked)
	}
	h.pass(timeValid + time.Second)
	h.knows("two days without an answer", false)
	h.answer = func(string) string { return "" }
	h.syncTimeIfDue(t.Context())
	h.syncTimeIfDue(t.Context())
	if h.asked != 3 {
		t.Errorf("asked %d times, without rest", h.asked)
	}
	h.pass(timeRetry + time.Second)
	h.answer = nil
	h.syncTimeIfDue(t.Context())
	h.knows("a minute later", true)

	h.wall = h.wall.Add(time.Hour) // it slept, while the monotonic clock stood
	h.server = h.server.Add(time.Hour)
	h.knows("after sleep", false)
	h.syncTimeIfDue(t.Context())
	h.knows("asked after sleep", true)
}

func TestInvalidTimeAnswers(t *testing.T) {
	h := newHours(t, Options{NoClock: true})
	recorded := h.sign(h.signer, watchword.NewNonce())
	for _, tc := range []struct {
		name   string
		answer func(nonce string) string
		want   watchword.Code
	}{
		{"an old answer again", func(string) string { return recorded }, watchword.NonceMismatch},
		{"held back too long", func(nonce string) string {
			raw := h.sign(h.signer, nonce)
			h.pass(timeRoundTrip + time.Millisecond)
			return raw
		}, watchword.TimedOut},
		{"signed by a foreign key", func(nonce string) string { return h.sign(testSigner(t), nonce) }, watchword.KeyUnknown},
		{"from before the bundle", func(nonce string) string {
			at := h.server
			defer func() { h.server = at }()
			h.server = at.Add(-25 * time.Hour)
			return h.sign(h.signer, nonce)
		}, watchword.TokenExpired},
		{"words", func(string) string { return "noon" }, watchword.TokenMalformed},
	} {
		h.answer = tc.answer
		if err := h.ask(); watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		h.knows(tc.name, false)
	}
	h.answer = func(nonce string) string {
		raw := h.sign(h.signer, nonce)
		h.pass(timeRoundTrip)
		return raw
	}
	if err := h.ask(); err != nil {
		t.Error(err)
	}
	h.knows("held back for as long as may be", true)
}

// Anything that had expired before a reboot is expired after it, even if the time is unknown.
func TestTheLastSignedTimeIsRemembered(t *testing.T) {
	h := newHours(t, Options{NoClock: true})
	if err := h.ask(); err != nil {
		t.Fatal(err)
	}
	again := newHours(t, Options{NoClock: true})
	b, err := os.ReadFile(h.path(clockFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(again.path(clockFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	again.counters = &counterFile{disk: durable.OS{}, path: again.path("none")} // the file alone
	if again.clock.floor, err = again.readFloor(); err != nil {
		t.Fatal(err)
	}
	again.knows("after the reboot", false)
	if !again.hasExpired(h.server.Add(-2*time.Minute)) || again.hasExpired(h.server.Add(time.Minute)) {
		t.Error("what is over is judged wrongly")
	}
	if got := again.bestTime(); got.Before(h.server.Truncate(time.Second)) {
		t.Errorf("signs with %s, though %s has passed", got, h.server)
	}
	// A server whose clock was ahead, and is right again: its fresh word counts.
	again.server = again.server.Add(-time.Hour)
	if err := again.ask(); err != nil {
		t.Fatal(err)
	}
	again.knows("after the server's time went back", true)

	if err := os.WriteFile(again.path(clockFile), []byte("noon"), 0o600); err != nil {
		t.Fatal(err)
	}
	again.counters = &counterFile{disk: durable.OS{}, path: again.path("none")}
	if floor, err := again.readFloor(); err != nil || !floor.IsZero() {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestAClockThatIsPlainlyWrong(t *testing.T) {
	h := newHours(t, Options{}) // it is 1970 here
	h.knows("before", false)
	h.syncTimeIfDue(t.Context())
	h.knows("after an answer", true)
	h.wall = h.server // the clock is set
	h.knows("set right", true)
	h.pass(timeRefreshEvery + time.Hour)
	h.syncTimeIfDue(t.Context())
	if h.asked != 1 {
		t.Errorf("a right clock asked %d times", h.asked)
	}

	h.wall = h.server.Add(10 * time.Minute) // ahead, which only the server can see
	early := watchword.Refuse(watchword.TokenEarly, "iat is in the future")
	if h.timeRejected(t.Context(), watchword.Refuse(watchword.Denied, "no")) {
		t.Error("a denial says nothing about the clock")
	}
	if !h.timeRejected(t.Context(), early) {
		t.Error("a refused assertion does not make it doubt its clock")
	}
	h.knows("after doubt", true)
	asked := h.asked
	if h.timeRejected(t.Context(), early) || h.asked != asked {
		t.Error("it asks without rest")
	}
	h.pass(timeRetry + time.Second)
	if h.timeRejected(t.Context(), early) {
		t.Error("it goes by another time, though it was right")
	}
	t.Run("an expired bundle does not set a clock", func(t *testing.T) {
		h := newHours(t, Options{})
		h.wall = h.trust.Load().Expires.Add(time.Hour)
		if h.timeRejected(t.Context(), early) || h.asked != 0 {
			t.Error("asked")
		}
	})
}

// rootServer is the server of [hours] with trust bundles: each that it is asked for is signed anew, by its clock of that moment.
func (h *hours) rootServer(root *jose.Signer, off *time.Duration) {
	h.t.Helper()
	version := int64(1)
	bundle := func() token.Trust {
		at := h.server.Add(*off)
		return token.Trust{
			Issuer: h.identity.Issuer, Version: version, Epoch: 1, Roots: []*jose.PublicKey{root.Public()}, Time: []*jose.PublicKey{h.signer.Public()},
			Issuers: []*jose.PublicKey{h.signer.Public()}, Command: []*jose.PublicKey{h.signer.Public()}, Issued: at, Expires: at.Add(token.TrustLifetime),
		}
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/trust" {
			version++
			raw, err := token.SignTrust(bundle(), root)
			if err != nil {
				h.t.Error(err)
			}
			_, _ = io.WriteString(w, raw)
			return
		}
		var q struct{ Nonce string }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			h.t.Error(err)
		}
		raw, err := token.SignTime(h.signer, h.identity.Issuer, q.Nonce, h.server.Add(*off))
		if err != nil {
			h.t.Error(err)
		}
		_, _ = io.WriteString(w, raw)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	srv.StartTLS()
	h.t.Cleanup(srv.Close)
	h.identity.Issuer, h.identity.HTTPS = srv.URL, srv.URL
	h.identity.Pin = token.TrustPin(root.Public())
	h.Device.signer.Store(h.signer)
	t := bundle()
	if err := h.useTrust(&t); err != nil {
		h.t.Fatal(err)
	}
}

// A server whose clock is wrong, and says so in bundles and signed times, shuts no device out: once it is right, the next round of
// what [Device.Run] does after a refusal brings the right time back. A device whose own clock is right never leaves it for longer
// than that, and never beyond the end of its bundle.
func TestAServerWhoseClockWasWrong(t *testing.T) {
	const day = 24 * time.Hour
	early := watchword.Refuse(watchword.TokenEarly, "iat is in the future")
	for _, off := range []time.Duration{time.Hour, -time.Hour, 29 * day, -29 * day, 400 * day, -400 * day, -1_789_990_000 * time.Second} {
		for _, reboot := range []bool{true, false} {
			noClock := reboot
			t.Run(off.String()+map[bool]string{true: ", no clock, rebooted meanwhile", false: ", own clock right"}[noClock], func(t *testing.T) {
				h := newHours(t, Options{NoClock: noClock})
				if !noClock {
					h.wall = h.server
				}
				var wrong time.Duration
				h.rootServer(testSigner(t), &wrong)
				h.syncTimeIfDue(t.Context())
				h.knows("at first", true)
				round := func() {
					h.pass(timeRetry + time.Second)
					_ = h.renewTrust(t.Context()) // what it cannot take it goes without
					h.syncTimeIfDue(t.Context())
					_ = h.timeRejected(t.Context(), early)
				}
				wrong = off
				if reboot { // nobody has said what time it is
					h.clock.mu.Lock()
					h.clock.signed, h.clock.lastRequest = time.Time{}, time.Time{}
					h.clock.mu.Unlock()
				}
				for range 3 {
					round()
					if ahead := h.Time().Sub(h.trust.Load().Expires); ahead > token.Skew {
						t.Errorf("the device goes by a time %s after the end of its bundle", ahead)
					}
					if !noClock && off.Abs() > token.TrustLifetime && !h.Time().IsZero() && h.Time().Sub(h.server).Abs() > time.Minute {
						t.Errorf("a device whose clock is right goes by %s", h.Time())
					}
				}
				wrong = 0
				h.pass(timeRetry + time.Second)
				if err := h.renewTrust(t.Context()); err == nil && h.hasExpired(h.trust.Load().Expires) {
					t.Error("the newer bundle is shut out by a time that a server signed before it")
				}
				round()
				if h.Time().IsZero() || h.Time().Sub(h.server).Abs() > time.Minute {
					round() // the second within a minute
				}
				h.knows("once the server is right", true)
				if h.hasExpired(h.server.Add(time.Minute)) {
					t.Error("what ends in a minute has expired")
				}
				floor := h.clock.lowerBound()
				h.pass(time.Second)
				dir := h.dir
				if err := h.Device.Close(); err != nil {
					t.Fatal(err)
				}
				again, err := OpenWith(dir, Options{NoClock: noClock, Log: h.opts.Log, Now: h.opts.Now})
				if err != nil {
					t.Fatal(err)
				}
				defer again.Close()
				if got := again.clock.lowerBound(); got.After(h.server.Add(time.Minute)) || floor.After(h.server.Add(time.Minute)) {
					t.Errorf("after a restart it takes nothing before %s", got)
				}
			})
		}
	}
}

// The server refused the time of the device just after it was asked for the time: it is asked again once the pause is over, and the
// connection is tried again at once. The doubt is not forgotten.
func TestADoubtOfTheTimeOutlastsThePause(t *testing.T) {
	h := newHours(t, Options{NoClock: true})
	start := time.Now()
	mono, wall, server := h.mono, h.wall, h.server
	h.Device.clock.mono = func() time.Time { return mono.Add(time.Since(start)) }
	h.Device.opts.Now = func() time.Time { return wall.Add(time.Since(start)) }
	h.syncTimeIfDue(t.Context())
	if h.asked != 1 {
		t.Fatalf("asked %d times", h.asked)
	}
	start = start.Add(-timeRetry + 50*time.Millisecond) // the pause is over in 50 ms
	h.server = server.Add(-time.Hour)                   // it went back
	r := newRun(h.Device)
	r.doubtTime()
	if err := r.refreshTime(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.asked != 2 || r.timeDoubted.Load() {
		t.Errorf("asked %d times, in doubt %v", h.asked, r.timeDoubted.Load())
	}
	b := backoff{last: time.Hour, most: time.Hour}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if !b.wait(ctx, nil, r.timeChanged) || b.last != 0 {
		t.Errorf("the pause was not cut short: %+v", b)
	}
}
