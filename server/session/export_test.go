package session

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// OfflineCount returns how much a guard keeps in each of its maps: nothing once every session has gone.
func (g *Guard) OfflineCount() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return map[string]int{
		"sessions": len(g.sessions), "subjects": len(g.subjects), "held": len(g.offline), "absent": len(g.offlineBySubject),
		"labels": len(g.index.labels), "unsettled": len(g.index.unindexed), "under": len(g.policySets),
	}
}

// The changes that tests make, as [Live] brings them.

func (g *Guard) SubjectChanged(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) {
	_ = g.HandleChange(ctx, watchword.Change{Tenant: t, Kind: watchword.SubjectChanged, ID: string(id)}) // a guard has no errors
}

func (g *Guard) TokenRevoked(t watchword.TenantID, _ watchword.SubjectID, jti string) {
	_ = g.HandleChange(context.Background(), watchword.Change{Tenant: t, Kind: watchword.AccessTokenRevoked, ID: jti, Version: 1})
}

func (g *Guard) IssuerRevoked(ctx context.Context, _ watchword.KeyID) {
	_ = g.HandleChange(ctx, watchword.Change{Kind: watchword.ServerKeysChanged})
}

// PolicyChanged is a change of which policies differ is known: what they are found by is left out.
func (g *Guard) PolicyChanged(ctx context.Context, t watchword.TenantID, versions ...*policy.Document) {
	g.changesMu.RLock()
	defer g.changesMu.RUnlock()
	recomputeAll(ctx, g.affected(t, versions))
}
