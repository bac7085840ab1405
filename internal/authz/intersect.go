package authz

import "strings"

// AnyTopic reports whether both grants allow the same action, publish or subscribe, on some topic
// that neither denies. It is exact.
func AnyTopic[B any](a, b *Grant[B]) bool {
	for i := range a.Allowed.Topics {
		x := &a.Allowed.Topics[i]
		for j := range b.Allowed.Topics {
			y := &b.Allowed.Topics[j]
			pub, sub := x.Pub && y.Pub, x.Sub && y.Sub
			if !pub && !sub || !prefixesAgree(x.literal, y.literal) {
				continue
			}
			both, ok := Intersection(x.Filter, y.Filter)
			if !ok {
				continue
			}
			if pub && !fullyDenied(both, true, a.Denied.Topics, b.Denied.Topics) || sub && !fullyDenied(both, false, a.Denied.Topics, b.Denied.Topics) {
				return true
			}
		}
	}
	return false
}

// Intersection returns the filter that matches exactly the topics that both filters match; false
// where there are none.
func Intersection(a, b string) (string, bool) {
	if !Intersects(a, b) {
		return "", false
	}
	var out []string
	a, b = rooted(a), rooted(b)
	for {
		x, xrest, xmore := strings.Cut(a, "/")
		y, yrest, ymore := strings.Cut(b, "/")
		switch {
		case x == "#":
			return strings.Join(append(out, b), "/"), true
		case y == "#":
			return strings.Join(append(out, a), "/"), true
		case x == "+":
			out = append(out, y)
		default:
			out = append(out, x)
		}
		if !xmore || !ymore { // "a/#" matches "a": where one ends, the other may only have # left
			return strings.Join(out, "/"), true
		}
		a, b = xrest, yrest
	}
}

// fullyDenied reports whether every topic that filter matches is denied.
func fullyDenied(filter string, pub bool, lists ...[]Topic) bool {
	longest := 0
	for _, l := range lists {
		for i := range l {
			longest = max(longest, Levels(l[i].Filter))
		}
	}
	return CoveredTogether(filter, longest, func(f string) bool {
		for _, l := range lists {
			for i := range l {
				if r := &l[i]; (pub && r.Pub || !pub && r.Sub) && Contains(r.Filter, f) {
					return true
				}
			}
		}
		return false
	})
}

// Levels returns the number of levels of a filter.
func Levels(filter string) int { return strings.Count(filter, "/") + 1 }

// CoveredTogether reports whether several filters match every topic that filter matches. contained reports whether one of them
// contains a filter; longest is the most levels that one of them has. It is exact: a filter without # is covered by several others
// only if one of them covers it, since a + matches infinitely many names; a filter with # is examined level by level, until none
// of the others is as long.
func CoveredTogether(filter string, longest int, contained func(filter string) bool) bool {
	if contained(filter) {
		return true
	}
	begins, open := strings.CutSuffix(rooted(filter), "#")
	if !open {
		return false
	}
	levels := strings.Count(begins, "/")
	if levels > 0 && !contained(begins[:len(begins)-1]) { // "a/#" matches "a"
		return false
	}
	for n := levels + 1; n <= min(max(longest, levels)+1, MaxLevels); n++ {
		if begins += "+"; !contained(begins) {
			return false
		}
		begins += "/"
	}
	return true
}
