package session

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"slices"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// HandleChange recomputes the sessions that a change concerns, or ends them. When it returns none of them passes anything that
// is no longer allowed, nor will one that was on its way to open. Where authority cannot be read a session ends. Only
// [Live] calls it, after the directory and the server's keys.
func (g *Guard) HandleChange(ctx context.Context, c watchword.Change) error {
	g.changesMu.RLock()
	defer g.changesMu.RUnlock()
	switch c.Kind {
	case watchword.SubjectChanged, watchword.SubjectDeleted:
		g.subjectChanged(ctx, c.Tenant, watchword.SubjectID(c.ID))
	case watchword.PoliciesChanged:
		g.policiesChanged(ctx, c.Tenant)
	case watchword.AccessTokenRevoked:
		g.tokenRevoked(ctx, c.Tenant, c.ID)
	case watchword.ServerKeysChanged:
		g.serverKeysChanged(ctx)
	}
	return nil
}

func (g *Guard) subjectChanged(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) {
	all := g.sessionsOf(t, id)
	for _, s := range all {
		s.Recompute(ctx)
	}
	abortAll(all...)
}

// sessionsOf returns all sessions of a subject, those without a connection among them.
func (g *Guard) sessionsOf(t watchword.TenantID, id watchword.SubjectID) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := subjectKey{t, id}
	return slices.Concat(g.subjects[k], g.offlineBySubject[k])
}

// allSessions returns the sessions of a tenant, or of all tenants where t is empty, those without a connection among them.
func (g *Guard) allSessions(t watchword.TenantID) (out []*Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, some := range []map[watchword.SessionID]*Session{g.sessions, g.offline} {
		for _, s := range some {
			if t == "" || s.subject.tenant == t {
				out = append(out, s)
			}
		}
	}
	return out
}

// policiesChanged recomputes the sessions that are concerned by a policy which differs between those that the tenant's
// sessions were computed under and the current ones: in either of its versions. Other sessions are not touched, nor
// examined if their labels differ.
func (g *Guard) policiesChanged(ctx context.Context, t watchword.TenantID) {
	now, err := g.directory.Policies(ctx, t)
	g.mu.Lock()
	known := slices.Clone(g.policySets[t])
	g.mu.Unlock()
	var concerned []*Session
	if err != nil || len(known) > maxPolicySets {
		concerned = g.allSessions(t)
	} else {
		var versions []*policy.Document
		for _, set := range known {
			versions = append(versions, policy.ChangedDocuments(set, now)...)
		}
		concerned = g.affected(t, versions)
	}
	recomputeAll(ctx, concerned)
	if err != nil {
		return // what is left under the older policies is found by the next change
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	rest := slices.DeleteFunc(g.policySets[t], func(s *policy.Set) bool { return s != now && slices.Contains(known, s) })
	if g.policySets[t] = rest; len(rest) == 0 {
		delete(g.policySets, t)
	}
}

// recomputeAll is of many sessions, which are shared out over the processors.
func recomputeAll(ctx context.Context, concerned []*Session) {
	var wg sync.WaitGroup
	const share = 64 // of one goroutine, at least
	each := max(share, (len(concerned)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	for some := range slices.Chunk(concerned, each) {
		wg.Go(func() {
			for _, s := range some {
				s.Recompute(ctx)
			}
		})
	}
	wg.Wait()
	abortAll(concerned...)
}

// maxPolicySets is the maximum number of remembered policy sets under which the sessions of one tenant were computed.
// Usually there is one, and another for each change of which this guard was not notified yet. Above it, a change concerns
// every session.
const maxPolicySets = 8

// recordPolicySet records the policies under which a session was computed. It is called with g.mu held.
func (g *Guard) recordPolicySet(t watchword.TenantID, set *policy.Set) {
	if sets := g.policySets[t]; set != nil && len(sets) <= maxPolicySets && !slices.Contains(sets, set) {
		g.policySets[t] = append(sets, set)
	}
}

// affected returns the sessions of a tenant that one of some documents speaks of, and those whose authority is being read.
func (g *Guard) affected(t watchword.TenantID, versions []*policy.Document) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := map[*Session]struct{}{}
	for s := range g.index.unindexed {
		if s.subject.tenant == t {
			found[s] = struct{}{}
		}
	}
	for _, d := range versions {
		ids, labels := d.SubjectSelector()
		add := func(s *Session) {
			if s.subject.tenant == t && d.AppliesTo(s.Authority().PolicySubject()) {
				found[s] = struct{}{}
			}
		}
		switch {
		case ids != nil:
			for _, id := range ids {
				k := subjectKey{t, id}
				for _, s := range slices.Concat(g.subjects[k], g.offlineBySubject[k]) {
					if _, known := found[s]; !known {
						add(s)
					}
				}
			}
		case len(labels) > 0:
			for s := range g.index.smallest(t, labels) {
				add(s)
			}
		default:
			for _, some := range []map[watchword.SessionID]*Session{g.sessions, g.offline} {
				for _, s := range some {
					if _, known := found[s]; !known {
						add(s)
					}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(found), bySubject)
}

// bySubject orders sessions by their subjects, so that the sessions of one subject are computed one after the other, and the store reads what
// is near.
func bySubject(a, b *Session) int {
	return cmp.Or(cmp.Compare(a.subject.tenant, b.subject.tenant), cmp.Compare(a.subject.id, b.subject.id))
}

// tokenRevoked ends the sessions of one token.
func (g *Guard) tokenRevoked(ctx context.Context, t watchword.TenantID, jti string) {
	g.revoked.add(t, jti)
	var all []*Session
	if id, err := g.directory.TokenSubject(ctx, t, jti); err == nil {
		all = g.sessionsOf(t, id)
	} else {
		all = g.allSessions(t) // whose it was cannot be read
	}
	for _, s := range all {
		s.endIfRevoked(jti)
	}
	abortAll(all...)
}

// serverKeysChanged ends every session whose token was signed by an issuer key that was revoked: GuardOptions.Revoked says
// so by the time that this is called.
func (g *Guard) serverKeysChanged(ctx context.Context) {
	if g.issuerRevoked == nil {
		return
	}
	var concerned []*Session
	for _, s := range g.allSessions("") {
		if s.recomputeMatching(ctx, func(p Credentials) bool { return g.issuerRevoked(p.IssuerKey) }) {
			concerned = append(concerned, s)
		}
	}
	abortAll(concerned...)
}

// abortAll has the transports of sessions break off what they are doing under an authority that was taken, all at the same
// time: an edit waits once, however many clients do not read.
func abortAll(all ...*Session) {
	var wg sync.WaitGroup
	for _, s := range all {
		if s.options.Abort != nil {
			wg.Go(s.options.Abort)
		}
	}
	wg.Wait()
}

// WaitForChanges waits until the changes in progress have been applied to every session that they
// affect: an effect of one session's end, such as its will, must not reach a session that the same
// change is about to end. Callbacks of a session must not call it.
func (g *Guard) WaitForChanges() {
	g.changesMu.Lock()
	defer g.changesMu.Unlock()
}
