package verify

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

const (
	// unknownKeyPause is the minimum interval of fetches that an unknown kid causes.
	unknownKeyPause = time.Minute
	// unknownKeyWait is the maximum time for which a request with an unknown kid waits for a fetch.
	unknownKeyWait = 2 * time.Second
	// maxWaiting is the maximum number of such requests that wait at once; further ones are refused.
	maxWaiting = 64
	// firstRetry is the pause after the first failed fetch; it doubles with each further failure.
	firstRetry = time.Second
)

// keySet is the valid keys, and the time at which they were requested.
type keySet struct {
	keys    token.KeySet
	fetched time.Time
}

// issuerKeys holds the issuer's keys. A single goroutine fetches them for all requests; a failed fetch changes nothing.
type issuerKeys struct {
	source  *keySource // nil if the keys were given
	cache   string     // path, or empty
	refresh time.Duration
	maxAge  time.Duration // 0: any age
	now     func() time.Time
	log     *slog.Logger

	set   atomic.Pointer[keySet]
	wake  chan struct{}
	ctx   context.Context
	stop  context.CancelFunc
	ended chan struct{}

	mu       sync.Mutex
	began    time.Time     // time at which the last fetch began
	inFlight chan struct{} // closed when the current fetch ends; nil if there is none
	waiting  int
}

// start fetches the first keys, or loads those of the cache, and refreshes them until ctx ends or [issuerKeys.close] is
// called.
func (k *issuerKeys) start(ctx context.Context) error {
	k.wake, k.ended, k.began = make(chan struct{}, 1), make(chan struct{}), time.Now()
	failures, err := 0, k.fetch(ctx)
	if err != nil {
		if cerr := k.fromCache(); cerr != nil {
			return watchword.Wrap(err, watchword.CodeOf(err), "no keys of the issuer %s: %s; %s", k.source.issuer, errorText(err), errorText(cerr))
		}
		k.log.Warn("issuer not reached; going by the keys of the cache", "issuer", k.source.issuer, "since", k.set.Load().fetched, "err", err)
		failures = 1
	} else if err := k.save(); err != nil {
		return watchword.Wrap(err, watchword.ConfigInvalid, "the keys' cache cannot be written: %s", err)
	}
	k.ctx, k.stop = context.WithCancel(ctx)
	go k.run(failures)
	return nil
}

func (k *issuerKeys) fromCache() error {
	if k.cache == "" {
		return watchword.Refuse(watchword.Unavailable, "no cache is configured (verify.Cache)")
	}
	s, err := loadKeys(k.cache, k.source.issuer, k.now())
	if err != nil {
		return err
	}
	if k.now().Sub(s.fetched) > k.maxAge {
		return watchword.Refuse(watchword.Unavailable, "the keys of the cache are older than %s (verify.MaxAge)", k.maxAge)
	}
	k.set.Store(s)
	return nil
}

func (k *issuerKeys) save() error {
	if k.cache == "" {
		return nil
	}
	return saveKeys(k.cache, k.source.issuer, k.set.Load())
}

// close ends the fetching and waits for its end. The keys stay valid until their maximum age.
func (k *issuerKeys) close() {
	if k.source != nil {
		k.stop()
		<-k.ended
	}
}

func (k *issuerKeys) run(failures int) {
	defer close(k.ended)
	defer k.stop()
	timer := time.NewTimer(k.pause(failures))
	defer timer.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-timer.C:
		case <-k.wake:
		}
		k.begin()
		err := k.fetch(k.ctx)
		k.end()
		if err == nil {
			failures, err = 0, k.save()
			if err != nil {
				k.log.Warn("issuer's keys not cached", "err", err)
			}
		} else if k.ctx.Err() == nil {
			failures++
			k.log.Log(k.ctx, outageLevel(failures), "issuer's keys not refreshed", "issuer", k.source.issuer, "since", k.set.Load().fetched, "failures", failures, "err", err)
		}
		timer.Reset(k.pause(failures))
	}
}

// outageLevel returns the log level of a failed fetch: a long outage logs a warning occasionally, not at each attempt.
func outageLevel(failures int) slog.Level {
	if failures&(failures-1) == 0 {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// pause returns the pause after a number of failures in a row. It is randomized, so that services do not fetch
// simultaneously.
func (k *issuerKeys) pause(failures int) time.Duration {
	d, spread := k.refresh, k.refresh/5
	if failures > 0 {
		d = min(d, firstRetry<<min(failures-1, 16))
		spread = d / 2
	}
	return d - rand.N(spread+1)
}

func (k *issuerKeys) fetch(ctx context.Context) error {
	at := k.now().Round(0) // by the wall clock: after a suspension of the machine the keys are old
	got, err := k.source.fetch(ctx)
	if err != nil {
		return err
	}
	old := k.set.Swap(&keySet{got, at})
	if len(got) == 0 {
		k.log.Warn("the issuer publishes no key that signs: every token will be refused", "issuer", k.source.issuer)
	} else if old != nil && !sameKeys(old.keys, got) {
		k.log.Info("issuer's keys changed", "issuer", k.source.issuer, "keys", slices.Sorted(maps.Keys(got)))
	}
	return nil
}

func sameKeys(a, b token.KeySet) bool {
	return maps.EqualFunc(a, b, func(_, _ *jose.PublicKey) bool { return true }) // keys are named by thumbprint
}

// begin marks a fetch as started, and removes the request for it.
func (k *issuerKeys) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.wake:
	default:
	}
	if k.inFlight == nil {
		k.inFlight, k.began = make(chan struct{}), time.Now()
	}
}

func (k *issuerKeys) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.inFlight)
	k.inFlight = nil
}

// at returns the valid keys. Code: unavailable if they are too old.
func (k *issuerKeys) at(now time.Time) (*keySet, error) {
	s := k.set.Load()
	if k.maxAge > 0 && now.Sub(s.fetched) > k.maxAge {
		return nil, &watchword.Error{
			Code: watchword.Unavailable, Detail: "the issuer's keys are older than verify.MaxAge, and the issuer cannot be reached", RetryAfter: 10 * time.Second,
		}
	}
	return s, nil
}

// withNewKey is called for a kid that is not in s. It returns newer keys, if there are any or a fetch brings them within a
// bounded wait, else s. All calls together start one fetch in [unknownKeyPause].
func (k *issuerKeys) withNewKey(ctx context.Context, s *keySet) *keySet {
	under := k.startFetch(s)
	if under == nil {
		return k.set.Load()
	}
	timer := time.NewTimer(unknownKeyWait)
	defer timer.Stop()
	select {
	case <-under:
	case <-timer.C:
	case <-ctx.Done():
	case <-k.ctx.Done():
	}
	k.mu.Lock()
	k.waiting--
	k.mu.Unlock()
	return k.set.Load()
}

// startFetch starts a fetch if needed and returns the channel to wait on; nil if there is nothing to wait for.
func (k *issuerKeys) startFetch(s *keySet) chan struct{} {
	if k.source == nil || k.ctx.Err() != nil || k.set.Load() != s {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting >= maxWaiting {
		return nil
	}
	if k.inFlight == nil {
		if time.Since(k.began) < unknownKeyPause {
			return nil
		}
		k.inFlight, k.began = make(chan struct{}), time.Now()
		k.wake <- struct{}{} // does not block: the channel is empty since the last begin
	}
	k.waiting++
	return k.inFlight
}

// errorText returns an error's text without its code.
func errorText(err error) string {
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.Detail != "" {
		return e.Detail
	}
	return err.Error()
}
