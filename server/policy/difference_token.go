package policy

import (
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// Concerns reports whether a session whose token is compiled to g gains or loses something: the token allows a part of what is
// gained, or lost.
func (d *Difference) Concerns(g *Grant) (gains, loses bool) {
	return anyWithin(d.Gained, g), anyWithin(d.Lost, g)
}

func anyWithin(items []Item, g *Grant) bool {
	for i := range items {
		if items[i].partOf(g) {
			return true
		}
	}
	return false
}

// partOf reports whether g allows a part of the item. Bounds on arguments are not looked at: a token has none.
func (i *Item) partOf(g *Grant) bool {
	one, err := FromPermissions([]watchword.Permission{{Resource: i.filled, Actions: i.Actions}}, nil)
	if err != nil {
		return true // not a resource of a token: it cannot be excluded
	}
	each := func(a *filterAction) bool {
		for k := range a.count(&one.Allowed) {
			mine, about := a.filter(&one.Allowed, k)
			for n := 0; about && n < a.count(&g.Allowed); n++ {
				f, allowed := a.filter(&g.Allowed, n)
				if both, meet := authz.Intersection(mine, f); allowed && meet && !a.covers(both, &g.Denied) {
					return true
				}
			}
		}
		return false
	}
	if each(publishing) || each(subscribing) {
		return true
	}
	for k := range requesting {
		if each(&requesting[k]) {
			return true
		}
	}
	for k := range one.Allowed.Calls {
		for n := range g.Allowed.Calls {
			both, meet := callIntersection(&one.Allowed.Calls[k], &g.Allowed.Calls[n])
			if meet && !slices.ContainsFunc(g.Denied.Calls, func(r callRule) bool { return callContains(&r, &both) }) {
				return true
			}
		}
	}
	return false
}
