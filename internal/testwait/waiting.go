// Package testwait provides waits for tests with a deadline: each fails the test with what was
// awaited once [Limit] has passed. Only tests import it.
package testwait

import (
	"sync"
	"testing"
	"time"
)

// Limit is the longest wait. It is far above what any wait takes on a busy machine, since it only
// detects waits that never end. In a bubble of testing/synctest it is fake time.
const Limit = 60 * time.Second

// For receives one value from c and returns it; the zero value where c is closed. After [Limit] it
// fails the test with what was awaited, a noun ("the end of the server"). Call it in the test's
// goroutine, or in a cleanup.
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

// All waits for the goroutines of g, with the same deadline.
func All(t testing.TB, what string, g *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		g.Wait()
		close(done)
	}()
	For(t, what, done)
}

// Deadline is the deadline of a polling loop.
type Deadline struct{ end time.Time }

// Within starts a deadline for a polling loop:
//
//	for wait := testwait.Within(); !is(); {
//		wait.Check(t, "the thing")
//	}
func Within() Deadline { return Deadline{time.Now().Add(Limit)} }

// Check fails the test with what was awaited once the deadline has passed. what may include the
// progress.
func (d Deadline) Check(t testing.TB, what string) {
	t.Helper()
	if time.Now().After(d.end) {
		t.Fatalf("%v passed without %s", Limit, what)
	}
}
