package watchword

import (
	"slices"
	"strings"
)

// The bounds of a scope.
const (
	MaxScope       = 4 << 10 // bytes
	MaxScopeTokens = 64
)

// FullScope is the scope that asks for all that policy gives, whatever the resource.
const FullScope = "*"

// ParseScope reads the scope parameter (RFC 6749 §3.3): tokens between spaces, each
// one permission as ACTION[,ACTION…]:RESOURCE, like pub,sub:topic:devices/lamp-7/#,
// call:fn:lamp-8/lamp.set or get:api:/v1/self/#. Tokens on one resource become one
// permission. Empty is nil. Code: scope_invalid.
func ParseScope(scope string) ([]Permission, error) {
	if scope == "" {
		return nil, nil
	}
	bad := Refuse(ScopeInvalid, "scope must be tokens separated by single spaces, each ACTION[,ACTION]:RESOURCE")
	if len(scope) > MaxScope || strings.Count(scope, " ") >= MaxScopeTokens {
		return nil, Refuse(ScopeInvalid, "scope must have at most %d tokens and %d bytes", MaxScopeTokens, MaxScope)
	}
	for _, c := range []byte(scope) {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return nil, bad
		}
	}
	var out []Permission
	for one := range strings.SplitSeq(scope, " ") {
		actions, resource, _ := strings.Cut(one, ":")
		p := Permission{Resource: resource, Actions: strings.Split(actions, ",")}
		if p.Check() != nil {
			return nil, bad
		}
		i := slices.IndexFunc(out, func(o Permission) bool { return o.Resource == resource })
		if i < 0 {
			out = append(out, p)
			continue
		}
		for _, a := range p.Actions {
			if !slices.Contains(out[i].Actions, a) {
				out[i].Actions = append(out[i].Actions, a)
			}
		}
	}
	return out, nil
}

// FormatScope writes permissions as ParseScope reads them.
func FormatScope(ps []Permission) string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = strings.Join(p.Actions, ",") + ":" + p.Resource
	}
	return strings.Join(lines, " ")
}
