package authz

import (
	"strings"

	"github.com/watchword-iot/watchword"
)

// Rules is the allow rules or the deny rules of a grant. B is the type of a bound on one argument
// of a call.
type Rules[B any] struct {
	Topics []Topic
	Calls  []Call[B]
	Paths  []Path
}

// Origin is the position of a rule. All entries of the rule share it.
type Origin struct {
	Policy string
	Line   int // 0 for built-in policies and tokens
}

// Topic is a rule on a topic filter. literal is the common prefix of the topics that it matches;
// comparing it first saves most matches.
type Topic struct {
	Filter, literal string
	Pub, Sub        bool
	Origin          *Origin
}

// NewTopic returns a rule on filter, which [CheckFilter] must accept.
func NewTopic(filter string, pub, sub bool, o *Origin) Topic {
	return Topic{filter, literal(filter), pub, sub, o}
}

// Path is a rule on the methods of a path filter.
type Path struct {
	Filter, literal string
	Actions         uint8 // bits of [PathBit]
	Origin          *Origin
}

// NewPath returns a rule on filter, which [CheckPath] must accept.
func NewPath(filter string, actions uint8, o *Origin) Path {
	return Path{filter, literal(filter), actions, o}
}

// PathActions lists the actions on paths, in the order of the bits of [PathBit].
var PathActions = []string{"get", "put", "post", "patch", "delete"}

// AllPaths has all bits of [PathBit] set.
const AllPaths = 1<<5 - 1

// PathBit returns the bit of an HTTP method in either case; 0 for methods that rules cannot name.
// HEAD is decided as GET.
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

// maxPath is the longest path; it may contain a percent-encoded topic.
const maxPath = 4 * MaxTopic

// cleanPath reports whether path begins with a slash and has no empty, . or .. segment. A trailing
// slash begins an empty segment; "/" alone has none.
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

// Target is the device of a call as rules see it.
type Target struct {
	ID     watchword.SubjectID
	Labels watchword.Labels
	// Unlabeled says that the labels are unknown to the caller: then no allow rule by labels
	// matches, and every deny rule by labels does.
	Unlabeled bool
	// Version is the [watchword.Subject.AuthorityVersion] of the labels; 0 if unknown.
	Version int64
}

// Call is a rule on calls of one device (Device), of any device ("*"), or of devices with Labels. A rule for one device if that has
// certain labels has both; it is only compared, and decides nothing.
type Call[B any] struct {
	Device   string
	Labels   watchword.Labels
	Function string // may end in *, as a prefix
	Bounds   []B
	Origin   *Origin
}

// Reaches reports whether an allow rule matches the device.
func (r *Call[B]) Reaches(t Target) bool {
	if r.Labels != nil {
		return !t.Unlabeled && t.Labels.Has(r.Labels)
	}
	return r.Device == "*" || r.Device == string(t.ID)
}

// Matches reports whether an allow rule matches this function of this device.
func (r *Call[B]) Matches(t Target, function string) bool {
	return r.Reaches(t) && MatchFunction(r.Function, function)
}

// excludes reports whether a deny rule does not match the device.
func (r *Call[B]) excludes(t Target) bool {
	return !r.Reaches(t) && !(t.Unlabeled && r.Labels != nil)
}

// Resource returns device and function as written in a permission.
func (r *Call[B]) Resource() string {
	device := r.Device
	if r.Labels != nil && device == "" {
		device = r.Labels.String()
	}
	return watchword.FunctionPrefix + device + "/" + r.Function
}

// MatchFunction reports whether pattern, which may end in *, matches a function's name.
func MatchFunction(pattern, function string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(function, prefix)
	}
	return pattern == function
}
