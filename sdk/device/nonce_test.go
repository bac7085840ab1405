package device

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestNonceExpiresByEitherClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n nonce
		first := n.current(time.Now())
		same := func(what string, now time.Time, want bool) {
			t.Helper()
			if got := n.current(now); (got == first) != want {
				t.Errorf("%s: the same %v", what, got == first)
			} else {
				first = got
			}
		}
		same("at once", time.Now(), true)
		same("where the own clock is set back", time.Now().Add(-time.Hour), true)
		same("near its end", time.Now().Add(nonceLife), true)
		same("after the machine slept", time.Now().Add(nonceLife+time.Second), false)
		time.Sleep(nonceLife + time.Second)
		same("two minutes later, though the own clock stands", time.Now().Add(-time.Hour), false)
	})
}
