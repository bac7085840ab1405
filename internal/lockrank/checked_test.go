//go:build race && (amd64 || arm64)

package lockrank

import (
	"strings"
	"sync"
	"testing"
)

type (
	outer struct{}
	inner struct{}
	leaf  struct{}
)

func (outer) LockInfo() Info { return Info{Name: "outer", Rank: 1, Blocking: true} }
func (inner) LockInfo() Info { return Info{Name: "inner", Rank: 2} }
func (leaf) LockInfo() Info  { return Info{Name: "leaf", Rank: 3} }

// failures runs f and returns what the checks said.
func failures(t *testing.T, f func()) (said []string) {
	t.Helper()
	before := fail
	defer func() { fail = before }()
	fail = func(what string) { said = append(said, what) }
	f()
	return said
}

func TestOrderOfLocks(t *testing.T) {
	var a Mutex[outer]
	var b, b2 Mutex[inner]
	var c RWMutex[leaf]
	for name, x := range map[string]struct {
		do   func()
		says string // "" for nothing
	}{
		"ascending": {func() {
			a.Lock()
			b.Lock()
			c.RLock()
			c.RUnlock()
			b.Unlock()
			a.Unlock()
		}, ""},
		"one that was unlocked does not count": {func() {
			c.Lock()
			c.Unlock()
			b.Lock()
			b.Unlock()
		}, ""},
		"another goroutine's do not count": {func() {
			c.Lock()
			defer c.Unlock()
			var wg sync.WaitGroup
			wg.Go(func() {
				b.Lock()
				b.Unlock()
			})
			wg.Wait()
		}, ""},
		"descending": {func() {
			c.Lock()
			a.Lock()
			a.Unlock()
			c.Unlock()
		}, "outer (rank 1) is locked by a goroutine that holds leaf (rank 3)"},
		"descending, held for reading": {func() {
			c.RLock()
			a.Lock()
			a.Unlock()
			c.RUnlock()
		}, "outer (rank 1) is locked by a goroutine that holds leaf (rank 3)"},
		"two of one kind": {func() {
			b.Lock()
			b2.Lock()
			b2.Unlock()
			b.Unlock()
		}, "inner (rank 2) is locked by a goroutine that holds inner (rank 2)"},
		"unlocked by another goroutine": {func() {
			b.Lock()
			var wg sync.WaitGroup
			wg.Go(b.Unlock)
			wg.Wait()
			b.mu.Lock() // so that the table is as it was
			b.Unlock()
		}, "inner is unlocked by a goroutine that does not hold it"},
		"waiting with a lock that may be held": {func() {
			a.Lock()
			Block()
			a.Unlock()
		}, ""},
		"waiting with a lock that may not be held": {func() {
			a.Lock()
			b.Lock()
			Block()
			b.Unlock()
			a.Unlock()
		}, "a goroutine that holds inner waits for a store or a network"},
	} {
		t.Run(name, func(t *testing.T) {
			said := strings.Join(failures(t, x.do), "; ")
			if !strings.HasPrefix(said, x.says) || x.says == "" && said != "" {
				t.Errorf("got %q, want %q", said, x.says)
			}
		})
	}
}

// Goroutines without number use the table at once.
func TestTableIsSafe(t *testing.T) {
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			var a Mutex[outer]
			var b RWMutex[inner]
			for range 100 {
				a.Lock()
				b.RLock()
				b.RUnlock()
				a.Unlock()
			}
		})
	}
	wg.Wait()
}
