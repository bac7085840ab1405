package bus

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/server/policy"
)

// someTopic draws from few levels, so that topics share many of them.
func someTopic(r *rand.Rand, wild bool) string {
	names := []string{"", "a", "b", "ab", "a-b", "a.", "$x", "é", "zz", strings.Repeat("long", 5)}
	if wild {
		names = append(names, "+", "+", "+", "+")
	}
	levels := make([]string, 1+r.IntN(5))
	for i := range levels {
		levels[i] = names[r.IntN(len(names))]
	}
	if wild && r.IntN(3) == 0 {
		levels = append(levels, "#")
	}
	s := strings.Join(levels, "/")
	if s == "" {
		return "a"
	}
	return s
}

// retainedAt is a retained message as a transport encodes it: here its topic, between some bytes.
func retainedAt(topic string, payload []byte) *Retained {
	return NewRetained(append([]byte("begin"+topic), payload...), len("begin"), len(topic), 0)
}

// A filter finds exactly the topics that it matches by policy's algorithm, and the list is sorted, whatever was added and
// removed, and wherever the search stops and resumes.
func TestRetainedFilterMatches(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 8 {
		var l records
		want := map[string]*Retained{}
		for range 1 + r.IntN(3000) {
			topic := someTopic(r, false)
			if r.IntN(3) == 0 {
				if x := want[topic]; x != nil {
					l.remove(x)
					delete(want, topic)
				}
				continue
			}
			x := retainedAt(topic, make([]byte, r.IntN(3)))
			l.put(x)
			want[topic] = x
		}
		for topic, x := range want {
			if l.find([]byte(topic)) != x {
				t.Fatalf("round %d: %q is not found", round, topic)
			}
		}
		if x := l.find([]byte("never/there")); x != nil {
			t.Fatalf("found %q", x.Topic())
		}
		for range 100 {
			filter := someTopic(r, true)
			var got, match []string
			steps := 1 + r.IntN(50)
			for after, more := []byte(nil), true; more; more = after != nil {
				n := 1 + r.IntN(5)
				after = l.scan(filter, after, steps, func(x *Retained) bool {
					got = append(got, string(x.Topic()))
					n--
					return n > 0
				})
			}
			for topic := range want {
				if policy.Match(filter, topic) {
					match = append(match, topic)
				}
			}
			slices.SortFunc(match, func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) })
			if !slices.Equal(got, match) {
				t.Fatalf("round %d: %s\n got %q\nwant %q", round, filter, got, match)
			}
		}
		for _, topic := range slices.Sorted(maps.Keys(want)) {
			l.remove(want[topic])
		}
		if l.chunks != nil {
			t.Fatalf("%d chunks of nothing", len(l.chunks))
		}
	}
}

// A filter with a name after a wildcard does not examine every topic between.
func TestRetainedSearchSkipsNonMatching(t *testing.T) {
	var l records
	for i := range 50 {
		for j := range 200 {
			l.put(retainedAt(fmt.Sprintf("t/%d/%d", i, j), nil))
		}
	}
	n := 0
	if after := l.scan("t/+/7", nil, 50*4, func(*Retained) bool { n++; return true }); after != nil || n != 50 {
		t.Errorf("%d found, up to %q", n, after)
	}
}
