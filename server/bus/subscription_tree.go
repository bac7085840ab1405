package bus

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// tree is the subscriptions: a trie of topic levels. Matching takes no lock and is safe beside every change; changes wait
// for each other. One subscriber is in a filter at most once. Filters and topics must be well-formed.
type tree[S comparable] struct {
	mu   lockrank.Mutex[treeLock] // serializes changes
	root level[S]
}

// level is one node. What it holds is swapped, never changed in place.
type level[S comparable] struct {
	exact       atomic.Pointer[[]S]      // subscribers of the filter that ends here
	multiLevel  atomic.Pointer[[]S]      // subscribers of the filter that continues with #, which matches here too
	singleLevel atomic.Pointer[level[S]] // child for +
	names       atomic.Pointer[sync.Map] // string → *level[S]
	only        atomic.Pointer[level[S]] // the child, where names has one alone: most levels of most filters have
	name        string                   // of this level; empty for one of +
	number      int                      // number of children in names; used by changes only
}

// Memory of tree parts: a child for +, a child for a name (beside the name), and the map of
// children. The values are those of this compiler; a test checks them.
const (
	plusBytes  = 64
	childBytes = 186
	mapBytes   = 150
)

// add adds s to filter, with a charge for missing levels: nothing changes if pay returns an error. pay is called with mu held,
// once, if s is new. fresh is false if s was there already.
func (t *tree[S]) add(filter string, s S, pay func(bytes int64) error) (fresh bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.root.hasSubscriber(filter, s) {
		return false, nil
	}
	if err := pay(t.root.missingBytes(filter)); err != nil {
		return false, err
	}
	n := &t.root
	for rest, more := filter, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		switch name {
		case "#":
			return addToList(&n.multiLevel, s), nil
		case "+":
			if n.singleLevel.Load() == nil {
				n.singleLevel.Store(&level[S]{})
			}
			n = n.singleLevel.Load()
		default:
			n = n.child(name)
		}
	}
	return addToList(&n.exact, s), nil
}

// childFor returns the child for one level of a filter other than #; nil for none.
func (n *level[S]) childFor(name string) *level[S] {
	if name == "+" {
		return n.singleLevel.Load()
	}
	return n.childNamed(name)
}

func (n *level[S]) hasSubscriber(filter string, s S) bool {
	for rest, more := filter, true; more; {
		var name string
		if name, rest, more = strings.Cut(rest, "/"); name == "#" {
			l := n.multiLevel.Load()
			return l != nil && slices.Contains(*l, s)
		}
		if n = n.childFor(name); n == nil {
			return false
		}
	}
	l := n.exact.Load()
	return l != nil && slices.Contains(*l, s)
}

// missingBytes is what the levels take that filter needs and that are not there.
func (n *level[S]) missingBytes(filter string) (bytes int64) {
	for rest, more := filter, true; more; {
		var name string
		if name, rest, more = strings.Cut(rest, "/"); name == "#" {
			return bytes
		}
		var next *level[S]
		if n != nil {
			next = n.childFor(name)
		}
		if next == nil {
			bytes += levelBytes(name)
			if name != "+" && (n == nil || n.names.Load() == nil) {
				bytes += mapBytes
			}
		}
		n = next
	}
	return bytes
}

// levelBytes returns the memory of a child for one level of a filter.
func levelBytes(name string) int64 {
	if name == "+" {
		return plusBytes
	}
	return childBytes + int64(len(name)+7)&^7
}

// child returns the child of a name, and creates it if necessary.
func (n *level[S]) child(name string) *level[S] {
	m := n.names.Load()
	if m == nil {
		m = &sync.Map{}
		n.names.Store(m)
	}
	if c, ok := m.Load(name); ok {
		return c.(*level[S])
	}
	c := &level[S]{name: strings.Clone(name)} // cloned, so that the name does not keep a whole packet in memory
	m.Store(c.name, c)
	n.number++
	n.setOnly()
	return c
}

// setOnly sets only after a change of names.
func (n *level[S]) setOnly() {
	var only *level[S]
	if n.number == 1 {
		n.names.Load().Range(func(_, c any) bool {
			only = c.(*level[S])
			return false
		})
	}
	n.only.Store(only)
}

func addToList[S comparable](at *atomic.Pointer[[]S], s S) bool {
	var old []S
	if p := at.Load(); p != nil {
		old = *p
	}
	if slices.Contains(old, s) {
		return false
	}
	list := append(slices.Clip(old), s) // clipped, so that append copies and readers keep their slice
	at.Store(&list)
	return true
}

// remove removes s from filter, and levels that become empty. It returns false if s was not there. settle is called with mu
// held, once, if s was there: freed is the memory of removed levels, and successor returns a subscriber whose filter needs all
// remaining levels of this one; false if there is none.
func (t *tree[S]) remove(filter string, s S, settle func(freed int64, successor func() (S, bool))) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var freed int64
	if !t.root.remove(filter, true, s, &freed) {
		return false
	}
	settle(freed, func() (S, bool) { return t.root.successor(filter) })
	return true
}

// successor returns a subscriber below the last level of filter that is there: behind a name,
// if that level has some.
func (n *level[S]) successor(filter string) (s S, found bool) {
	for rest, more := filter, true; more; {
		var name string
		if name, rest, more = strings.Cut(rest, "/"); name == "#" {
			break
		}
		next := n.childFor(name)
		if next == nil {
			break
		}
		n = next
	}
	return n.anySubscriber()
}

func (n *level[S]) anySubscriber() (s S, found bool) {
	for n != nil {
		next := n.singleLevel.Load()
		if m := n.names.Load(); m != nil {
			m.Range(func(_, c any) bool {
				next = c.(*level[S])
				return false
			})
		} else if l := n.exact.Load(); l != nil {
			return (*l)[0], true
		} else if l := n.multiLevel.Load(); l != nil {
			return (*l)[0], true
		}
		n = next
	}
	return s, false
}

func (n *level[S]) remove(filter string, more bool, s S, freed *int64) bool {
	if !more {
		return removeFromList(&n.exact, s)
	}
	name, rest, more := strings.Cut(filter, "/")
	if name == "#" {
		return removeFromList(&n.multiLevel, s)
	}
	c := n.childFor(name)
	if c == nil || !c.remove(rest, more, s, freed) {
		return false
	}
	if !c.empty() {
		return true
	}
	*freed += levelBytes(name)
	if name == "+" {
		n.singleLevel.Store(nil)
		return true
	}
	n.names.Load().Delete(name)
	n.number--
	n.setOnly()
	if n.number == 0 {
		n.names.Store(nil)
		*freed += mapBytes
	}
	return true
}

func removeFromList[S comparable](at *atomic.Pointer[[]S], s S) bool {
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
	return n.exact.Load() == nil && n.multiLevel.Load() == nil && n.singleLevel.Load() == nil && n.number == 0
}

// match calls f with the subscribers of each filter that matches topic. Subscribers are distinct
// within one call, but may occur in two. f must not keep or change the lists. match does not
// allocate. A wildcard in the first level does not match topics that begin with $ (MQTT 5.0
// §4.7.2).
func (t *tree[S]) match(topic string, f func([]S)) {
	if strings.HasPrefix(topic, "$") {
		name, rest, more := strings.Cut(topic, "/")
		if c := t.root.childNamed(name); c != nil {
			c.match(rest, more, f)
		}
		return
	}
	t.root.match(topic, true, f)
}

// childNamed returns the child of a name; nil for none.
func (n *level[S]) childNamed(name string) *level[S] {
	if c := n.only.Load(); c != nil && c.name == name {
		return c
	}
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
	if l := n.multiLevel.Load(); l != nil {
		f(*l)
	}
	if !more {
		if l := n.exact.Load(); l != nil {
			f(*l)
		}
		return
	}
	name, rest, more := strings.Cut(topic, "/")
	if c := n.childNamed(name); c != nil {
		c.match(rest, more, f)
	}
	if c := n.singleLevel.Load(); c != nil {
		c.match(rest, more, f)
	}
}
