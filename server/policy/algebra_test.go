package policy_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/server/policy"
)

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		name, filter, topic string
		want                bool
	}{
		{"a topic matches itself", "a/b", "a/b", true},
		{"case counts", "a/B", "a/b", false},
		{"a name is no prefix of a longer name", "a/b", "a/bc", false},
		{"fewer levels are another topic", "a/b", "a", false},
		{"more levels are another topic", "a/b", "a/b/c", false},
		{"+ is one level", "a/+/c", "a/b/c", true},
		{"+ is not two levels", "a/+", "a/b/c", false},
		{"+ is not no level", "a/+", "a", false},
		{"+ is an empty level", "a/+", "a/", true},
		{"+ is an empty level in the middle", "a/+/c", "a//c", true},
		{"+ is one level of two that are empty", "+", "/", false},
		{"+/+ is both levels of a slash", "+/+", "/", true},
		{"# is the parent level", "a/#", "a", true},
		{"# is the parent level after a +", "+/#", "a", true},
		{"# is the levels below", "a/#", "a/b/c/d", true},
		{"# is an empty level", "a/#", "a/", true},
		{"# is not the parent's parent", "a/b/#", "a", false},
		{"# alone is everything", "#", "a/b", true},
		{"# alone is a slash", "#", "/", true},
		{"a leading slash is a level", "/a", "a", false},
		{"a trailing slash is a level", "a/", "a", false},
		{"# does not match $", "#", "$SYS", false},
		{"+ does not match $", "+", "$SYS", false},
		{"+/# does not match $", "+/#", "$SYS/up", false},
		{"+/name does not match $", "+/up", "$SYS/up", false},
		{"$ is matched by its name", "$SYS/#", "$SYS/up", true},
		{"and by its name alone", "$SYS/#", "$SYS", true},
		{"and by + in a later level", "$SYS/+", "$SYS/up", true},
		{"$ in a later level is nothing special", "+/$b", "a/$b", true},
		{"nor for #", "a/#", "a/$b", true},
		{"nor after an empty level", "/+", "/$b", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := policy.Match(tc.filter, tc.topic); got != tc.want {
				t.Errorf("Match(%q, %q): got %v, want %v", tc.filter, tc.topic, got, tc.want)
			}
		})
	}
}

func TestContainsAndIntersects(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		a, b                 string
		aHoldsB, bHoldsA, in bool
	}{
		{"the same filter", "a/+/b", "a/+/b", true, true, true},
		{"a name inside a +", "a/+", "a/b", true, false, true},
		{"two names", "a/b", "a/c", false, false, false},
		{"+ on both sides, crossed", "a/+", "+/b", false, false, true},
		{"# holds its parent", "a/#", "a", true, false, true},
		{"# contains what is below", "a/#", "a/+/b/#", true, false, true},
		{"# is more than all of one level", "a/#", "a/+", true, false, true},
		{"# and its parent's other child", "a/#", "b/#", false, false, false},
		{"two depths never meet", "+", "+/+", false, false, false},
		{"+/# is # written longer", "+/#", "#", true, true, true},
		{"/# is /+/# written shorter, as no topic is empty", "/#", "/+/#", true, true, true},
		{"which holds for no other parent", "a/#", "a/+/#", true, false, true},
		{"# holds no $", "#", "$SYS/#", false, false, false},
		{"+ holds no $", "+/up", "$SYS/up", false, false, false},
		{"$ holds its own", "$SYS/#", "$SYS/+/up", true, false, true},
		{"empty levels are levels", "a//b", "a/+/b", false, true, true},
		{"a slash at the end is a level", "a/", "a", false, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := policy.Contains(tc.a, tc.b); got != tc.aHoldsB {
				t.Errorf("Contains(%q, %q): got %v, want %v", tc.a, tc.b, got, tc.aHoldsB)
			}
			if got := policy.Contains(tc.b, tc.a); got != tc.bHoldsA {
				t.Errorf("Contains(%q, %q): got %v, want %v", tc.b, tc.a, got, tc.bHoldsA)
			}
			if got := authz.Intersects(tc.a, tc.b); got != tc.in {
				t.Errorf("Intersects(%q, %q): got %v, want %v", tc.a, tc.b, got, tc.in)
			}
			if got := authz.Intersects(tc.b, tc.a); got != tc.in {
				t.Errorf("Intersects(%q, %q): got %v, want %v", tc.b, tc.a, got, tc.in)
			}
		})
	}
}

// One level deeper than [TestTheAlgebraIsExact], with fewer names.
func TestTheAlgebraIsExactFourLevelsDown(t *testing.T) {
	filters := every([]string{"a", "", "+", "#"}, 4, func(s string) bool { return policy.CheckFilter(s) == nil })
	topics := every([]string{"a", "", "z", "$z"}, 5, func(s string) bool { return policy.CheckTopic(s) == nil })
	t.Logf("%d filters, %d topics", len(filters), len(topics))
	reach := make([][]bool, len(filters))
	for i, f := range filters {
		reach[i] = make([]bool, len(topics))
		for j, topic := range topics {
			reach[i][j] = matches(f, topic)
			if got := policy.Match(f, topic); got != reach[i][j] {
				t.Errorf("Match(%q, %q): got %v, want %v", f, topic, got, reach[i][j])
			}
		}
	}
	for i, a := range filters {
		for j, b := range filters {
			contains, intersects := true, false
			for k := range topics {
				contains = contains && (reach[i][k] || !reach[j][k])
				intersects = intersects || reach[i][k] && reach[j][k]
			}
			if got := policy.Contains(a, b); got != contains {
				t.Errorf("Contains(%q, %q): got %v, want %v", a, b, got, contains)
			}
			if got := authz.Intersects(a, b); got != intersects {
				t.Errorf("Intersects(%q, %q): got %v, want %v", a, b, got, intersects)
			}
		}
	}
}

// isFilter is MQTT 5.0 §4.7.1, byte by byte: what may precede and follow each wildcard.
func isFilter(s string) bool {
	if s == "" || len(s) > authz.MaxTopic || !utf8.ValidString(s) || len(strings.Split(s, "/")) > policy.MaxLevels {
		return false
	}
	for i := range len(s) {
		first := i == 0 || s[i-1] == '/'
		last := i == len(s)-1
		switch s[i] {
		case 0:
			return false
		case '+':
			if !first || !last && s[i+1] != '/' {
				return false
			}
		case '#':
			if !first || !last {
				return false
			}
		}
	}
	return true
}

func isTopic(s string) bool { return isFilter(s) && !strings.ContainsAny(s, "+#") }

// isShare is MQTT 5.0 §4.8.2: at least one byte of group without / + or #, then a filter that is not empty.
func isShare(s string) (group, rest string, shared, good bool) {
	if !strings.HasPrefix(s, "$share/") {
		return "", s, false, true
	}
	parts := strings.SplitN(s, "/", 3)
	if len(parts) < 3 || parts[1] == "" || parts[2] == "" || strings.Contains(parts[1], "+") || strings.Contains(parts[1], "#") {
		return "", "", false, false
	}
	return parts[1], parts[2], true, true
}

func holdChecks(t *testing.T, s string) {
	t.Helper()
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"CheckFilter", policy.CheckFilter(s), isFilter(s)},
		{"CheckTopic", policy.CheckTopic(s), isTopic(s)},
	} {
		if (c.err == nil) != c.want {
			t.Errorf("%s(%q): got %v, want good %v", c.name, s, c.err, c.want)
		}
		if c.err != nil && watchword.CodeOf(c.err) != watchword.BadRequest {
			t.Errorf("%s(%q): got code %v, want %v", c.name, s, watchword.CodeOf(c.err), watchword.BadRequest)
		}
	}
	group, rest, shared, err := policy.Share(s)
	wantGroup, wantRest, wantShared, good := isShare(s)
	if (err == nil) != good || group != wantGroup || rest != wantRest || shared != wantShared {
		t.Errorf("Share(%q): got %q %q %v %v, want %q %q %v, good %v", s, group, rest, shared, err, wantGroup, wantRest, wantShared, good)
	}
	if err != nil && watchword.CodeOf(err) != watchword.BadRequest {
		t.Errorf("Share(%q): got code %v, want %v", s, watchword.CodeOf(err), watchword.BadRequest)
	}
}

// strings of up to n bytes of the alphabet, the empty one first.
func spelled(alphabet string, n int) []string {
	out, last := []string{""}, []string{""}
	for range n {
		var next []string
		for _, s := range last {
			for i := range len(alphabet) {
				next = append(next, s+alphabet[i:i+1])
			}
		}
		out, last = append(out, next...), next
	}
	return out
}

func TestChecksHoldForEveryShortString(t *testing.T) {
	for _, s := range spelled("a/+#$\x00\xff", 5) {
		holdChecks(t, s)
	}
	for _, s := range spelled("g/+#", 5) {
		holdChecks(t, "$share/"+s)
		holdChecks(t, "$share"+s)
	}
}

func TestTheBoundsOfAName(t *testing.T) {
	for _, tc := range []struct {
		name, s string
		want    bool
	}{
		{"1024 bytes are enough", strings.Repeat("a", 1024), true},
		{"1025 bytes are too many", strings.Repeat("a", 1025), false},
		{"bytes count, not characters", strings.Repeat("é", 512), true},
		{"513 characters of two bytes are too many", strings.Repeat("é", 513), false},
		{"64 levels are enough", strings.Repeat("a/", 63) + "a", true},
		{"65 levels are too many", strings.Repeat("a/", 64) + "a", false},
		{"an empty level at the end counts", strings.Repeat("a/", 64), false},
		{"a cut character is no UTF-8", "a/\xc3", false},
		{"a surrogate is no UTF-8", "\xed\xa0\x80", false},
		{"a space is a name", " ", true},
		{"a line break is a name", "a\nb", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			holdChecks(t, tc.s)
			if got := policy.CheckTopic(tc.s) == nil; got != tc.want {
				t.Errorf("CheckTopic: got good %v, want %v", got, tc.want)
			}
			if got := policy.CheckFilter(tc.s) == nil; got != tc.want {
				t.Errorf("CheckFilter: got good %v, want %v", got, tc.want)
			}
		})
	}
}

// Too long for brute force: held to the laws that any exact algebra obeys.
func TestContainmentIsAnOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	draw := func() string {
		var ls []string
		for range 1 + r.IntN(5) {
			ls = append(ls, []string{"a", "b", "", "+", "+", "$s"}[r.IntN(6)])
		}
		if r.IntN(2) == 0 {
			ls = append(ls, "#")
		}
		return strings.Join(ls, "/")
	}
	widen := func(f string) string { // holds f, if it does not begin with $
		ls := strings.Split(f, "/")
		i := r.IntN(len(ls))
		if ls[i] == "#" || r.IntN(2) == 0 {
			return strings.Join(append(ls[:i:i], "#"), "/")
		}
		ls[i] = "+"
		return strings.Join(ls, "/")
	}
	chains := 0
	for range 100_000 {
		a := draw()
		if policy.CheckFilter(a) != nil || a[0] == '$' {
			continue
		}
		b := widen(a)
		c := widen(b)
		if policy.CheckFilter(b) != nil || policy.CheckFilter(c) != nil {
			continue
		}
		chains++
		if !policy.Contains(b, a) || !policy.Contains(c, b) || !policy.Contains(c, a) {
			t.Fatalf("%q was widened to %q and %q: got Contains %v %v %v, want all", a, b, c,
				policy.Contains(b, a), policy.Contains(c, b), policy.Contains(c, a))
		}
		// What meets the inner one meets the outer one.
		if d := draw(); policy.CheckFilter(d) == nil && authz.Intersects(a, d) && !authz.Intersects(b, d) {
			t.Fatalf("%q meets %q, and %q that holds it does not", d, a, b)
		}
	}
	if chains < 50_000 {
		t.Errorf("only %d chains were drawn", chains)
	}
}

// FuzzName holds the checks beside the obvious ones; [FuzzFilter] holds the algebra.
func FuzzName(f *testing.F) {
	for _, s := range []string{"", "a/+/#", "$share/g/a/#", "$share//a", "a+/b", "a\x00b", "\xff", "#/", "é/+"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		holdChecks(t, s)
		if isFilter(s) && !policy.Contains(s, s) {
			t.Errorf("%q does not hold itself", s)
		}
		if isTopic(s) && !policy.Match(s, s) {
			t.Errorf("%q does not match itself", s)
		}
	})
}
