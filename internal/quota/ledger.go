// Package quota counts how much of a bounded resource each subject holds. A
// [Ledger] is one resource, as "retained messages" in bytes: it has an account for
// each subject, a bound for each account and a bound for all of them together. It
// knows nothing of what is counted, nor of any protocol.
package quota

import (
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"

	"github.com/watchword-iot/watchword"
)

// Key names an account: a subject of a tenant.
type Key struct {
	Tenant  watchword.TenantID
	Subject watchword.SubjectID
}

// Bound is the most that may be held, in the ledger's unit, and the configuration
// key that sets it. A Max of 0 is no bound.
type Bound struct {
	Max  int64  // in the ledger's unit; 0: none
	Name string // as "limits.subject_retained_bytes"
}

// Resource says what a ledger counts.
type Resource struct {
	Name    string // as "retained messages"; begins each refusal
	Unit    string // as "bytes"
	Subject Bound  // of each account
	Total   Bound  // of all accounts together
}

// Ledger counts one resource. K is [Key], or another type that names an account. The
// zero K is the server's own account and that of things without an owner: it counts
// toward the total and has no bound of its own. An account that holds nothing takes
// no memory. Make one with [New]. It is safe for concurrent use, and never calls
// anything while its lock is held.
type Ledger[K comparable] struct {
	resource Resource

	mu           sync.Mutex
	accounts     map[K]int64 // above zero
	peakAccounts int         // how many accounts there were since held was made
	total        int64
}

// New makes an empty ledger.
func New[K comparable](of Resource) *Ledger[K] {
	return &Ledger[K]{resource: of, accounts: map[K]int64{}}
}

// Reserve adds n to the account of k, or nothing at all. Code: busy, with the bound that
// was met in Detail.
func (l *Ledger[K]) Reserve(k K, n int64) error { return l.Move(k, 0, k, n) }

// Release takes n off the account of k. n is at most what the account holds: more is a
// bug of the caller, at which a test panics and a server sets the account to zero and
// logs an error.
func (l *Ledger[K]) Release(k K, n int64) { _ = l.Move(k, n, k, 0) } // never refused: it does not grow

// Replace has something of k take now where it took old. It is never refused where now
// is at most old. Code: busy.
func (l *Ledger[K]) Replace(k K, old, now int64) error { return l.Move(k, old, k, now) }

// Move has something that took old in the account of from take now in the account of
// to, or changes nothing. It is refused where the account of to, or the total, grows
// and would be over its bound then. Code: busy, with the bound that was met in Detail.
func (l *Ledger[K]) Move(from K, old int64, to K, now int64) error {
	return l.move(from, old, to, now, true)
}

// Add adds n to the account of k whatever the bounds say: for what exists already, as
// what a store holds at the start. An account above its bound can shrink and cannot grow.
func (l *Ledger[K]) Add(k K, n int64) { _ = l.move(k, 0, k, n, false) } // never refused: it does not ask

func (l *Ledger[K]) move(from K, old int64, to K, now int64, bounded bool) error {
	if old < 0 || now < 0 {
		l.reportMisuse("a negative amount")
		return nil
	}
	l.mu.Lock()
	var refused error
	if bounded {
		refused = l.refuse(from, old, to, now)
	}
	short := int64(0)
	if refused == nil {
		short = l.change(from, -old)
		l.change(to, now)
	}
	l.mu.Unlock()
	if short > 0 {
		l.reportMisuse(fmt.Sprintf("%d %s more were given back than were taken", short, l.resource.Unit))
	}
	return refused
}

// refuse says why a move may not be. mu is held.
func (l *Ledger[K]) refuse(from K, old int64, to K, now int64) error {
	grows := now
	if from == to {
		grows = now - old
	}
	var server K
	if b := l.resource.Subject; b.Max > 0 && to != server && grows > 0 && l.accounts[to] > b.Max-grows {
		return watchword.Refuse(watchword.Busy, "%s: %d %s more are over the bound of %d for one subject (%s)", l.resource.Name, grows, l.resource.Unit, b.Max, b.Name)
	}
	grows = now - old
	if b := l.resource.Total; b.Max > 0 && grows > 0 && l.total > b.Max-grows {
		return watchword.Refuse(watchword.Busy, "%s: %d %s more are over the bound of %d for all subjects together (%s)", l.resource.Name, grows, l.resource.Unit, b.Max, b.Name)
	}
	return nil
}

// change adds n to an account, and returns by how much it would have fallen below
// zero. mu is held.
func (l *Ledger[K]) change(k K, n int64) (short int64) {
	if n == 0 {
		return 0
	}
	has := l.accounts[k]
	if has+n < 0 {
		short, n = -(has + n), -has
	}
	if has += n; has == 0 {
		delete(l.accounts, k)
		if l.peakAccounts > 64 && len(l.accounts) < l.peakAccounts/2 { // a map does not shrink by itself
			l.accounts, l.peakAccounts = maps.Collect(maps.All(l.accounts)), len(l.accounts)
		}
	} else {
		l.accounts[k] = has
		l.peakAccounts = max(l.peakAccounts, len(l.accounts))
	}
	l.total += n
	return short
}

func (l *Ledger[K]) reportMisuse(what string) {
	if testing.Testing() {
		panic("quota: " + l.resource.Name + ": " + what)
	}
	slog.Error("quota miscounted", slog.String("resource", l.resource.Name), slog.String("what", what))
}

// Used returns what the account of k holds.
func (l *Ledger[K]) Used(k K) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accounts[k]
}

// Total returns what all accounts hold together.
func (l *Ledger[K]) Total() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Accounts returns how many accounts hold something.
func (l *Ledger[K]) Accounts() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accounts)
}
