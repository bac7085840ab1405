package policy

import (
	"strings"

	"github.com/watchword-iot/watchword"
)

// AnyID is an id for a subject of which only kind, role and labels are known. What a set gives a subject with this id is what it
// gives every subject with the same kind, role and labels, with the id in its place, but for the ids that [Set.Names] and
// [IDs.Distinct] tell apart. No id, label or document has U+0001. In JSON it is longer than any id, so a token with it is too.
const AnyID watchword.SubjectID = "\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01"

// Names reports whether a document is for the subject by its id.
func (s *Set) Names(id watchword.SubjectID) bool { return len(s.bySubject[id]) > 0 }

// IDs tells which ids make a difference between grants that were compiled for [AnyID]. Rules are compared level by level, for equality; so an
// id makes one only if a level with the id in it is equal to another level.
type IDs struct {
	levels   map[string]struct{} // without AnyID
	patterns []string            // the different levels with AnyID
}

// NewIDs returns the ids of some grants; nil grants do not count.
func NewIDs(grants ...*Grant) *IDs {
	x := &IDs{levels: map[string]struct{}{}}
	patterns := map[string]struct{}{}
	add := func(level string) {
		all := x.levels
		if strings.Contains(level, string(AnyID)) {
			all = patterns
		}
		all[level] = struct{}{}
	}
	for _, g := range grants {
		if g == nil {
			continue
		}
		for _, r := range []*rules{&g.Allowed, &g.Denied, &g.give} {
			for i := range r.Topics {
				eachLevel(r.Topics[i].Filter, add)
			}
			for i := range r.Paths {
				eachLevel(r.Paths[i].Filter, add)
			}
			for i := range r.Calls {
				add(r.Calls[i].Device)
				for _, v := range r.Calls[i].Labels {
					add(v)
				}
			}
		}
	}
	for p := range patterns {
		x.patterns = append(x.patterns, p)
	}
	return x
}

func eachLevel(filter string, f func(level string)) {
	for level := range strings.SplitSeq(filter, "/") {
		f(level)
	}
}

// Distinct reports whether the grants may decide about id in another way than about most ids.
func (x *IDs) Distinct(id watchword.SubjectID) bool {
	var filled map[string]struct{}
	for _, p := range x.patterns {
		level := string(id)
		if p != string(AnyID) {
			level = strings.ReplaceAll(p, string(AnyID), level)
		}
		if _, equal := x.levels[level]; equal {
			return true
		}
		if len(x.patterns) == 1 {
			continue
		}
		if _, equal := filled[level]; equal {
			return true
		}
		if filled == nil {
			filled = make(map[string]struct{}, len(x.patterns))
		}
		filled[level] = struct{}{}
	}
	return false
}
