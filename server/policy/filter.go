package policy

import "github.com/watchword-iot/watchword/internal/authz"

// MaxLevels limits the levels of a topic or filter.
const MaxLevels = authz.MaxLevels

// CheckTopic checks that topic is a valid topic name (MQTT 5.0 §4.7). Code: bad_request.
func CheckTopic(topic string) error { return authz.CheckTopic(topic) }

// CheckFilter checks that filter is a valid topic filter (MQTT 5.0 §4.7): + and # are alone in their level, # in the last.
// Code: bad_request.
func CheckFilter(filter string) error { return authz.CheckFilter(filter) }

// Share splits a shared subscription $share/group/rest (MQTT 5.0 §4.8.2). Any other filter is
// returned as rest. Code: bad_request.
func Share(filter string) (group, rest string, shared bool, err error) { return authz.Share(filter) }

// Match reports whether a filter matches a topic. A wildcard in the first level
// matches no topic that starts with $ (MQTT 5.0 §4.7.2).
func Match(filter, topic string) bool { return authz.Match(filter, topic) }

// Contains reports whether outer matches every topic that inner matches. Both are
// filters. It is exact.
func Contains(outer, inner string) bool { return authz.Contains(outer, inner) }
