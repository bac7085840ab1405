package authz

import (
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
)

// maxEntries limits the compiled entries of a token's claims.
const maxEntries = 512

// FromPermissions compiles a token's perm and deny claims. Every decision of the
// grant names "token" as its rule. Code: token_malformed.
func FromPermissions[B any](perm, deny []watchword.Permission) (*Grant[B], error) {
	if len(perm)+len(deny) > maxEntries {
		return nil, watchword.Refuse(watchword.TokenMalformed, "perm and deny must have at most %d permissions together", maxEntries)
	}
	g, o := &Grant[B]{}, &Origin{Policy: "token"}
	for _, p := range perm {
		if err := g.Allowed.add(p, o); err != nil {
			return nil, err
		}
	}
	for _, p := range deny {
		if err := g.Denied.add(p, o); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (r *Rules[B]) add(p watchword.Permission, o *Origin) error {
	if err := p.Check(); err != nil {
		return err
	}
	bad := watchword.Refuse(watchword.TokenMalformed, "each resource in perm and deny must be a valid filter")
	if f, ok := strings.CutPrefix(p.Resource, watchword.TopicPrefix); ok {
		if CheckFilter(f) != nil {
			return bad
		}
		r.Topics = append(r.Topics, NewTopic(f, slices.Contains(p.Actions, "pub"), slices.Contains(p.Actions, "sub"), o))
		return nil
	}
	if f, ok := strings.CutPrefix(p.Resource, watchword.APIPrefix); ok {
		if CheckPath(f) != nil {
			return bad
		}
		one := NewPath(f, 0, o)
		for _, a := range p.Actions {
			one.Actions |= PathBit(a)
		}
		r.Paths = append(r.Paths, one)
		return nil
	}
	c, ok := parseCall[B](strings.TrimPrefix(p.Resource, watchword.FunctionPrefix))
	if !ok {
		return bad
	}
	c.Origin = o
	r.Calls = append(r.Calls, c)
	return nil
}

// parseCall parses <device>/<function>.
func parseCall[B any](s string) (Call[B], bool) {
	device, function, ok := strings.Cut(s, "/")
	c := Call[B]{Device: device, Function: function}
	if !ok || CheckFunction(function) != nil {
		return c, false
	}
	if !strings.Contains(device, "=") {
		return c, device == "*" || watchword.ValidName(device)
	}
	c.Device, c.Labels = "", watchword.Labels{}
	for pair := range strings.SplitSeq(device, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if _, twice := c.Labels[k]; !ok || twice || !watchword.ValidName(k) || !watchword.ValidName(v) {
			return c, false
		}
		c.Labels[k] = v
	}
	return c, true
}
