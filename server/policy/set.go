package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// selfPolicy is the built-in policy of every subject; the other built-in ones are roles.
const selfPolicy = "self"

// The origins of built-in rules are these values: a stored document may have the name of a role that was not built in when it
// was written.
var (
	selfOrigin  = &origin{Policy: selfPolicy}
	roleOrigins = map[string]*origin{
		RoleOwner: {Policy: RoleOwner}, RoleAdmin: {Policy: RoleAdmin}, RoleOperator: {Policy: RoleOperator},
		RoleViewer: {Policy: RoleViewer}, RoleAuditor: {Policy: RoleAuditor},
	}
)

// isBuiltIn reports whether no document has the rule.
func isBuiltIn(o *origin) bool { return o == selfOrigin || o != nil && o == roleOrigins[o.Policy] }

// Set is all policy documents of a tenant, with the built-in ones. It is immutable and safe for
// concurrent use.
type Set struct {
	version   int64
	docs      map[string]*Document
	bySubject map[watchword.SubjectID][]*Document
	byRole    map[string][]*Document
	byLabel   map[[2]string][]*Document // each document under that of its label pairs which the fewest documents have
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
	s := &Set{docs: docs, bySubject: map[watchword.SubjectID][]*Document{}, byRole: map[string][]*Document{}, byLabel: map[[2]string][]*Document{}}
	uses := map[[2]string]int{} // how many documents have a label pair
	for _, d := range docs {
		for k, v := range d.labels {
			uses[[2]string{k, v}]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		d := docs[name]
		switch {
		case d.role != "":
			s.byRole[d.role] = append(s.byRole[d.role], d)
		case d.subjects != nil:
			for id := range d.subjects {
				s.bySubject[id] = append(s.bySubject[id], d)
			}
		case len(d.labels) == 0:
			s.everybody = append(s.everybody, d)
		default:
			var pair [2]string
			for _, k := range slices.Sorted(maps.Keys(d.labels)) {
				if one := [2]string{k, d.labels[k]}; pair[0] == "" || uses[one] < uses[pair] {
					pair = one
				}
			}
			s.byLabel[pair] = append(s.byLabel[pair], d)
		}
	}
	return s
}

// WithVersion returns the set marked with a version; the version counts changes of policies and issuer keys.
func (s *Set) WithVersion(version int64) *Set {
	c := *s
	c.version = version
	return &c
}

// Version returns the version of [Set.WithVersion]; 0 for none.
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

// ChangedDocuments returns the documents that are in one of two sets and not in the other: both versions of one that was replaced. a
// and b share the documents that did not change.
func ChangedDocuments(a, b *Set) (out []*Document) {
	for _, x := range [][2]*Set{{a, b}, {b, a}} {
		for name, d := range x[0].docs {
			if x[1].docs[name] != d {
				out = append(out, d)
			}
		}
	}
	return out
}

// GrantFor compiles the policies for one subject. Documents that do not apply cost nothing.
func (s *Set) GrantFor(w Subject) *Grant { return s.compile(w, w.ID, w.fill) }

// templatesFor is GrantFor with the templates as they are in the documents: each rule has the index that the compiled one has.
func (s *Set) templatesFor(w Subject) *Grant {
	return s.compile(w, "${id}", func(template string) string {
		if w.fill(template) == "" {
			return ""
		}
		return template
	})
}

// compile fills the rules that apply to w; own is the id in the topics that every device has.
func (s *Set) compile(w Subject, own watchword.SubjectID, fill func(template string) string) *Grant {
	found := slices.Clone(s.bySubject[w.ID])
	for k, v := range w.Labels {
		found = append(found, s.byLabel[[2]string{k, v}]...)
	}
	if w.Role != "" {
		found = append(found, s.byRole[w.Role]...)
	}
	found = append(found, s.everybody...)
	found = slices.DeleteFunc(found, func(d *Document) bool { return !d.AppliesTo(w) })
	slices.SortFunc(found, func(a, b *Document) int { return cmp.Compare(a.Name, b.Name) })
	c := compiler{fill: fill, g: &Grant{version: s.version}}
	c.builtIn(w, own)
	for _, d := range found {
		c.document(d)
	}
	if w.isOwner() { // no document removes anything from an owner; otherwise no subject could undo the document
		c.g.Denied = rules{}
	}
	return c.g
}

// compiler fills a grant with the rules that apply to one subject.
type compiler struct {
	fill func(template string) string // fills a template for the subject; "" where a label is missing
	g    *Grant
}

// document adds what a document says.
func (c *compiler) document(d *Document) {
	if d.ProofRequired && c.g.proof == nil {
		c.g.proof = &origin{Policy: d.Name}
	}
	for i := range d.rules {
		c.rule(d.Name, &d.rules[i])
	}
	if d.mayGive == nil {
		return
	}
	c.g.givesStated = append(c.g.givesStated, d.Name)
	for i := range d.mayGive {
		c.add(&c.g.give, d.Name, &d.mayGive[i])
	}
}

func (c *compiler) builtIn(w Subject, id watchword.SubjectID) {
	self := selfOrigin
	c.g.Allowed.Paths = append(c.g.Allowed.Paths, authz.NewPath("/v1/self/#", authz.AllPaths, self))
	if w.Kind == watchword.Device {
		own := "devices/" + string(id) + "/"
		c.g.Allowed.Topics = append(c.g.Allowed.Topics,
			authz.NewTopic(own+"events/#", true, false, self),
			authz.NewTopic(own+"state", true, true, self),
			authz.NewTopic(own+"receipts", true, false, self),
			authz.NewTopic(own+"config", false, true, self),
			authz.NewTopic(own+"commands", false, true, self),
		)
	}
	if role := w.builtInRole(); role != nil {
		appendRules(&c.g.Allowed, &role.do)
		appendRules(&c.g.give, &role.give)
		c.g.givesEveryTopic = role.givesEveryTopic
	}
}

// builtInRole returns the rules of the subject's role; nil where it has none, or a custom one.
func (w *Subject) builtInRole() *roleRules {
	if w.Kind != watchword.Operator {
		return nil
	}
	return builtInRoles[w.Role]
}

func (w *Subject) isOwner() bool { return w.Kind == watchword.Operator && w.Role == RoleOwner }

// fill expands a template for the subject; "" where a label is missing.
func (w *Subject) fill(template string) string {
	s, err := expand(template, func(name string) (string, bool) {
		if name == "id" {
			return string(w.ID), true
		}
		v, ok := w.Labels[name]
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
	c.add(side, policy, r)
}

// add appends the permissions of a rule to one side.
func (c *compiler) add(side *rules, policy string, r *rule) {
	o := &origin{Policy: policy, Line: r.line}
	for _, t := range r.publish {
		if f := c.fill(t); f != "" {
			side.Topics = append(side.Topics, authz.NewTopic(f, true, false, o))
		}
	}
	for _, t := range r.subscribe {
		if f := c.fill(t); f != "" {
			side.Topics = append(side.Topics, authz.NewTopic(f, false, true, o))
		}
	}
	for _, a := range authz.PathActions {
		for _, t := range r.paths[a] {
			if f := c.fill(t); f != "" {
				side.Paths = append(side.Paths, authz.NewPath(f, authz.PathBit(a), o))
			}
		}
	}
	for _, fn := range r.call {
		c.call(side, r, fn, o)
	}
}

func appendRules(to, from *rules) {
	to.Topics = append(to.Topics, from.Topics...)
	to.Calls = append(to.Calls, from.Calls...)
	to.Paths = append(to.Paths, from.Paths...)
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
