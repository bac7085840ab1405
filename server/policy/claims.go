package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// Perm returns the allowed permissions in the form of a token's perm claim: sorted, merged by
// resource, without those that another one covers. Bounds on arguments are not part of a token;
// policy checks them. The caller must not change the result.
func (g *Grant) Perm() []watchword.Permission {
	g.claims.Do(g.makeClaims)
	return g.perm
}

// Deny returns the denied permissions in the form of a token's deny claim. A denied call with
// bounds on arguments is left out: as a claim it would deny too much. Policy still denies it.
func (g *Grant) Deny() []watchword.Permission {
	g.claims.Do(g.makeClaims)
	return g.denyP
}

func (g *Grant) makeClaims() {
	g.perm = permissions(&g.Allowed, true)
	g.denyP = permissions(&g.Denied, false)
}

var topicActions = []string{"pub", "sub"}

func permissions(r *rules, bounded bool) []watchword.Permission {
	topics, paths, calls := map[string]uint8{}, map[string]uint8{}, map[string]bool{}
	for _, t := range r.Topics {
		topics[t.Filter] |= bits(t.Pub, t.Sub)
	}
	for _, p := range r.Paths {
		paths[p.Filter] |= p.Actions
	}
	for i := range r.Calls {
		c := &r.Calls[i]
		if bounded || c.Bounds == nil {
			calls[c.Resource()] = true
		}
	}
	var out []watchword.Permission
	out = appendFilters(out, watchword.TopicPrefix, topics, topicActions)
	out = appendFilters(out, watchword.APIPrefix, paths, authz.PathActions)
	for c := range calls {
		if !coveredCall(calls, c) {
			out = append(out, watchword.Permission{Resource: c, Actions: []string{"call"}})
		}
	}
	slices.SortFunc(out, func(a, b watchword.Permission) int { return cmp.Compare(a.Resource, b.Resource) })
	return out
}

func bits(pub, sub bool) (b uint8) {
	if pub {
		b |= 1
	}
	if sub {
		b |= 2
	}
	return b
}

// appendFilters appends filters with their actions, without the actions that a wider filter has
// already.
func appendFilters(out []watchword.Permission, prefix string, filters map[string]uint8, names []string) []watchword.Permission {
	for f, actions := range filters {
		for wider, more := range filters {
			if wider != f && Contains(wider, f) && (!Contains(f, wider) || wider < f) {
				actions &^= more
			}
		}
		p := watchword.Permission{Resource: prefix + f}
		for i, name := range names {
			if actions&(1<<i) != 0 {
				p.Actions = append(p.Actions, name)
			}
		}
		if p.Actions != nil {
			out = append(out, p)
		}
	}
	return out
}

func coveredCall(all map[string]bool, c string) bool {
	device, function, _ := strings.Cut(strings.TrimPrefix(c, watchword.FunctionPrefix), "/")
	for _, d := range []string{device, "*"} {
		for i := range len(function) + 1 {
			wider := watchword.FunctionPrefix + d + "/" + function[:i] + "*"
			if wider != c && all[wider] {
				return true
			}
		}
		if exact := watchword.FunctionPrefix + d + "/" + function; exact != c && all[exact] {
			return true
		}
	}
	return false
}

// FromPermissions compiles a token's perm and deny claims. Every decision of the
// grant names "token" as its rule. Code: token_malformed.
func FromPermissions(perm, deny []watchword.Permission) (*Grant, error) {
	g, err := authz.FromPermissions[bound](perm, deny)
	if err != nil {
		return nil, err
	}
	return &Grant{Grant: *g}, nil
}
