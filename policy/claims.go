package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
)

// maxEntries bounds what a token's claims may compile to.
const maxEntries = 512

// Perm returns the allowed permissions as a token carries them: merged by
// resource, without what another line covers, in order. Bounds on arguments do
// not fit a token; they stay with policy. The caller must not change it.
func (g *Grant) Perm() []watchword.Permission {
	g.claims.Do(g.makeClaims)
	return g.perm
}

// Deny returns the denied permissions. A denied call with bounds is left out: as
// a claim it would deny more than was written; policy denies it all the same.
func (g *Grant) Deny() []watchword.Permission {
	g.claims.Do(g.makeClaims)
	return g.denyP
}

func (g *Grant) makeClaims() {
	g.perm = g.allow.permissions(true)
	g.denyP = g.deny.permissions(false)
}

var topicActions = []string{"pub", "sub"}

func (r *rules) permissions(bounded bool) []watchword.Permission {
	topics, paths, calls := map[string]uint8{}, map[string]uint8{}, map[string]bool{}
	for _, t := range r.topics {
		topics[t.filter] |= bits(t.pub, t.sub)
	}
	for _, p := range r.paths {
		paths[p.filter] |= p.actions
	}
	for i := range r.calls {
		c := &r.calls[i]
		if bounded || c.args == nil {
			calls[c.resource()] = true
		}
	}
	var out []watchword.Permission
	out = appendFilters(out, watchword.TopicPrefix, topics, topicActions)
	out = appendFilters(out, watchword.APIPrefix, paths, pathActions)
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

// appendFilters writes filters with their actions; of each, only the actions that no wider filter has.
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
	device, function, _ := strings.Cut(strings.TrimPrefix(c, watchword.FnPrefix), "/")
	for _, d := range []string{device, "*"} {
		for i := range len(function) + 1 {
			wider := watchword.FnPrefix + d + "/" + function[:i] + "*"
			if wider != c && all[wider] {
				return true
			}
		}
		if exact := watchword.FnPrefix + d + "/" + function; exact != c && all[exact] {
			return true
		}
	}
	return false
}

func (r *callRule) resource() string {
	device := r.device
	if r.labels != nil {
		device = r.labels.String()
	}
	return watchword.FnPrefix + device + "/" + r.function
}

// FromPermissions compiles a token's perm and deny claims. Every decision of the
// grant names "token" as its rule. Code: token_malformed.
func FromPermissions(perm, deny []watchword.Permission) (*Grant, error) {
	if len(perm)+len(deny) > maxEntries {
		return nil, watchword.Refuse(watchword.TokenMalformed, "more than %d permissions", maxEntries)
	}
	g, o := &Grant{}, &origin{policy: "token"}
	for _, p := range perm {
		if err := g.allow.add(p, o); err != nil {
			return nil, err
		}
	}
	for _, p := range deny {
		if err := g.deny.add(p, o); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (r *rules) add(p watchword.Permission, o *origin) error {
	if err := p.Check(); err != nil {
		return err
	}
	bad := watchword.Refuse(watchword.TokenMalformed, "a permission with a resource that is no filter")
	if f, ok := strings.CutPrefix(p.Resource, watchword.TopicPrefix); ok {
		if CheckFilter(f) != nil {
			return bad
		}
		r.topics = append(r.topics, newTopicRule(f, slices.Contains(p.Actions, "pub"), slices.Contains(p.Actions, "sub"), o))
		return nil
	}
	if f, ok := strings.CutPrefix(p.Resource, watchword.APIPrefix); ok {
		if checkPath(f) != nil {
			return bad
		}
		one := newPathRule(f, 0, o)
		for _, a := range p.Actions {
			one.actions |= pathBit(a)
		}
		r.paths = append(r.paths, one)
		return nil
	}
	c, ok := parseCall(strings.TrimPrefix(p.Resource, watchword.FnPrefix))
	if !ok {
		return bad
	}
	c.origin = o
	r.calls = append(r.calls, c)
	return nil
}

// parseCall reads <device>/<function>.
func parseCall(s string) (callRule, bool) {
	device, function, ok := strings.Cut(s, "/")
	c := callRule{device: device, function: function}
	if !ok || checkFunction(function) != nil {
		return c, false
	}
	if !strings.Contains(device, "=") {
		return c, device == "*" || watchword.ValidName(device)
	}
	c.device, c.labels = "", watchword.Labels{}
	for pair := range strings.SplitSeq(device, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if _, twice := c.labels[k]; !ok || twice || !watchword.ValidName(k) || !watchword.ValidName(v) {
			return c, false
		}
		c.labels[k] = v
	}
	return c, true
}
