package httpapi

import (
	"cmp"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
)

func viewDiff(name string, deleted bool, d *registry.Diff) api.PolicyDiff {
	out := api.PolicyDiff{
		Name: name, Version: d.Version, Delete: deleted, Subjects: d.Subjects, Sessions: d.Sessions, MoreSubjects: d.MoreSubjects,
		Groups: []api.PolicyDiffGroup{}, LiveSessions: []api.PolicyDiffSession{},
	}
	if d.Refused != nil {
		out.Refused = &api.PolicyRefusal{Code: watchword.CodeOf(d.Refused), Detail: watchword.DetailOf(d.Refused)}
	}
	for _, g := range d.Groups {
		one := api.PolicyDiffGroup{
			Kind: g.Kind, Role: g.Role, Labels: g.Labels, Subjects: g.Subjects, Sessions: g.Sessions, Examples: g.Examples, Cut: g.Cut,
			Gained: viewItems(g.Gained), Lost: viewItems(g.Lost), MayGiveGained: viewItems(g.GivesMore), MayGiveLost: viewItems(g.GivesLess),
		}
		switch {
		case g.ProofAfter && !g.ProofBefore:
			one.Proof = watchword.RequireProof
		case g.ProofBefore && !g.ProofAfter:
			one.Proof = "not_required"
		}
		out.Groups = append(out.Groups, one)
	}
	slices.SortStableFunc(out.Groups, func(a, b api.PolicyDiffGroup) int { return cmp.Compare(b.Subjects, a.Subjects) })
	for _, l := range d.Live {
		out.LiveSessions = append(out.LiveSessions, api.PolicyDiffSession{
			ID: l.Session.ID(), Subject: l.Authority.Subject(), Transport: l.Session.Transport(), Gains: l.Gains, Loses: l.Loses, Ends: l.Ends,
		})
	}
	return out
}

func viewItems(items []policy.Item) (out []api.PolicyDiffItem) {
	for _, i := range items {
		out = append(out, api.PolicyDiffItem{Permission: watchword.Permission{Resource: i.Resource, Actions: i.Actions}, Args: i.Args, Rule: i.Rule, Deny: i.Deny})
	}
	return out
}
