// Package quota counts how much of a bounded resource each subject uses. A [Ledger] counts one
// resource, such as "retained messages" in bytes: an account for each subject, a limit for each
// account, and a limit for all accounts together. It does not know what is counted, nor any
// protocol.
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

// KeyOf returns the account of a subject; for an empty id that of the server, the zero Key.
func KeyOf(t watchword.TenantID, id watchword.SubjectID) Key {
	if id == "" {
		return Key{}
	}
	return Key{Tenant: t, Subject: id}
}

// Bound is a limit in the ledger's unit, and the configuration key that sets it. A Max of 0 means
// no limit.
type Bound struct {
	Max  int64  // in the ledger's unit; 0: no limit
	Name string // such as "limits.subject_retained_bytes"
}

// Resource describes what a ledger counts.
type Resource struct {
	Name    string // such as "retained messages"; the refusal begins with it
	Unit    string // such as "bytes"
	Subject Bound  // limit of one account
	Total   Bound  // limit of all accounts together
}

// Ledger counts one resource. K is [Key], or another type that names an account. The zero K is the
// account of the server and of things without an owner: it counts toward the total and has no limit
// of its own. An empty account takes no memory. Make one with [New]. It is safe for concurrent use,
// and calls nothing while its lock is held.
type Ledger[K comparable] struct {
	resource Resource

	mu           sync.Mutex
	accounts     map[K]int64 // all above zero
	peakAccounts int         // most accounts since the map was made
	total        int64
}

// New returns an empty ledger.
func New[K comparable](of Resource) *Ledger[K] {
	return &Ledger[K]{resource: of, accounts: map[K]int64{}}
}

// Reserve adds n to the account of k, all or nothing. Code: busy, with the exceeded limit in
// Detail.
func (l *Ledger[K]) Reserve(k K, n int64) error { return l.Move(k, 0, k, n) }

// Release subtracts n from the account of k, which must have at least n. Releasing more is a bug of
// the caller: a test panics, a server sets the account to zero and logs an error.
func (l *Ledger[K]) Release(k K, n int64) { _ = l.Move(k, n, k, 0) } // never refused, since nothing grows

// Move changes an item that took old in the account of from to one that takes now in the account of
// to, or changes nothing. It is refused where the account of to, or the total, would grow beyond
// its limit. Code: busy, with the exceeded limit in Detail.
func (l *Ledger[K]) Move(from K, old int64, to K, now int64) error {
	return l.move(from, old, to, now, true)
}

// Add adds n to the account of k regardless of limits, for items that exist already, such as those
// that a store has at start. An account above its limit can shrink but not grow.
func (l *Ledger[K]) Add(k K, n int64) { _ = l.move(k, 0, k, n, false) } // never refused without limits

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

// refuse returns the error for a move beyond a limit. mu is held.
func (l *Ledger[K]) refuse(from K, old int64, to K, now int64) error {
	grows := now
	if from == to {
		grows = now - old
	}
	var server K
	if b := l.resource.Subject; b.Max > 0 && to != server && grows > 0 && l.accounts[to] > b.Max-grows {
		return watchword.Refuse(watchword.Busy, "%s: %d more %s would exceed the limit of %d for one subject (%s)", l.resource.Name, grows, l.resource.Unit, b.Max, b.Name)
	}
	grows = now - old
	if b := l.resource.Total; b.Max > 0 && grows > 0 && l.total > b.Max-grows {
		return watchword.Refuse(watchword.Busy, "%s: %d more %s would exceed the limit of %d for all subjects together (%s)", l.resource.Name, grows, l.resource.Unit, b.Max, b.Name)
	}
	return nil
}

// change adds n to an account and returns by how much it would have become negative. mu is held.
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
		if l.peakAccounts > 64 && len(l.accounts) < l.peakAccounts/2 { // Go maps do not shrink
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

// Used returns the value of the account of k.
func (l *Ledger[K]) Used(k K) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accounts[k]
}

// Total returns the sum of all accounts.
func (l *Ledger[K]) Total() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}
