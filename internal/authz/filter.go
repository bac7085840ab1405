package authz

import (
	"strings"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
)

// Limits of topics and filters.
const (
	MaxTopic  = 1024 // bytes left
	MaxLevels = 64
)

// CheckTopic checks that topic is a valid topic name (MQTT 5.0 §4.7). Code: bad_request.
func CheckTopic(topic string) error {
	if reason := badName(topic); reason != "" {
		return watchword.RefuseField("topic", "%s", reason)
	}
	if strings.ContainsAny(topic, "+#") {
		return watchword.RefuseField("topic", "must not contain + or #")
	}
	return nil
}

// CheckPath checks that filter is a valid path filter: a filter that starts with a slash. Code:
// bad_request.
func CheckPath(filter string) error {
	if !strings.HasPrefix(filter, "/") {
		return watchword.RefuseField("path", "must begin with /")
	}
	return CheckFilter(filter)
}

// CheckFunction checks a function name, or a name prefix followed by *. Code: bad_request.
func CheckFunction(s string) error {
	name, _ := strings.CutSuffix(s, "*")
	if s == "*" || watchword.ValidName(name) {
		return nil
	}
	return watchword.RefuseField("call", "must be the name of a function: 1 to 64 of A-Z a-z 0-9 . _ ~ -, and may end in *")
}

// CheckFilter checks that filter is a valid topic filter (MQTT 5.0 §4.7): + and # are alone in their level, # in the last.
// Code: bad_request.
func CheckFilter(filter string) error {
	if reason := badName(filter); reason != "" {
		return watchword.RefuseField("filter", "%s", reason)
	}
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "#" && more:
			return watchword.RefuseField("filter", "must have # only as its last level")
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return watchword.RefuseField("filter", "must have + and # only as a whole level")
		}
	}
	return nil
}

func badName(s string) string {
	switch {
	case s == "" || len(s) > MaxTopic:
		return "must have 1 to 1024 bytes"
	case !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0:
		return "must be UTF-8 without NUL"
	case strings.Count(s, "/") >= MaxLevels:
		return "must have at most 64 levels"
	}
	return ""
}

// Printable reports whether s is UTF-8 without control characters (U+0000 to U+001F, U+007F to
// U+009F) and non-characters (U+FDD0 to U+FDEF, and the last two of each plane), which MQTT 5.0
// §1.5.4 lets a receiver refuse.
func Printable(s string) bool {
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c < 0x20 || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r < 0xa0 || 0xfdd0 <= r && r <= 0xfdef || r&0xfffe == 0xfffe {
			return false
		}
		i += n
	}
	return true
}

// Share splits a shared subscription $share/group/rest (MQTT 5.0 §4.8.2). Any other filter is
// returned as rest. Code: bad_request.
func Share(filter string) (group, rest string, shared bool, err error) {
	s, ok := strings.CutPrefix(filter, "$share/")
	if !ok {
		return "", filter, false, nil
	}
	group, rest, ok = strings.Cut(s, "/")
	if !ok || group == "" || rest == "" || strings.ContainsAny(group, "+#") {
		return "", "", false, watchword.RefuseField("filter", "must be $share/GROUP/FILTER for a shared subscription")
	}
	return group, rest, true, nil
}

// Match reports whether a filter matches a topic. A wildcard in the first level
// matches no topic that starts with $ (MQTT 5.0 §4.7.2).
func Match(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		switch {
		case !tmore:
			return !fmore || frest == "#" // "a/#" matches "a"
		case !fmore:
			return false
		}
		filter, topic = frest, trest
	}
}

// Contains reports whether outer matches every topic that inner matches. Both are filters. It is
// exact, because a level has infinitely many names: literals cannot list what a + matches.
func Contains(outer, inner string) bool {
	// A wildcard in the first level does not match topics that start with $.
	if inner != "" && inner[0] == '$' && outer != "" && (outer[0] == '+' || outer[0] == '#') {
		return false
	}
	if outer == "+/#" {
		outer = "#" // every topic has a first level, so the two filters match the same topics
	}
	inner = rooted(inner)
	for {
		o, orest, omore := strings.Cut(outer, "/")
		if o == "#" {
			return true
		}
		i, irest, imore := strings.Cut(inner, "/")
		switch {
		case i == "#":
			return false // only # contains what # matches
		case o != "+" && o != i:
			return false
		case !imore && !omore:
			return true
		case !imore:
			return orest == "#"
		case !omore:
			return false
		}
		outer, inner = orest, irest
	}
}

// rooted rewrites "/#" as "/+/#". They match the same topics, since the parent of "/#" would be the
// empty topic, which is invalid.
func rooted(filter string) string {
	if filter == "/#" {
		return "/+/#"
	}
	return filter
}

// Intersects reports whether some topic matches both filters. It is exact.
func Intersects(a, b string) bool {
	wild := func(f string) bool { return f != "" && (f[0] == '+' || f[0] == '#') }
	if wild(a) && strings.HasPrefix(b, "$") || wild(b) && strings.HasPrefix(a, "$") {
		return false
	}
	a, b = rooted(a), rooted(b)
	for {
		x, xrest, xmore := strings.Cut(a, "/")
		y, yrest, ymore := strings.Cut(b, "/")
		if x == "#" || y == "#" {
			return true
		}
		if x != "+" && y != "+" && x != y {
			return false
		}
		switch {
		case !xmore && !ymore:
			return true
		case !xmore:
			return yrest == "#"
		case !ymore:
			return xrest == "#"
		}
		a, b = xrest, yrest
	}
}

// literal returns the common prefix of all topics that filter matches: the bytes before its first
// wildcard, without the slash before a #, which also matches its parent level.
func literal(filter string) string {
	i := strings.IndexAny(filter, "+#")
	if i < 0 {
		return filter
	}
	if filter[i] == '#' && i > 0 {
		i--
	}
	return filter[:i]
}

// prefixesAgree reports whether a topic can begin with both prefixes.
func prefixesAgree(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }
