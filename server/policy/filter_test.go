package policy_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/server/policy"
)

// every filter and topic of up to three levels over a small alphabet. "z" and "$z" are in no filter: they represent all
// other names of a level.
func every(alphabet []string, levels int, ok func(string) bool) []string {
	var out []string
	var grow func(prefix []string)
	grow = func(prefix []string) {
		if len(prefix) > 0 {
			if s := strings.Join(prefix, "/"); s != "" && ok(s) {
				out = append(out, s)
			}
		}
		if len(prefix) == levels {
			return
		}
		for _, a := range alphabet {
			grow(append(prefix[:len(prefix):len(prefix)], a))
		}
	}
	grow(nil)
	return out
}

// matches is MQTT 5.0 §4.7, written level by level with no cleverness.
func matches(filter, topic string) bool {
	fs, ts := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (fs[0] == "+" || fs[0] == "#") {
		return false
	}
	for i, f := range fs {
		if f == "#" {
			return true
		}
		if i >= len(ts) || f != "+" && f != ts[i] {
			return false
		}
	}
	return len(fs) == len(ts) || len(fs) == len(ts)+1 && fs[len(fs)-1] == "#"
}

func TestTheAlgebraIsExact(t *testing.T) {
	filters := every([]string{"a", "b", "", "+", "#", "$s"}, 3, func(s string) bool { return policy.CheckFilter(s) == nil })
	topics := every([]string{"a", "b", "", "z", "$s", "$z"}, 4, func(s string) bool { return policy.CheckTopic(s) == nil })
	t.Logf("%d filters, %d topics", len(filters), len(topics))
	reach := make([]map[string]bool, len(filters))
	for i, f := range filters {
		reach[i] = map[string]bool{}
		for _, topic := range topics {
			got, want := policy.Match(f, topic), matches(f, topic)
			// "a/#" matches its parent "a" (§4.7.1.2), which the loop above says by its last line.
			if got != want {
				t.Fatalf("Match(%q, %q) = %v", f, topic, got)
			}
			if want {
				reach[i][topic] = true
			}
		}
	}
	for i, a := range filters {
		for j, b := range filters {
			contains, intersects := true, false
			for topic := range reach[j] {
				if reach[i][topic] {
					intersects = true
				} else {
					contains = false
				}
			}
			if got := policy.Contains(a, b); got != contains {
				t.Errorf("Contains(%q, %q) = %v", a, b, got)
			}
			if got := authz.Intersects(a, b); got != intersects {
				t.Errorf("Intersects(%q, %q) = %v", a, b, got)
			}
		}
	}
}

func TestLongFiltersKeepAlgebraLaws(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"a", "b", "c", "", "$s", "+", "+"}
	random := func() string {
		var ls []string
		for range 1 + r.IntN(8) {
			ls = append(ls, words[r.IntN(len(words))])
		}
		if r.IntN(3) == 0 {
			ls = append(ls, "#")
		}
		s := strings.Join(ls, "/")
		if s == "" {
			return "a"
		}
		return s
	}
	instance := func(f string) string { // a topic that f matches, if it matches any of this shape
		ls := strings.Split(f, "/")
		for i, l := range ls {
			switch l {
			case "+":
				ls[i] = []string{"a", "b", "zz", ""}[r.IntN(4)]
			case "#":
				ls[i] = "q/r"
			}
		}
		return strings.Join(ls, "/")
	}
	for range 200_000 {
		a, b := random(), random()
		if authz.Intersects(a, b) != authz.Intersects(b, a) {
			t.Fatalf("Intersects(%q, %q) depends on the order", a, b)
		}
		if !policy.Contains(a, a) {
			t.Fatalf("%q does not contain itself", a)
		}
		topic := instance(b)
		if policy.CheckTopic(topic) != nil {
			continue
		}
		if policy.Match(b, topic) && policy.Contains(a, b) && !policy.Match(a, topic) {
			t.Fatalf("%q contains %q, but not %q", a, b, topic)
		}
		if policy.Match(a, topic) && policy.Match(b, topic) && !authz.Intersects(a, b) {
			t.Fatalf("%q and %q meet in %q", a, b, topic)
		}
	}
}

func TestInvalidFilters(t *testing.T) {
	for _, f := range []string{"", "a/#/b", "#/a", "a+", "a/b#", "+a/b", "a/##", "a\x00b", "\xff", strings.Repeat("a", 1025), strings.Repeat("a/", 64) + "a"} {
		if policy.CheckFilter(f) == nil {
			t.Errorf("%q is taken as a filter", f)
		}
	}
	for _, f := range []string{"#", "+", "/", "a//b", "+/+/#", "$SYS/#", strings.Repeat("a", 1024)} {
		if err := policy.CheckFilter(f); err != nil {
			t.Errorf("%q: %v", f, err)
		}
	}
	for _, f := range []string{"a/+", "#", "", "a\x00"} {
		if policy.CheckTopic(f) == nil {
			t.Errorf("%q is taken as a topic", f)
		}
	}
	for f, want := range map[string]string{"$share/g/a/#": "a/#", "$share/g//a": "/a", "a/b": "a/b"} {
		if _, rest, _, err := policy.Share(f); err != nil || rest != want {
			t.Errorf("Share(%q) = %q, %v", f, rest, err)
		}
	}
	for _, f := range []string{"$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a"} {
		if _, _, _, err := policy.Share(f); err == nil {
			t.Errorf("Share takes %q", f)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("a/+/b/#", "a/c/#")
	f.Add("$SYS/#", "#")
	f.Add("/", "+/+")
	f.Fuzz(func(t *testing.T, a, b string) {
		if policy.CheckFilter(a) != nil || policy.CheckFilter(b) != nil {
			return
		}
		if authz.Intersects(a, b) != authz.Intersects(b, a) {
			t.Errorf("Intersects(%q, %q) depends on the order", a, b)
		}
		if policy.Contains(a, b) && !authz.Intersects(a, b) && !strings.HasPrefix(b, "$") {
			t.Errorf("%q contains %q and does not meet it", a, b)
		}
		if policy.CheckTopic(b) == nil && policy.Match(a, b) != matches(a, b) {
			t.Errorf("Match(%q, %q)", a, b)
		}
		if policy.CheckTopic(b) == nil && policy.Match(a, b) != policy.Contains(a, b) {
			t.Errorf("a topic is a filter: %q, %q", a, b)
		}
	})
}
