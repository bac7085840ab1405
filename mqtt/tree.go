package mqtt

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// tree is who listens to what: a trie of topic levels. Matching takes no lock and
// is safe beside every change; changes wait for each other. One subscriber is in
// a filter at most once. Filters and topics are well-formed ones.
type tree[S comparable] struct {
	mu   sync.Mutex // of who changes
	root level[S]
}

// level is one node. What it holds is swapped, never changed in place.
type level[S comparable] struct {
	here   atomic.Pointer[[]S]      // the filter ends here
	below  atomic.Pointer[[]S]      // the filter ends in # under here, which also matches here
	plus   atomic.Pointer[level[S]] // the level +
	names  atomic.Pointer[sync.Map] // string → *level[S]
	number int                      // of names; the changers' own
}

// add puts s under filter. It reports false where s was there already.
func (t *tree[S]) add(filter string, s S) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := &t.root
	for rest, more := filter, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		switch name {
		case "#":
			return insert(&n.below, s)
		case "+":
			if n.plus.Load() == nil {
				n.plus.Store(&level[S]{})
			}
			n = n.plus.Load()
		default:
			n = n.child(name)
		}
	}
	return insert(&n.here, s)
}

// child returns the level of a name, which it makes if there is none.
func (n *level[S]) child(name string) *level[S] {
	m := n.names.Load()
	if m == nil {
		m = &sync.Map{}
		n.names.Store(m)
	}
	if c, ok := m.Load(name); ok {
		return c.(*level[S])
	}
	c := &level[S]{}
	m.Store(strings.Clone(name), c) // a name that keeps a whole packet alive would be a leak
	n.number++
	return c
}

func insert[S comparable](at *atomic.Pointer[[]S], s S) bool {
	var old []S
	if p := at.Load(); p != nil {
		old = *p
	}
	if slices.Contains(old, s) {
		return false
	}
	list := append(slices.Clip(old), s) // clipped, so that readers keep theirs
	at.Store(&list)
	return true
}

// remove takes s from filter, and the levels that are empty then. It reports
// false where s was not there.
func (t *tree[S]) remove(filter string, s S) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.root.remove(filter, true, s)
}

func (n *level[S]) remove(filter string, more bool, s S) bool {
	if !more {
		return drop(&n.here, s)
	}
	name, rest, more := strings.Cut(filter, "/")
	switch name {
	case "#":
		return drop(&n.below, s)
	case "+":
		c := n.plus.Load()
		if c == nil || !c.remove(rest, more, s) {
			return false
		}
		if c.empty() {
			n.plus.Store(nil)
		}
		return true
	}
	m := n.names.Load()
	if m == nil {
		return false
	}
	found, ok := m.Load(name)
	if !ok {
		return false
	}
	c := found.(*level[S])
	if !c.remove(rest, more, s) {
		return false
	}
	if c.empty() {
		m.Delete(name)
		if n.number--; n.number == 0 {
			n.names.Store(nil)
		}
	}
	return true
}

func drop[S comparable](at *atomic.Pointer[[]S], s S) bool {
	p := at.Load()
	if p == nil {
		return false
	}
	i := slices.Index(*p, s)
	if i < 0 {
		return false
	}
	if len(*p) == 1 {
		at.Store(nil)
		return true
	}
	list := slices.Concat((*p)[:i], (*p)[i+1:])
	at.Store(&list)
	return true
}

func (n *level[S]) empty() bool {
	return n.here.Load() == nil && n.below.Load() == nil && n.plus.Load() == nil && n.number == 0
}

// match calls f with the subscribers of each filter that matches topic, who are
// different ones in one call, and may be the same in two. f keeps none of the
// lists and changes none. It allocates nothing. A wildcard in the first level
// matches no topic that begins with $ (MQTT 5.0 §4.7.2).
func (t *tree[S]) match(topic string, f func([]S)) {
	if strings.HasPrefix(topic, "$") {
		name, rest, more := strings.Cut(topic, "/")
		if c := t.root.named(name); c != nil {
			c.match(rest, more, f)
		}
		return
	}
	t.root.match(topic, true, f)
}

func (n *level[S]) named(name string) *level[S] {
	m := n.names.Load()
	if m == nil {
		return nil
	}
	c, ok := m.Load(name)
	if !ok {
		return nil
	}
	return c.(*level[S])
}

func (n *level[S]) match(topic string, more bool, f func([]S)) {
	if l := n.below.Load(); l != nil {
		f(*l)
	}
	if !more {
		if l := n.here.Load(); l != nil {
			f(*l)
		}
		return
	}
	name, rest, more := strings.Cut(topic, "/")
	if c := n.named(name); c != nil {
		c.match(rest, more, f)
	}
	if c := n.plus.Load(); c != nil {
		c.match(rest, more, f)
	}
}
