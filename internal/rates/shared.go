package rates

import (
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Shared bounds how often each of many may do something, where several act for one at
// the same time: the connections of a subject, and its requests. All of them draw on
// one account, so that one more of them brings no more. Who can wait reserves, and is
// told for how long; who cannot is refused.
//
// An account that is full is the same as none: it is forgotten as soon as nobody is
// joined to it, and a debt never is. Times are read from a monotonic clock, since those
// who wait wait by a timer. A nil *Shared has no bound. It is safe for concurrent use.
type Shared[K comparable] struct {
	rate, burst float64
	detail      string

	mu       sync.Mutex
	accounts map[K]*Account
	sweepAt  int // accounts at which those that are full are looked for
}

// minSweepAccounts is the fewest accounts at which a sweep is worth it.
const minSweepAccounts = 1024

// NewShared allows perSecond to each, and two seconds' worth, or 10 if that is more, at
// once after a quiet time; 0 is no bound.
func NewShared[K comparable](perSecond float64, detail string) *Shared[K] {
	if perSecond <= 0 {
		return nil
	}
	return &Shared[K]{rate: perSecond, burst: max(10, 2*perSecond), detail: detail, accounts: map[K]*Account{}, sweepAt: minSweepAccounts}
}

// Account is what one has left. A nil *Account has no bound. It is safe for concurrent
// use.
type Account struct {
	rate, burst float64
	joined      int // under Shared.mu

	mu         sync.Mutex
	available  float64 // below zero: reserved, and not there yet
	refilledAt time.Time
}

// Join returns the account of k, for one who acts for it and calls [Shared.Leave] in the
// end.
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

// Take takes n at once from the account of k, or refuses. Code: rate_limited, with
// RetryAfter.
func (s *Shared[K]) Take(k K, n int, now time.Time) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	a := s.account(k, now)
	a.joined++ // so that it is not forgotten meanwhile
	s.mu.Unlock()
	wait := a.take(float64(n), now)
	s.Leave(k, now)
	if wait > 0 {
		return &watchword.Error{Code: watchword.RateLimited, Detail: s.detail, RetryAfter: wait}
	}
	return nil
}

// Len returns how many accounts are not the same as none: somebody is joined to them, or
// they are not full.
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

// Rate is how much comes back in a second; 0 is no bound.
func (a *Account) Rate() float64 {
	if a == nil {
		return 0
	}
	return a.rate
}

// Reserve takes n, and returns how long it is until they are there: those of two who
// reserve are there in the order in which they asked. n may be more than the burst.
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

// Return gives back what was reserved and is not used.
func (a *Account) Return(n int) {
	if a == nil || n <= 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.available = min(a.burst, a.available+float64(n))
}

// take takes n if they are there, and else returns when they will be.
func (a *Account) take(n float64, now time.Time) (wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refill(now)
	if a.available >= min(n, a.burst) { // more than the burst is never there: it is owed
		a.available -= n
		return 0
	}
	return a.timeUntil(min(n, a.burst))
}

// timeUntil is how long it is until there is as much as have. mu is held.
func (a *Account) timeUntil(have float64) time.Duration {
	if a.available >= have {
		return 0
	}
	return time.Duration((have - a.available) / a.rate * float64(time.Second))
}

// refill is called with mu held.
func (a *Account) refill(now time.Time) {
	if d := now.Sub(a.refilledAt); a.refilledAt.IsZero() || d > 0 { // two who read the clock may come in the other order
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
