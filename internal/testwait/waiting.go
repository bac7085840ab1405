// Package testwait has the waits of tests that end: each fails the test with what was
// awaited once [Limit] has passed. Only tests import it.
package testwait

import (
	"sync"
	"testing"
	"time"
)

// Limit is how long a wait lasts at most. It is far above what a wait takes on a busy
// machine, since it tells a wait that never ends from one that does; it measures nothing.
// In a bubble of testing/synctest it is of the bubble's clock.
const Limit = 60 * time.Second

// For receives one value from c and returns it; the zero value where c is closed. After
// [Limit] it ends the test with what was awaited, which is a noun ("the end of the server").
// Call it in the goroutine of the test, or in a cleanup.
func For[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	timer := time.NewTimer(Limit)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("%v passed without %s", Limit, what)
		panic("unreachable")
	}
}

// All waits for the goroutines of g as [For] waits for a value.
func All(t testing.TB, what string, g *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		g.Wait()
		close(done)
	}()
	For(t, what, done)
}

// Deadline is when a loop that looks again and again gives up.
type Deadline struct{ end time.Time }

// Within returns a deadline that begins now, for a loop that looks again and again:
//
//	for wait := waiting.Within(); !is(); {
//		wait.Check(t, "the thing")
//	}
func Within() Deadline { return Deadline{time.Now().Add(Limit)} }

// Check ends the test with what was awaited once the deadline has passed. what may say
// how far it came.
func (d Deadline) Check(t testing.TB, what string) {
	t.Helper()
	if time.Now().After(d.end) {
		t.Fatalf("%v passed without %s", Limit, what)
	}
}
