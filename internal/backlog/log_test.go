package backlog_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword/internal/backlog"
)

var bounds = backlog.Bounds{Bytes: 1 << 20, Values: 100, SourceBytes: 1 << 19, SourceValues: 60, LostBytes: 1 << 20}

func tag(v int) string { return fmt.Sprint(v % 7) }

// kept is what a log has after a number.
func kept(l *backlog.Log[string, int], number uint64) (out []int) {
	l.After(number, func(n uint64, v int) bool {
		if int(n) != v {
			panic("another's number")
		}
		out = append(out, v)
		return true
	})
	return out
}

func TestABurstCostsNobodyElseAValue(t *testing.T) {
	l := backlog.New[string](bounds, tag)
	n := 0
	add := func(source string, times int) {
		for range times {
			n++
			l.Add(uint64(n), source, n, 1000)
		}
	}
	add("quiet", 3)
	for i := range 20 {
		add(fmt.Sprintf("lamp-%d", i), 1)
	}
	add("loud", 10_000)
	if got := kept(l, 0); !slices.Equal(got[:23], []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}) {
		t.Errorf("kept are %v", got)
	}
	// Its own bound is met before that of all.
	if got := kept(l, 23); len(got) != 60 || got[59] != n || got[0] != n-59 {
		t.Errorf("of the loud one %d are kept, from %d on", len(got), got[0])
	}
	add("loud too", 10_000) // now all is full, and the two share what the others leave
	got := kept(l, 0)
	if len(got) != 100 || got[22] != 23 {
		t.Errorf("%d are kept: %v", len(got), got)
	}
	loud := 0
	for _, v := range got[23:] {
		if v <= 10_023 {
			loud++
		}
	}
	if loud < 36 || loud > 41 {
		t.Errorf("of 77 places the first loud one has %d", loud)
	}
}

func TestAmongEqualsTheOldestGoes(t *testing.T) {
	l := backlog.New[string](bounds, tag)
	for n := 1; n <= 1000; n++ {
		l.Add(uint64(n), fmt.Sprint("lamp-", n), n, 100+n%50) // whatever their sizes
	}
	if got := kept(l, 0); len(got) != 100 || got[0] != 901 || !slices.IsSorted(got) {
		t.Errorf("kept are %v", got)
	}
	if l.Sources() != 100 {
		t.Errorf("%d sources", l.Sources())
	}
}

func TestBytesAreBounded(t *testing.T) {
	b := bounds
	b.Values, b.SourceValues = 1<<20, 1<<20
	l := backlog.New[string](b, tag)
	for n := 1; n <= 1000; n++ {
		l.Add(uint64(n), "one", n, 10_000)
		if l.Bytes() > b.SourceBytes {
			t.Fatalf("%d bytes of one source", l.Bytes())
		}
	}
	if l.Bytes() < b.SourceBytes-10_000 {
		t.Errorf("only %d bytes are kept", l.Bytes())
	}
	for n := 1001; n <= 2000; n++ {
		l.Add(uint64(n), fmt.Sprint(n%10), n, 10_000)
		if l.Bytes() > b.Bytes {
			t.Fatalf("%d bytes", l.Bytes())
		}
	}
	if l.Bytes() < b.Bytes-10_000 {
		t.Errorf("only %d bytes are kept", l.Bytes())
	}
	l.Add(2001, "huge", 2001, b.SourceBytes+1)
	if got := kept(l, 2000); len(got) != 0 {
		t.Error("one beyond the bound of its source is kept")
	}
}

func TestWhatIsLostIsTold(t *testing.T) {
	l := backlog.New[string](bounds, tag)
	for n := 1; n <= 70; n++ {
		l.Add(uint64(n), "a", n, 1)
	}
	var lost []backlog.Lost[string]
	note := func(one backlog.Lost[string]) { lost = append(lost, one) }
	next, more := l.LostSince(0, 4, note)
	if len(lost) != 6 || lost[0] != (backlog.Lost[string]{Number: 5, Source: "a", Tag: "5"}) || lost[5].Number != 10 || more || next != 10 || l.NextLost() != 10 {
		t.Errorf("lost %v, more %v, next %d", lost, more, next)
	}
	l.Add(71, "a", 71, 1)
	lost = nil
	if _, more = l.LostSince(next, 4, note); len(lost) != 1 || lost[0].Number != 11 || more {
		t.Errorf("lost since are %v, more %v", lost, more)
	}

	b := bounds
	b.LostBytes = 10 * 129
	l = backlog.New[string](b, tag)
	for n := 1; n <= 260; n++ {
		l.Add(uint64(n), "a", n, 1)
	}
	lost = nil
	next, more = l.LostSince(0, 100, note)
	if len(lost) != 10 || lost[0].Number != 191 || !more || next != 200 {
		t.Errorf("lost %v, more %v, next %d", lost, more, next)
	}
	if _, more = l.LostSince(0, 190, note); more {
		t.Error("more is told of what came before")
	}
	if _, more = l.LostSince(0, 189, note); !more {
		t.Error("more is not told")
	}
}

// The log beside one that keeps everything in a slice and looks for who takes most.
func TestALogIsWhatASlowOneWouldBe(t *testing.T) {
	type one struct {
		n, bytes int
		source   string
	}
	r := rand.New(rand.NewPCG(1, 2))
	b := backlog.Bounds{Bytes: 200_000, Values: 80, SourceBytes: 60_000, SourceValues: 30, LostBytes: 1 << 20}
	l := backlog.New[string](b, tag)
	var slow []one
	var lost []int
	of := map[int]string{}
	sum := func(source string) (values, bytes int) {
		for _, o := range slow {
			if source == "" || o.source == source {
				values, bytes = values+1, bytes+o.bytes
			}
		}
		return values, bytes
	}
	drop := func(source string) {
		i := slices.IndexFunc(slow, func(o one) bool { return o.source == source })
		lost = append(lost, slow[i].n)
		slow = slices.Delete(slow, i, i+1)
	}
	for n := 1; n <= 5000; n++ {
		o := one{n, 1 + r.IntN(8000), fmt.Sprint(r.IntN(1 + r.IntN(30)))}
		l.Add(uint64(n), o.source, n, o.bytes)
		slow = append(slow, o)
		of[n] = o.source
		for values, bytes := sum(o.source); values > b.SourceValues || bytes > b.SourceBytes; values, bytes = sum(o.source) {
			drop(o.source)
		}
		for values, bytes := sum(""); values > b.Values || bytes > b.Bytes; values, bytes = sum("") {
			most, who := -1, ""
			for _, o := range slow { // oldest first: among equals it goes
				if _, bytes := sum(o.source); bytes/4096 > most {
					most, who = bytes/4096, o.source
				}
			}
			drop(who)
		}
		if n%500 == 0 { // a source is forgotten, with what it lost
			l.Forget(o.source)
			slow = slices.DeleteFunc(slow, func(x one) bool { return x.source == o.source })
			lost = slices.DeleteFunc(lost, func(n int) bool { return of[n] == o.source })
		}
		values, bytes := sum("")
		if l.Len() != values || l.Bytes() != bytes {
			t.Fatalf("after %d: %d values of %d bytes, want %d of %d", n, l.Len(), l.Bytes(), values, bytes)
		}
		if n%100 == 0 {
			var want []int
			for _, o := range slow {
				want = append(want, o.n)
			}
			if got := kept(l, 0); !slices.Equal(got, want) {
				t.Fatalf("after %d: %v, want %v", n, got, want)
			}
		}
	}
	var told []int
	l.LostSince(0, 0, func(o backlog.Lost[string]) { told = append(told, int(o.Number)) })
	if !slices.Equal(told, lost) {
		t.Errorf("%d lost are told, want %d", len(told), len(lost))
	}
}
