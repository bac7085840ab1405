package permit

import (
	"strings"

	"github.com/watchword-iot/watchword"
)

// Rules is one side of a grant. B is a bound on one argument of a call.
type Rules[B any] struct {
	Topics []Topic
	Calls  []Call[B]
	Paths  []Path
}

// Origin names where a rule stands. It is shared by all entries of the rule.
type Origin struct {
	Policy string
	Line   int // 0 where there are no lines: a built-in policy, or a token
}

// Topic is about a filter. literal is what every topic that the filter matches
// begins with: a comparison of bytes that spares most matches.
type Topic struct {
	Filter, literal string
	Pub, Sub        bool
	Origin          *Origin
}

// NewTopic returns a rule about filter, which [CheckFilter] takes.
func NewTopic(filter string, pub, sub bool, o *Origin) Topic {
	return Topic{filter, literal(filter), pub, sub, o}
}

// Path is about the methods of a path filter.
type Path struct {
	Filter, literal string
	Actions         uint8 // of [PathBit]
	Origin          *Origin
}

// NewPath returns a rule about filter, which [CheckPath] takes.
func NewPath(filter string, actions uint8, o *Origin) Path {
	return Path{filter, literal(filter), actions, o}
}

// PathActions is what may be done on a path, in the order of the bits of [PathBit].
var PathActions = []string{"get", "put", "post", "patch", "delete"}

// AllPaths is every bit of [PathBit].
const AllPaths = 1<<5 - 1

// PathBit is the bit of an HTTP method in either case; 0 for one that no rule can
// name. HEAD is judged as GET.
func PathBit(method string) uint8 {
	switch method {
	case "GET", "get", "HEAD", "head":
		return 1
	case "PUT", "put":
		return 2
	case "POST", "post":
		return 4
	case "PATCH", "patch":
		return 8
	case "DELETE", "delete":
		return 16
	}
	return 0
}

// maxPath is the longest path that is judged: a topic may stand in one, percent-encoded.
const maxPath = 4 * MaxTopic

// cleanPath reports whether path begins with a slash and has no empty, . or .. segment.
// A slash at the end begins an empty one; "/" alone has none.
func cleanPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok || len(path) > maxPath || !Printable(path) {
		return false
	}
	for more := rest != ""; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

// Target is a device as rules about calls see it.
type Target struct {
	ID     watchword.SubjectID
	Labels watchword.Labels
	// Unlabeled says that whoever asks does not know the labels: then no allowed
	// rule by labels reaches the device, and every denied one does.
	Unlabeled bool
	// Version is the [watchword.Subject.Basis] that the labels are of; 0 where nobody knows.
	Version int64
}

// Call is about one device (Device), any ("*"), or those with Labels.
type Call[B any] struct {
	Device   string
	Labels   watchword.Labels
	Function string // may end in *
	Bounds   []B
	Origin   *Origin
}

// Reaches reports whether an allowed rule reaches the device.
func (r *Call[B]) Reaches(t Target) bool {
	if r.Labels != nil {
		return !t.Unlabeled && t.Labels.Has(r.Labels)
	}
	return r.Device == "*" || r.Device == string(t.ID)
}

// Matches reports whether an allowed rule is about this function of this device.
func (r *Call[B]) Matches(t Target, function string) bool {
	return r.Reaches(t) && MatchFunction(r.Function, function)
}

// excludes reports whether a denied rule has nothing to say about the device.
func (r *Call[B]) excludes(t Target) bool {
	return !r.Reaches(t) && !(t.Unlabeled && r.Labels != nil)
}

// Resource writes device and function as they stand in a permission.
func (r *Call[B]) Resource() string {
	device := r.Device
	if r.Labels != nil {
		device = r.Labels.String()
	}
	return watchword.FunctionPrefix + device + "/" + r.Function
}

// MatchFunction reports whether a pattern, which may end in *, matches a function.
func MatchFunction(pattern, function string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(function, prefix)
	}
	return pattern == function
}
