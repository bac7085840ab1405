package enroll

import (
	"net/netip"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/internal/recent"
)

// How guesses are slowed: an address has some wrong ones free, then waits twice
// as long after each. A quiet hour forgives.
const (
	guessesFree   = 5
	guessesFirst  = time.Second
	guessesMost   = 10 * time.Minute
	guessesForget = time.Hour
	guessesKept   = 8 << 10 // addresses remembered at least
)

// guesses counts wrong codes by address: by /64 for IPv6, since one customer has
// at least that many. With 128 random bits nobody finds a code by guessing; the
// brake keeps the attempt from costing us anything.
type guesses struct {
	mu sync.Mutex
	by *recent.Map[netip.Prefix, guess]
}

type guess struct {
	wrong int
	last  time.Time
}

func newGuesses() *guesses {
	return &guesses{by: recent.New[netip.Prefix, guess](guessesKept)}
}

// wait refuses an address that must wait. Code: rate_limited, with RetryAfter.
func (g *guesses) wait(a netip.Addr, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, ok := g.by.Get(rates.Network(a.Unmap()))
	if !ok || n.wrong <= guessesFree {
		return nil
	}
	pause := guessesMost
	if doubled := n.wrong - guessesFree - 1; doubled < 10 {
		pause = min(guessesFirst<<doubled, guessesMost)
	}
	if left := n.last.Add(pause).Sub(now); left > 0 {
		return &watchword.Error{Code: watchword.RateLimited, Detail: "too many wrong codes from this address", RetryAfter: left}
	}
	return nil
}

func (g *guesses) wrong(a netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := rates.Network(a.Unmap())
	n, _ := g.by.Get(k)
	if now.Sub(n.last) > guessesForget {
		n.wrong = 0
	}
	g.by.Put(k, guess{n.wrong + 1, now})
}
