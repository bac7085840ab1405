package httpapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/api"
)

// pages returns all pages of a list.
func pages[T any](t *testing.T, all []T, size int) (out [][]T) {
	t.Helper()
	for len(all) > 0 {
		page, more, err := cutPage(all, size)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 || more != (len(page) < len(all)) {
			t.Fatalf("a page of %d of %d, more %v", len(page), len(all), more)
		}
		out = append(out, page)
		all = all[len(page):]
	}
	return out
}

func TestAPageIsBoundedInBytes(t *testing.T) {
	long := strings.Repeat("\x01", 30_000) // 180,000 bytes of JSON
	for name, x := range map[string]struct {
		all  []string
		size int
		want []int
	}{
		"few":                         {[]string{"a", "b"}, 10, []int{2}},
		"as many as a page":           {[]string{"a", "b"}, 2, []int{2}},
		"one more than a page":        {[]string{"a", "b", "c"}, 2, []int{2, 1}},
		"too long together":           {slices.Repeat([]string{long}, 5), 10, []int{2, 2, 1}},
		"one that is longer than all": {[]string{"a", strings.Repeat("x", pageBytes), "b"}, 10, []int{1, 1, 1}},
	} {
		var got []int
		for _, p := range pages(t, x.all, x.size) {
			got = append(got, len(p))
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: pages of %v, want %v", name, got, x.want)
		}
	}
}

// A session with more subscriptions than a page has room for is on several pages, each
// subscription once and in order, and so are those after it.
func TestSessionPageSplitsBetweenSubscriptions(t *testing.T) {
	var want []string
	for n := range 1024 {
		want = append(want, fmt.Sprintf("%04d%s", n, strings.Repeat("\x02", 1000)))
	}
	for _, sizes := range []int{1, 2, 100} {
		var got []string
		from, count := 0, 0
		for again := false; ; again = true {
			p := sessionPager{room: pageBytes, left: sizes, from: from}
			c := &api.ClientState{Subscriptions: want}
			whole := p.take(func(cut func(*api.ClientState) *api.ClientState) any { c = cut(c); return c }, again)
			b, err := json.Marshal(c)
			if err != nil || p.err != nil || !p.complete || len(b) > pageBytes+8<<10 {
				t.Fatalf("a page of %d bytes, took %v, %v %v", len(b), p.complete, err, p.err)
			}
			got = append(got, c.Subscriptions...)
			if count++; whole {
				break
			}
			if from = p.at; from != len(got) {
				t.Fatalf("it goes on with %d after %d", from, len(got))
			}
		}
		if !slices.Equal(got, want) || count < 12 {
			t.Errorf("%d of %d subscriptions on %d pages", len(got), len(want), count)
		}
	}
	p := sessionPager{room: pageBytes, left: 1}
	one := func(func(*api.ClientState) *api.ClientState) any { return 1 }
	if !p.take(one, false) || !p.complete || p.take(one, false) || p.complete {
		t.Error("a page of one has not one")
	}
}
