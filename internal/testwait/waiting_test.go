package testwait_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
)

// failing is a test whose end can be watched.
type failing struct {
	testing.TB
	said string
}

func (*failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	panic(f)
}

// saidBy returns what f fails with, and after how long.
func saidBy(f func(testing.TB)) (said string, after time.Duration) {
	t, begun := &failing{}, time.Now()
	defer func() {
		if r := recover(); r != nil && r != any(t) {
			panic(r)
		}
		said, after = t.said, time.Since(begun)
	}()
	f(t)
	return
}

func TestExpiredWaitNamesWhatWasAwaited(t *testing.T) {
	for name, wait := range map[string]func(testing.TB){
		"a value": func(t testing.TB) { testwait.For(t, "the thing", make(chan int)) },
		"goroutines": func(t testing.TB) {
			var g sync.WaitGroup
			g.Add(1)
			defer g.Done()
			testwait.All(t, "the thing", &g)
		},
		"a loop": func(t testing.TB) {
			for w := testwait.Within(); ; time.Sleep(time.Second) {
				w.Check(t, "the thing")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				said, after := saidBy(wait)
				if said != "1m0s passed without the thing" || after < testwait.Limit || after > testwait.Limit+time.Second {
					t.Errorf("%q after %v", said, after)
				}
			})
		})
	}
	c := make(chan int, 1)
	c <- 7
	if got := testwait.For(t, "a value", c); got != 7 {
		t.Errorf("got %d", got)
	}
	close(c)
	if got := testwait.For(t, "the end", c); got != 0 {
		t.Errorf("of a closed channel: %d", got)
	}
}
