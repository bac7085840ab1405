package session

// Held returns how much a guard keeps in each of its maps: nothing once every session has gone.
func (g *Guard) Held() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return map[string]int{
		"sessions": len(g.sessions), "subjects": len(g.subjects), "held": len(g.offline), "absent": len(g.offlineBySubject),
		"labels": len(g.index.labels), "unsettled": len(g.index.unindexed),
	}
}
