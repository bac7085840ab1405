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
	l.After(number, func(v backlog.Value[string, int]) bool {
		if v.Buffered {
			if int(v.Number) != v.Value {
				panic("another's number")
			}
			out = append(out, v.Value)
		}
		return true
	})
	return out
}

func TestBurstDropsOnlyOwnValues(t *testing.T) {
	l := backlog.New[string, int](bounds)
	n := 0
	add := func(source string, times int) {
		for range times {
			n++
			l.Add(uint64(n), source, n, tag(n), 1000)
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
	if loud < 30 || loud > 46 { // a half each, but for one grain
		t.Errorf("of 77 places the first loud one has %d", loud)
	}
}

func TestOldestValueIsDroppedAmongEquals(t *testing.T) {
	l := backlog.New[string, int](bounds)
	for n := 1; n <= 1000; n++ {
		l.Add(uint64(n), fmt.Sprint("lamp-", n), n, tag(n), 100+n%50) // whatever their sizes
	}
	if got := kept(l, 0); len(got) != 100 || got[0] != 901 || !slices.IsSorted(got) {
		t.Errorf("kept are %v", got)
	}
	if l.Sources() != 1000 { // with those of which values were lost
		t.Errorf("%d sources", l.Sources())
	}
}

func TestBytesAreBounded(t *testing.T) {
	b := bounds
	b.Values, b.SourceValues = 1<<20, 1<<20
	l := backlog.New[string, int](b)
	for n := 1; n <= 1000; n++ {
		l.Add(uint64(n), "one", n, tag(n), 10_000)
		if l.Bytes() > b.SourceBytes {
			t.Fatalf("%d bytes of one source", l.Bytes())
		}
	}
	if l.Bytes() < b.SourceBytes-10_000 {
		t.Errorf("only %d bytes are kept", l.Bytes())
	}
	for n := 1001; n <= 2000; n++ {
		l.Add(uint64(n), fmt.Sprint(n%10), n, tag(n), 10_000)
		if l.Bytes() > b.Bytes {
			t.Fatalf("%d bytes", l.Bytes())
		}
	}
	if l.Bytes() < b.Bytes-10_000 {
		t.Errorf("only %d bytes are kept", l.Bytes())
	}
	l.Add(2001, "huge", 2001, tag(2001), b.SourceBytes+1)
	if got := kept(l, 2000); len(got) != 0 {
		t.Error("one beyond the bound of its source is kept")
	}
}

// lost is what a log remembers of what was lost after a number.
func lost(l *backlog.Log[string, int], number uint64) (out []backlog.Value[string, int]) {
	l.After(number, func(v backlog.Value[string, int]) bool {
		if !v.Buffered {
			out = append(out, v)
		}
		return true
	})
	return out
}

func TestLostValuesAreReported(t *testing.T) {
	l := backlog.New[string, int](bounds)
	for n := 1; n <= 70; n++ {
		l.Add(uint64(n), "a", n, tag(n), 1)
	}
	if got := lost(l, 4); len(got) != 6 || got[0] != (backlog.Value[string, int]{Number: 5, Source: "a", Tag: "5"}) || got[5].Number != 10 || l.Forgotten() != 0 {
		t.Errorf("lost are %v, forgotten up to %d", got, l.Forgotten())
	}
	l.Add(71, "a", 71, tag(71), 1)
	if got := lost(l, 10); len(got) != 1 || got[0].Number != 11 {
		t.Errorf("lost since are %v", got)
	}
	stopped := 0
	l.After(0, func(backlog.Value[string, int]) bool { stopped++; return stopped < 3 })
	if stopped != 3 {
		t.Errorf("went on to %d after false", stopped)
	}

	b := bounds
	b.LostBytes = 10 * 129
	l = backlog.New[string, int](b)
	for n := 1; n <= 260; n++ {
		l.Add(uint64(n), "a", n, tag(n), 1)
	}
	if got := lost(l, 0); len(got) != 10 || got[0].Number != 191 || got[9].Number != 200 || l.Forgotten() != 190 {
		t.Errorf("lost are %v, forgotten up to %d", got, l.Forgotten())
	}
}

// A source is remembered as long as something of it is, and no longer.
func TestSourceIsRemovedWithItsLastValue(t *testing.T) {
	b := bounds
	b.LostBytes = 50 * (129 + 256)
	l := backlog.New[string, int](b)
	for n := 1; n <= 10_000; n++ {
		l.Add(uint64(n), fmt.Sprint("lamp-", n), n, tag(n), 10)
		if want := min(n, 150); l.Sources() != want {
			t.Fatalf("after %d there are %d sources, want %d", n, l.Sources(), want)
		}
	}
	if got := lost(l, 0); len(got) != 50 || got[0].Source != "lamp-9851" {
		t.Errorf("lost are %v", got)
	}
	for n := 10_001; n <= 20_000; n++ { // what one has is not what another had before
		l.Add(uint64(n), fmt.Sprint("lamp-", n%3), n, tag(n), 10)
	}
	if l.Sources() != 3 || l.Len() != 100 || l.Bytes() != 1000 {
		t.Errorf("%d sources, %d values of %d bytes", l.Sources(), l.Len(), l.Bytes())
	}
}

// The log is compared with a model that keeps everything in a slice and searches for the largest user.
func TestLogMatchesReferenceModel(t *testing.T) {
	const grain = 16 << 10
	type one struct {
		n, bytes int
		source   string
	}
	r := rand.New(rand.NewPCG(1, 2))
	b := backlog.Bounds{Bytes: 200_000, Values: 80, SourceBytes: 60_000, SourceValues: 30, LostBytes: 1 << 20}
	l := backlog.New[string, int](b)
	var slow []one
	var gone []int
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
		gone = append(gone, slow[i].n)
		slow = slices.Delete(slow, i, i+1)
	}
	for n := 1; n <= 5000; n++ {
		o := one{n, 1 + r.IntN(8000), fmt.Sprint(r.IntN(1 + r.IntN(30)))}
		l.Add(uint64(n), o.source, n, tag(n), o.bytes)
		slow = append(slow, o)
		of[n] = o.source
		for values, bytes := sum(o.source); values > b.SourceValues || bytes > b.SourceBytes; values, bytes = sum(o.source) {
			drop(o.source)
		}
		for values, bytes := sum(""); values > b.Values || bytes > b.Bytes; values, bytes = sum("") {
			limit, who := -1, ""
			for _, o := range slow { // oldest first: of equal ones it is removed
				if _, bytes := sum(o.source); bytes/grain > limit {
					limit, who = bytes/grain, o.source
				}
			}
			drop(who)
		}
		if n%500 == 0 { // a source is forgotten, with what it lost
			l.Forget(o.source)
			slow = slices.DeleteFunc(slow, func(x one) bool { return x.source == o.source })
			gone = slices.DeleteFunc(gone, func(n int) bool { return of[n] == o.source })
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
	for _, v := range lost(l, 0) {
		told = append(told, int(v.Number))
	}
	slices.Sort(gone)
	if !slices.Equal(told, gone) {
		t.Errorf("%d lost are told, want %d", len(told), len(gone))
	}
}
