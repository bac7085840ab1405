package ratelimit

import (
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Shared limits how often each key may do something, where several connections and requests of a
// subject share one bucket, so that a further connection brings no more. Callers that can wait
// reserve tokens and learn how long to wait; others are refused.
//
// A full bucket is the same as none: it is forgotten once no one is joined to it, a debt is not.
// Times are of the monotonic clock, since callers wait by timers. A nil *Shared has no limit. It is
// safe for concurrent use.
type Shared[K comparable] struct {
	rate, burst float64
	detail      string

	mu       sync.Mutex
	accounts map[K]*Account
	sweepAt  int // number of accounts at which full ones are removed
}

// minSweepAccounts is the smallest number of accounts that are swept.
const minSweepAccounts = 1024

// NewShared allows perSecond to each key, with a burst of two seconds' worth (at least 10); 0: no
// limit.
func NewShared[K comparable](perSecond float64, detail string) *Shared[K] {
	if perSecond <= 0 {
		return nil
	}
	return &Shared[K]{rate: perSecond, burst: max(10, 2*perSecond), detail: detail, accounts: map[K]*Account{}, sweepAt: minSweepAccounts}
}

// Account is the token bucket of one key. A nil *Account has no limit. It is safe for concurrent
// use.
type Account struct {
	rate, burst float64
	joined      int // protected by Shared.mu

	mu         sync.Mutex
	available  float64 // negative: reserved in advance
	refilledAt time.Time
}

// Join returns the account of k. The caller must call [Shared.Leave] in the end.
func (s *Shared[K]) Join(k K, now time.Time) *Account {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.account(k, now)
	a.joined++
	return a
}

// Leave undoes one [Shared.Join].
func (s *Shared[K]) Leave(k K, now time.Time) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[k]
	if a.joined--; a.joined == 0 && a.full(now) {
		delete(s.accounts, k)
	}
}

// Take takes n tokens of k, all or nothing. Code: rate_limited, with RetryAfter.
func (s *Shared[K]) Take(k K, n int, now time.Time) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	a := s.account(k, now)
	a.joined++ // so that it is not removed meanwhile
	s.mu.Unlock()
	wait := a.take(float64(n), now)
	s.Leave(k, now)
	if wait > 0 {
		return &watchword.Error{Code: watchword.RateLimited, Detail: s.detail, RetryAfter: wait}
	}
	return nil
}

// Len returns the number of accounts that are joined or not full.
func (s *Shared[K]) Len(now time.Time) int {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(now)
	return len(s.accounts)
}

// forget is called with mu held.
func (s *Shared[K]) forget(now time.Time) {
	for k, a := range s.accounts {
		if a.joined == 0 && a.full(now) {
			delete(s.accounts, k)
		}
	}
}

// account is called with mu held.
func (s *Shared[K]) account(k K, now time.Time) *Account {
	a := s.accounts[k]
	if a != nil {
		return a
	}
	if len(s.accounts) >= s.sweepAt {
		s.forget(now)
		s.sweepAt = max(minSweepAccounts, 2*len(s.accounts))
	}
	a = &Account{rate: s.rate, burst: s.burst, available: s.burst}
	s.accounts[k] = a
	return a
}

// Rate returns the tokens added per second; 0: no limit.
func (a *Account) Rate() float64 {
	if a == nil {
		return 0
	}
	return a.rate
}

// Reserve takes n tokens and returns how long it takes until they are available; reservations are
// served in order. n may exceed the burst.
func (a *Account) Reserve(n int, now time.Time) (wait time.Duration) {
	if a == nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refill(now)
	a.available -= float64(n)
	return a.timeUntil(0)
}

// Return gives back reserved tokens that were not used.
func (a *Account) Return(n int) {
	if a == nil || n <= 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.available = min(a.burst, a.available+float64(n))
}

// take takes n tokens if they are available, and otherwise returns when they will be.
func (a *Account) take(n float64, now time.Time) (wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refill(now)
	if a.available >= min(n, a.burst) { // more than the burst never accumulates, so it becomes a debt
		a.available -= n
		return 0
	}
	return a.timeUntil(min(n, a.burst))
}

// timeUntil returns how long it takes until that many tokens are available. mu is held.
func (a *Account) timeUntil(have float64) time.Duration {
	if a.available >= have {
		return 0
	}
	return time.Duration((have - a.available) / a.rate * float64(time.Second))
}

// refill is called with mu held.
func (a *Account) refill(now time.Time) {
	if d := now.Sub(a.refilledAt); a.refilledAt.IsZero() || d > 0 { // two callers may read the clock in the other order
		if !a.refilledAt.IsZero() {
			a.available = min(a.burst, a.available+d.Seconds()*a.rate)
		}
		a.refilledAt = now
	}
}

func (a *Account) full(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refill(now)
	return a.available >= a.burst
}
