package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/permit"
)

// Built-in policies.
const (
	selfPolicy  = "self"
	ownerPolicy = "owner"
)

// Set is all policy documents of a tenant, with the built-in ones. It is immutable and safe for
// concurrent use.
type Set struct {
	version   int64
	docs      map[string]*Document
	bySubject map[watchword.SubjectID][]*Document
	byLabel   map[[2]string][]*Document // each document under one of its label pairs
	everybody []*Document               // documents with for = {}
}

// NewSet returns a set of docs; of two with the same name the later one is used.
func NewSet(docs ...*Document) *Set {
	m := make(map[string]*Document, len(docs))
	for _, d := range docs {
		m[d.Name] = d
	}
	return index(m)
}

func index(docs map[string]*Document) *Set {
	s := &Set{docs: docs, bySubject: map[watchword.SubjectID][]*Document{}, byLabel: map[[2]string][]*Document{}}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		d := docs[name]
		switch {
		case d.subjects != nil:
			for id := range d.subjects {
				s.bySubject[id] = append(s.bySubject[id], d)
			}
		case len(d.labels) == 0:
			s.everybody = append(s.everybody, d)
		default:
			k := slices.Min(slices.Collect(maps.Keys(d.labels)))
			pair := [2]string{k, d.labels[k]}
			s.byLabel[pair] = append(s.byLabel[pair], d)
		}
	}
	return s
}

// At returns the set marked with a version; the version counts changes of policies and issuer keys.
func (s *Set) At(version int64) *Set {
	c := *s
	c.version = version
	return &c
}

// Version returns the version of [Set.At]; 0 for none.
func (s *Set) Version() int64 { return s.version }

// Document returns the document with that name.
func (s *Set) Document(name string) (*Document, bool) {
	d, ok := s.docs[name]
	return d, ok
}

// With returns the set with d added, or replacing the document of the same name.
func (s *Set) With(d *Document) *Set {
	m := maps.Clone(s.docs)
	m[d.Name] = d
	return index(m)
}

// Without returns the set without the document of that name.
func (s *Set) Without(name string) *Set {
	m := maps.Clone(s.docs)
	delete(m, name)
	return index(m)
}

// Differ returns the documents that are in one of two sets and not in the other: both versions of one that was replaced. a
// and b share the documents that did not change.
func Differ(a, b *Set) (out []*Document) {
	for _, x := range [][2]*Set{{a, b}, {b, a}} {
		for name, d := range x[0].docs {
			if x[1].docs[name] != d {
				out = append(out, d)
			}
		}
	}
	return out
}

// For compiles the policies for one subject. Documents that do not apply cost nothing.
func (s *Set) For(w Subject) *Grant {
	found := slices.Clone(s.bySubject[w.ID])
	for k, v := range w.Labels {
		found = append(found, s.byLabel[[2]string{k, v}]...)
	}
	found = append(found, s.everybody...)
	found = slices.DeleteFunc(found, func(d *Document) bool { return !d.Applies(w) })
	slices.SortFunc(found, func(a, b *Document) int { return cmp.Compare(a.Name, b.Name) })
	c := compiler{subject: w, g: &Grant{version: s.version}}
	c.builtIn()
	for _, d := range found {
		if d.ProofRequired && c.g.proof == nil {
			c.g.proof = &origin{Policy: d.Name}
		}
		for i := range d.rules {
			c.rule(d.Name, &d.rules[i])
		}
	}
	return c.g
}

// compiler fills a grant with the rules that apply to one subject.
type compiler struct {
	subject Subject
	g       *Grant
}

func (c *compiler) builtIn() {
	self := &origin{Policy: selfPolicy}
	c.g.Allowed.Paths = append(c.g.Allowed.Paths, permit.NewPath("/v1/self/#", permit.AllPaths, self))
	if c.subject.Kind == watchword.Device {
		own := "devices/" + string(c.subject.ID) + "/"
		c.g.Allowed.Topics = append(c.g.Allowed.Topics,
			permit.NewTopic(own+"events/#", true, false, self),
			permit.NewTopic(own+"state", true, true, self),
			permit.NewTopic(own+"receipts", true, false, self),
			permit.NewTopic(own+"config", false, true, self),
			permit.NewTopic(own+"commands", false, true, self),
		)
	}
	if c.subject.Kind == watchword.Operator && c.subject.Labels["role"] == "owner" {
		owner := &origin{Policy: ownerPolicy}
		c.g.Allowed.Topics = append(c.g.Allowed.Topics, permit.NewTopic("#", true, true, owner))
		c.g.Allowed.Calls = append(c.g.Allowed.Calls, callRule{Device: "*", Function: "*", Origin: owner})
		c.g.Allowed.Paths = append(c.g.Allowed.Paths, permit.NewPath("/#", permit.AllPaths, owner))
	}
}

// fill expands a template for the subject; "" where a label is missing.
func (c *compiler) fill(template string) string {
	s, err := expand(template, func(name string) (string, bool) {
		if name == "id" {
			return string(c.subject.ID), true
		}
		v, ok := c.subject.Labels[name]
		return v, ok && watchword.ValidName(v) // a valid name contains no wildcard, so it cannot widen a filter
	})
	if err != nil {
		return "" // Parse refuses such templates
	}
	return s
}

func (c *compiler) rule(policy string, r *rule) {
	side := &c.g.Allowed
	if r.deny {
		side = &c.g.Denied
	}
	o := &origin{Policy: policy, Line: r.line}
	for _, t := range r.publish {
		if f := c.fill(t); f != "" {
			side.Topics = append(side.Topics, permit.NewTopic(f, true, false, o))
		}
	}
	for _, t := range r.subscribe {
		if f := c.fill(t); f != "" {
			side.Topics = append(side.Topics, permit.NewTopic(f, false, true, o))
		}
	}
	for _, a := range permit.PathActions {
		for _, t := range r.paths[a] {
			if f := c.fill(t); f != "" {
				side.Paths = append(side.Paths, permit.NewPath(f, permit.PathBit(a), o))
			}
		}
	}
	for _, fn := range r.call {
		c.call(side, r, fn, o)
	}
}

func (c *compiler) call(side *rules, r *rule, fn string, o *origin) {
	base := callRule{Function: fn, Bounds: r.args, Origin: o}
	switch {
	case r.devices != nil:
		for _, t := range r.devices {
			if id := c.fill(t); id != "" {
				one := base
				one.Device = id
				side.Calls = append(side.Calls, one)
			}
		}
	case r.on != nil:
		base.Labels = watchword.Labels{}
		for k, t := range r.on {
			v := c.fill(t)
			if v == "" {
				return
			}
			base.Labels[k] = v
		}
		if len(base.Labels) == 0 {
			base.Device, base.Labels = "*", nil
		}
		side.Calls = append(side.Calls, base)
	default:
		base.Device = "*"
		side.Calls = append(side.Calls, base)
	}
}
