package authz_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/internal/authz"
)

// topics returns every topic of at most five levels of these names: z is in no filter, so it represents all other names.
func topics() (out []string) {
	level := []string{""}
	for range 5 {
		var next []string
		for _, before := range level {
			for _, name := range []string{"a", "b", "z", "$s"} {
				t := strings.TrimPrefix(before+"/"+name, "/")
				next = append(next, t)
			}
		}
		out = append(out, next...)
		level = next
	}
	return out
}

func randomFilter(r *rand.Rand) string {
	n := 1 + r.IntN(3)
	levels := make([]string, n)
	for i := range levels {
		levels[i] = []string{"a", "b", "+", "+", "$s"}[r.IntN(5)]
	}
	if r.IntN(3) == 0 {
		levels = append(levels, "#")
	}
	if r.IntN(20) == 0 {
		return "#"
	}
	return strings.Join(levels, "/")
}

func TestIntersectionMatchesBoth(t *testing.T) {
	all, r := topics(), rand.New(rand.NewPCG(1, 2))
	for range 400 {
		a, b := randomFilter(r), randomFilter(r)
		both, ok := authz.Intersection(a, b)
		if ok && authz.CheckFilter(both) != nil {
			t.Fatalf("%s and %s: %q is no filter", a, b, both)
		}
		for _, topic := range all {
			want := authz.Match(a, topic) && authz.Match(b, topic)
			if got := ok && authz.Match(both, topic); got != want {
				t.Fatalf("%s and %s: %q (%v) matches %s: %v, want %v", a, b, both, ok, topic, got, want)
			}
		}
	}
}

func TestAnyTopicIsExact(t *testing.T) {
	all, r := topics(), rand.New(rand.NewPCG(3, 4))
	o := &authz.Origin{Policy: "p"}
	seen := map[bool]int{}
	for range 1500 {
		var g [2]authz.Grant[struct{}]
		for i := range g {
			for range 1 + r.IntN(2) {
				g[i].Allowed.Topics = append(g[i].Allowed.Topics, authz.NewTopic(randomFilter(r), r.IntN(2) == 0, r.IntN(2) == 0, o))
			}
			for range r.IntN(4) {
				g[i].Denied.Topics = append(g[i].Denied.Topics, authz.NewTopic(randomFilter(r), r.IntN(3) > 0, r.IntN(3) > 0, o))
			}
		}
		want := false
		for _, topic := range all {
			want = want || g[0].Publish(topic).Allowed && g[1].Publish(topic).Allowed || g[0].Subscribe(topic).Allowed && g[1].Subscribe(topic).Allowed
		}
		if got := authz.AnyTopic(&g[0], &g[1]); got != want {
			t.Fatalf("%+v: %v, want %v", g, got, want)
		}
		seen[want]++
	}
	if seen[true] < 100 || seen[false] < 100 {
		t.Errorf("not judged enough: %v", seen)
	}
}

func TestFullyDeniedRuleGrantsNothing(t *testing.T) {
	rule := func(filters ...string) (r authz.Rules[struct{}]) {
		for _, f := range filters {
			r.Topics = append(r.Topics, authz.NewTopic(f, true, true, nil))
		}
		return r
	}
	for _, tc := range []struct {
		name            string
		allowed, denied []string
		want            bool
	}{
		{"allowed", []string{"a/#"}, nil, true},
		{"nothing allowed", nil, nil, false},
		{"denied by its own filter", []string{"a/#"}, []string{"a/#"}, false},
		{"denied in parts, of which none is the whole", []string{"a/#"}, []string{"a", "a/+", "a/+/#"}, false},
		{"denied as deep as any rule goes, and no deeper", []string{"a/#"}, []string{"a", "a/+"}, true},
		{"denied as deep as it begins, and no deeper", []string{"a/b/c/#"}, []string{"a/b/c"}, true},
		{"everything with one level", []string{"#"}, []string{"+"}, true},
		{"its parent is left", []string{"a/#"}, []string{"a/+/#"}, true},
		{"one level in between is left", []string{"a/#"}, []string{"a", "a/+", "a/+/+/+/#"}, true},
		{"one name is denied", []string{"a/+"}, []string{"a/b"}, true},
		{"everything but what starts with $", []string{"$s/a"}, []string{"#"}, true},
	} {
		g := authz.Grant[struct{}]{Allowed: rule(tc.allowed...), Denied: rule(tc.denied...)}
		all := authz.Grant[struct{}]{Allowed: rule("#", "$s/#")}
		if got := authz.AnyTopic(&g, &all); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
		if got := authz.AnyTopic(&all, &g); got != tc.want {
			t.Errorf("%s, the other way round: %v", tc.name, got)
		}
	}
}
