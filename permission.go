package watchword

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// Permission is one line of the perm or deny claim: a resource and what may, or
// may not, be done with it. Its JSON is the shape of RFC 9237: [resource,
// [action…]].
//
//	topic:<MQTT filter>       pub sub
//	fn:<device>/<function>    call
//	api:<path filter>         get put post patch delete
type Permission struct {
	Resource string
	Actions  []string
}

// The prefixes of a resource and the actions each may carry.
const (
	TopicPrefix    = "topic:"
	FunctionPrefix = "fn:"
	APIPrefix      = "api:"
)

var actionsByPrefix = map[string][]string{
	TopicPrefix:    {"pub", "sub"},
	FunctionPrefix: {"call"},
	APIPrefix:      {"get", "put", "post", "patch", "delete"},
}

// ActionsOf returns all actions that a resource has; nil for an unknown kind of resource.
func ActionsOf(resource string) []string {
	for prefix, actions := range actionsByPrefix {
		if strings.HasPrefix(resource, prefix) {
			return slices.Clone(actions)
		}
	}
	return nil
}

// Check refuses a permission whose resource or actions are not of the table
// above. It does not parse the filter. Code: token_malformed.
func (p Permission) Check() error {
	for prefix, actions := range actionsByPrefix {
		rest, ok := strings.CutPrefix(p.Resource, prefix)
		if !ok {
			continue
		}
		if rest == "" || len(p.Actions) == 0 {
			return Refuse(TokenMalformed, "each permission must have a resource and at least one action")
		}
		for i, a := range p.Actions {
			if !slices.Contains(actions, a) || slices.Contains(p.Actions[:i], a) {
				return Refuse(TokenMalformed, "each action of a permission must be one that its resource has")
			}
		}
		return nil
	}
	return Refuse(TokenMalformed, "the resource of a permission must begin with topic:, fn: or api:")
}

// MarshalJSON writes [resource, [action…]].
func (p Permission) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode([]any{p.Resource, p.Actions})
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// UnmarshalJSON reads [resource, [action…]] and nothing else.
func (p *Permission) UnmarshalJSON(b []byte) error {
	var pair []json.RawMessage
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return Refuse(TokenMalformed, "each permission must be [resource, [action…]]")
	}
	if err := json.Unmarshal(pair[0], &p.Resource); err != nil {
		return err
	}
	if err := json.Unmarshal(pair[1], &p.Actions); err != nil {
		return err
	}
	return p.Check()
}
