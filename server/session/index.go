package session

import (
	"maps"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// index finds sessions by the labels of their subjects. Guard.mu protects it. While the authority
// of a session is being read, its labels are unknown; it is unindexed then, and every change
// affects it.
type index struct {
	labels    map[labelKey]map[*Session]struct{}
	unindexed map[*Session]struct{}
}

type labelKey struct {
	tenant      watchword.TenantID
	name, value string
}

func newIndex() index {
	return index{labels: map[labelKey]map[*Session]struct{}{}, unindexed: map[*Session]struct{}{}}
}

func (x *index) markUnindexed(s *Session) { x.unindexed[s] = struct{}{} }

// put indexes s under the labels that its authority was computed from.
func (x *index) put(s *Session, labels watchword.Labels) {
	if s.indexed != nil && maps.Equal(s.indexed, labels) {
		delete(x.unindexed, s)
		return
	}
	x.remove(s)
	s.indexed = labels
	for name, value := range labels {
		k := labelKey{s.subject.tenant, name, value}
		if x.labels[k] == nil {
			x.labels[k] = map[*Session]struct{}{}
		}
		x.labels[k][s] = struct{}{}
	}
}

func (x *index) remove(s *Session) {
	delete(x.unindexed, s)
	for name, value := range s.indexed {
		k := labelKey{s.subject.tenant, name, value}
		delete(x.labels[k], s)
		if len(x.labels[k]) == 0 {
			delete(x.labels, k)
		}
	}
	s.indexed = nil
}

// smallest returns the indexed sessions of the label, among labels, that the fewest sessions have.
func (x *index) smallest(t watchword.TenantID, labels watchword.Labels) (out map[*Session]struct{}) {
	first := true
	for name, value := range labels {
		if some := x.labels[labelKey{t, name, value}]; first || len(some) < len(out) {
			out, first = some, false
		}
	}
	return out
}

func (g *Guard) markUnindexed(s *Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !s.ended.Load() {
		g.index.markUnindexed(s)
	}
}

// indexSession is the index's; set is what s was computed under, nil where that is known.
func (g *Guard) indexSession(s *Session, labels watchword.Labels, set *policy.Set) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.recordPolicySet(s.subject.tenant, set)
	g.index.put(s, labels)
}
