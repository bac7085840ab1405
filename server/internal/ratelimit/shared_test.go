package ratelimit_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
)

var start = time.Now()

// after is a moment of the test.
func after(d time.Duration) time.Time { return start.Add(d) }

func TestSharedRateOverdraft(t *testing.T) {
	s := ratelimit.NewShared[string](1000, "too many")
	a := s.Join("lamp", after(0))
	var last time.Duration
	for range 2400 { // all at one moment
		last = a.Reserve(1, after(0))
	}
	if last != 400*time.Millisecond {
		t.Errorf("2,400 at 1,000 a second with 2,000 at once take %v, want 400ms", last)
	}
	if w := a.Reserve(1, after(400*time.Millisecond)); w != time.Millisecond {
		t.Errorf("the next one waits %v, want 1ms", w)
	}
	if w := a.Reserve(1, after(390*time.Millisecond)); w != 2*time.Millisecond {
		t.Errorf("a clock read before waits %v, want 2ms: nothing comes back twice", w)
	}
}

func TestBurstIsSharedByAllOfOneSubject(t *testing.T) {
	s := ratelimit.NewShared[string](10, "too many")
	a, b := s.Join("lamp", after(0)), s.Join("lamp", after(0))
	for range 10 {
		if a.Reserve(1, after(0)) > 0 || b.Reserve(1, after(0)) > 0 {
			t.Fatal("within the burst a caller waits")
		}
	}
	if w := b.Reserve(1, after(0)); w != 100*time.Millisecond {
		t.Errorf("beyond the burst b waits %v, want 100ms", w)
	}
	if w := a.Reserve(1, after(0)); w != 200*time.Millisecond {
		t.Errorf("a, who came after b, waits %v, want 200ms", w)
	}
	err := s.Take("lamp", 1, after(0))
	e, ok := err.(*watchword.Error)
	if !ok || e.Code != watchword.RateLimited || e.RetryAfter != 300*time.Millisecond {
		t.Errorf("a caller that cannot wait gets %v", err)
	}
	if err := s.Take("lamp", 1, after(299*time.Millisecond)); err == nil {
		t.Error("one who came too early was let in")
	}
	if err := s.Take("lamp", 1, after(300*time.Millisecond)); err != nil {
		t.Error(err)
	}
	if err := s.Take("pump", 20, after(0)); err != nil {
		t.Errorf("another: %v", err)
	}
	a.Return(5)
	if w := a.Reserve(5, after(300*time.Millisecond)); w != 0 {
		t.Errorf("what was returned is not there: %v", w)
	}
}

func TestAnAccountIsRememberedWhileItIsNotFull(t *testing.T) {
	s := ratelimit.NewShared[int](10, "too many")
	for k := range 5000 {
		s.Join(k, after(time.Duration(k)*time.Second)).Reserve(1, after(time.Duration(k)*time.Second))
		s.Leave(k, after(time.Duration(k)*time.Second))
	}
	if n := s.Len(after(0)); n > 2048 { // those before were full, and swept as others came; to the clock of then, none is now
		t.Errorf("%d accounts are remembered", n)
	}
	s = ratelimit.NewShared[int](10, "too many")
	a := s.Join(1, after(0))
	a.Reserve(1000, after(0))
	s.Leave(1, after(0))
	for k := range 5000 {
		s.Join(k+2, after(0))
	}
	if w := s.Join(1, after(0)).Reserve(0, after(0)); w != 98*time.Second {
		t.Errorf("after the owner left and others came it owes %v, want 98s", w)
	}
	s = ratelimit.NewShared[int](10, "too many")
	s.Join(1, after(0)).Reserve(1, after(0))
	if s.Leave(1, after(0)); s.Len(after(0)) != 1 {
		t.Error("an account was forgotten that was not full")
	}
	s.Join(1, after(0))
	if s.Leave(1, after(time.Second)); s.Len(after(0)) != 0 {
		t.Error("a full account is remembered that is not used")
	}
	var none *ratelimit.Shared[int]
	if none.Join(1, after(0)).Reserve(1<<30, after(0)) != 0 || none.Take(1, 1<<30, after(0)) != nil {
		t.Error("without a bound a caller waits")
	}
	none.Leave(1, after(0))
}
