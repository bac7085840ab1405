package policy

import "github.com/watchword-iot/watchword/internal/permit"

// The bounds of a topic or filter.
const (
	MaxTopic  = permit.MaxTopic // bytes
	MaxLevels = permit.MaxLevels
)

// CheckTopic refuses what is no topic name (MQTT 5.0 §4.7). Code: bad_request.
func CheckTopic(topic string) error { return permit.CheckTopic(topic) }

// CheckFilter refuses what is no topic filter (MQTT 5.0 §4.7): + and # stand
// alone in their level, # in the last. Code: bad_request.
func CheckFilter(filter string) error { return permit.CheckFilter(filter) }

// Share takes a shared subscription apart: $share/group/rest (MQTT 5.0 §4.8.2).
// Another filter comes back whole. Code: bad_request.
func Share(filter string) (group, rest string, shared bool, err error) { return permit.Share(filter) }

// Match reports whether a filter matches a topic. A wildcard in the first level
// matches no topic that starts with $ (MQTT 5.0 §4.7.2).
func Match(filter, topic string) bool { return permit.Match(filter, topic) }

// Contains reports whether outer matches every topic that inner matches. Both are
// filters. It is exact.
func Contains(outer, inner string) bool { return permit.Contains(outer, inner) }

// Intersects reports whether some topic matches both filters. It is exact.
func Intersects(a, b string) bool { return permit.Intersects(a, b) }
