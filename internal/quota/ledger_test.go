package quota_test

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/testwait"
)

var (
	lamp = quota.Key{Tenant: "default", Subject: "lamp"}
	pump = quota.Key{Tenant: "default", Subject: "pump"}
	// same id, another tenant: another account
	alien  = quota.Key{Tenant: "other", Subject: "lamp"}
	server = quota.Key{}
)

func ledger(subject, total int64) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "retained messages", Unit: "bytes",
		Subject: quota.Bound{Max: subject, Name: "limits.subject_retained_bytes"},
		Total:   quota.Bound{Max: total, Name: "limits.retained_bytes"},
	})
}

// refused checks that err is a refusal that names this bound and not the other.
func refused(t *testing.T, err error, bound string) {
	t.Helper()
	if watchword.CodeOf(err) != watchword.Busy {
		t.Fatalf("got %v, want busy", err)
	}
	if !strings.Contains(err.Error(), "("+bound+")") || strings.Count(err.Error(), "limits.") != 1 {
		t.Fatalf("%q does not name %s alone", err, bound)
	}
}

func holds(t *testing.T, l *quota.Ledger[quota.Key], total int64, of map[quota.Key]int64) {
	t.Helper()
	for k, n := range of {
		if got := l.Used(k); got != n {
			t.Errorf("%v holds %d, want %d", k, got, n)
		}
	}
	if l.Total() != total {
		t.Errorf("all hold %d, want %d", l.Total(), total)
	}
}

func take(t *testing.T, l *quota.Ledger[quota.Key], k quota.Key, n int64) {
	t.Helper()
	if err := l.Reserve(k, n); err != nil {
		t.Fatalf("%v takes %d: %v", k, n, err)
	}
}

func TestABoundIsReachedExactly(t *testing.T) {
	l := ledger(100, 250)
	take(t, l, lamp, 100)
	refused(t, l.Reserve(lamp, 1), "limits.subject_retained_bytes")
	take(t, l, pump, 99)
	refused(t, l.Reserve(pump, 2), "limits.subject_retained_bytes")
	take(t, l, pump, 1)
	take(t, l, alien, 50)
	refused(t, l.Reserve(alien, 1), "limits.retained_bytes")
	holds(t, l, 250, map[quota.Key]int64{lamp: 100, pump: 100, alien: 50})

	l.Release(lamp, 1)
	take(t, l, alien, 1)
	refused(t, l.Reserve(lamp, 1), "limits.retained_bytes")
}

func TestRefusedReservationChargesNothing(t *testing.T) {
	l := ledger(100, 150)
	take(t, l, lamp, 90)
	refused(t, l.Reserve(lamp, 11), "limits.subject_retained_bytes")
	refused(t, l.Reserve(pump, 61), "limits.retained_bytes")
	refused(t, l.Reserve(pump, math.MaxInt64), "limits.subject_retained_bytes")
	refused(t, l.Move(lamp, 90, pump, 101), "limits.subject_retained_bytes")
	holds(t, l, 90, map[quota.Key]int64{lamp: 90, pump: 0})
}

func TestTheDetailHasNumbersAndAdvice(t *testing.T) {
	l := ledger(100, 150)
	err := l.Reserve(lamp, 101)
	const want = "busy: retained messages: 101 more bytes would exceed the limit of 100 for one subject (limits.subject_retained_bytes)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	take(t, l, lamp, 100)
	err = l.Reserve(pump, 60)
	const all = "busy: retained messages: 60 more bytes would exceed the limit of 150 for all subjects together (limits.retained_bytes)"
	if err == nil || err.Error() != all {
		t.Errorf("got %v, want %s", err, all)
	}
}

func TestMoveWithinAnAccountCountsTheDifference(t *testing.T) {
	l := ledger(100, 100)
	take(t, l, lamp, 80)
	if err := l.Move(lamp, 60, lamp, 80); err != nil {
		t.Fatal(err)
	}
	refused(t, l.Move(lamp, 80, lamp, 81), "limits.subject_retained_bytes")
	holds(t, l, 100, map[quota.Key]int64{lamp: 100})
	if err := l.Move(lamp, 100, lamp, 40); err != nil {
		t.Fatal(err)
	}
	holds(t, l, 40, map[quota.Key]int64{lamp: 40})
}

func TestMoveChangesTheAccount(t *testing.T) {
	l := ledger(100, 120)
	take(t, l, lamp, 100)
	if err := l.Move(lamp, 80, pump, 90); err != nil { // together 110
		t.Fatal(err)
	}
	holds(t, l, 110, map[quota.Key]int64{lamp: 20, pump: 90})
	refused(t, l.Move(lamp, 20, pump, 11), "limits.subject_retained_bytes") // the total would shrink
	refused(t, l.Move(pump, 50, lamp, 61), "limits.retained_bytes")
	if err := l.Move(pump, 50, lamp, 60); err != nil {
		t.Fatal(err)
	}
	holds(t, l, 120, map[quota.Key]int64{lamp: 80, pump: 40})
}

func TestTheServerIsBoundByTheTotalAlone(t *testing.T) {
	l := ledger(100, 250)
	take(t, l, server, 240)
	refused(t, l.Reserve(server, 11), "limits.retained_bytes")
	holds(t, l, 240, map[quota.Key]int64{server: 240})
}

func TestZeroMeansUnlimited(t *testing.T) {
	l := ledger(0, 0)
	take(t, l, lamp, 1<<40)
	take(t, l, server, 1<<40)
	holds(t, l, 1<<41, nil)
}

func TestWhatExistsIsCountedAboveTheBounds(t *testing.T) {
	l := ledger(100, 150)
	l.Add(lamp, 200)
	holds(t, l, 200, map[quota.Key]int64{lamp: 200})
	refused(t, l.Reserve(lamp, 1), "limits.subject_retained_bytes")
	refused(t, l.Reserve(pump, 1), "limits.retained_bytes")
	if err := l.Move(lamp, 50, lamp, 49); err != nil {
		t.Errorf("what shrinks is refused: %v", err)
	}
	if err := l.Move(lamp, 49, lamp, 49); err != nil {
		t.Errorf("what stays as it is, is refused: %v", err)
	}
	holds(t, l, 199, map[quota.Key]int64{lamp: 199})
}

func TestAnEmptyAccountTakesNoMemory(t *testing.T) {
	l := ledger(100, 0)
	for i := range 1000 {
		k := quota.Key{Subject: watchword.SubjectID(fmt.Sprint("device-", i))}
		take(t, l, k, 10)
		take(t, l, k, 0)
		if err := l.Move(k, 10, lamp, 0); err != nil {
			t.Fatal(err)
		}
		if l.Used(k) != 0 {
			t.Fatal("an account holds what was given back")
		}
	}
	if n := l.Accounts(); n != 0 {
		t.Errorf("%d accounts are left of 1000 that hold nothing", n)
	}
}

func TestTheMapOfAccountsShrinks(t *testing.T) {
	l := ledger(0, 0)
	key := func(i int) quota.Key { return quota.Key{Subject: watchword.SubjectID(fmt.Sprint("device-", i))} }
	before := heap()
	const many = 20_000
	for i := range many {
		take(t, l, key(i), 10)
	}
	full := heap() - before
	for i := range many - 10 {
		l.Release(key(i), 10)
	}
	if left := heap() - before; left > full/10 {
		t.Errorf("%d bytes of %d are left for 10 accounts of %d", left, full, many)
	}
	if l.Accounts() != 10 || l.Used(key(many-1)) != 10 {
		t.Errorf("%d accounts are left", l.Accounts())
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestReleasingTooMuchIsReported(t *testing.T) {
	for name, f := range map[string]func(*quota.Ledger[quota.Key]){
		"more than it holds":     func(l *quota.Ledger[quota.Key]) { l.Release(lamp, 11) },
		"of another account":     func(l *quota.Ledger[quota.Key]) { l.Release(pump, 1) },
		"moved more than it had": func(l *quota.Ledger[quota.Key]) { _ = l.Move(lamp, 11, pump, 5) },
		"a negative amount":      func(l *quota.Ledger[quota.Key]) { _ = l.Reserve(lamp, -1) },
		"a negative gift":        func(l *quota.Ledger[quota.Key]) { l.Release(lamp, -1) },
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger(100, 100)
			take(t, l, lamp, 10)
			defer func() {
				if recover() == nil {
					t.Error("nothing was noticed")
				}
				if l.Used(lamp) < 0 || l.Used(pump) < 0 || l.Total() != l.Used(lamp)+l.Used(pump) {
					t.Errorf("accounts of %d and %d, together %d", l.Used(lamp), l.Used(pump), l.Total())
				}
			}()
			f(l)
		})
	}
}

func TestConcurrentUse(t *testing.T) {
	const each, many = 50, 8
	l := ledger(30, 100)
	var all sync.WaitGroup
	for i := range many {
		k := quota.Key{Subject: watchword.SubjectID(fmt.Sprint(i % 4))}
		all.Go(func() {
			for range each {
				if l.Reserve(k, 7) == nil {
					if n := l.Used(k); n > 30 {
						t.Errorf("an account holds %d of 30", n)
					}
					if n := l.Total(); n > 100 {
						t.Errorf("all hold %d of 100", n)
					}
					if l.Move(k, 7, k, 9) == nil {
						l.Release(k, 2)
					}
					l.Release(k, 7)
				}
			}
		})
	}
	testwait.All(t, "all that take and give", &all)
	if l.Total() != 0 || l.Accounts() != 0 {
		t.Errorf("%d in %d accounts are left", l.Total(), l.Accounts())
	}
}

func BenchmarkTakeAndGive(b *testing.B) {
	l := ledger(1<<40, 1<<40)
	keys := make([]quota.Key, 10_000)
	for i := range keys {
		keys[i] = quota.Key{Tenant: "default", Subject: watchword.SubjectID(fmt.Sprint("device-", i))}
		l.Add(keys[i], 1)
	}
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for i := 0; p.Next(); i++ {
			k := keys[i%len(keys)]
			_ = l.Reserve(k, 10)
			l.Release(k, 10)
		}
	})
}
