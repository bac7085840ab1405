package policy

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Difference is what an edit of policies changes for one subject.
type Difference struct {
	// Gained and Lost say what the subject may do that it could not do before, and the other way round. Each item contains at least
	// one act whose decision changes, and each such act is in an item; an item may contain acts whose decision does not change.
	Gained, Lost []Item
	// GivesMore and GivesLess are the same of what the subject may give to others, without what is in Gained and Lost: by default a
	// subject may give what its policies allow it.
	GivesMore, GivesLess []Item
	// ProofBefore and ProofAfter say whether the subject must prove its key: if that changes, everything that it has changes for a
	// holder of its token without the key.
	ProofBefore, ProofAfter bool
	// Cut says that a list was cut at [MaxItems] or [MaxItemBytes].
	Cut bool
}

// Item is a permission that is gained or lost, as a policy names it: a variable of a rule is not filled.
type Item struct {
	Resource string // as in [watchword.Permission]; its id and labels may have variables
	Actions  []string
	Args     map[string]json.RawMessage // the bounds on arguments of a call, as JSON Schemas of up to 512 bytes; nil for none
	Rule     string                     // the allow rule that has it, as "lamps:11"
	Deny     string                     // the deny rule that denies it on the other side; empty if it is not allowed there

	filled string // Resource with the variables filled
}

// The bounds of each list of a [Difference].
const (
	MaxItems     = 200
	MaxItemBytes = 32 << 10 // of resources and arguments; a single longer item is still listed
	maxArgBytes  = 512
)

// longArg is listed in place of a bound longer than maxArgBytes.
var longArg = json.RawMessage(`"(longer than 512 bytes)"`)

// IsZero reports whether nothing changes.
func (d *Difference) IsZero() bool {
	return len(d.Gained)+len(d.Lost)+len(d.GivesMore)+len(d.GivesLess) == 0 && d.ProofBefore == d.ProofAfter
}

// Compare returns what the subject w gains and loses if after replaces before. was and is are what each of them gives it
// ([Set.GrantFor]). The lists are cut at [MaxItems] and
// [MaxItemBytes].
func Compare(before, after *Set, w Subject, was, is *Grant) Difference {
	d := Difference{ProofBefore: was.proof != nil, ProofAfter: is.proof != nil}
	if !differ(was.holds(), is.holds()) && !differ(was.gives(), is.gives()) {
		return d
	}
	names, now := before.templatesFor(w), after.templatesFor(w)
	d.Gained = d.items(is.holds(), was.holds(), now.holds(), names.holds(), nil)
	d.Lost = d.items(was.holds(), is.holds(), names.holds(), now.holds(), nil)
	d.GivesMore = d.items(is.gives(), was.gives(), now.gives(), names.gives(), d.Gained)
	d.GivesLess = d.items(was.gives(), is.gives(), names.gives(), now.gives(), d.Lost)
	return d
}

// differ reports whether one extent has something that the other one does not have.
func differ(a, b extent) (found bool) {
	first := func(missing) bool {
		found = true
		return false
	}
	if eachMissing(a, b, first); !found {
		eachMissing(b, a, first)
	}
	return found
}

// items lists what inner has and outer has not, without what is in known. innerNames and outerNames are the same extents with
// templates.
func (d *Difference) items(inner, outer, innerNames, outerNames extent, known []Item) (out []Item) {
	size := 0
	eachMissing(inner, outer, func(m missing) bool {
		one := m.item(inner, outer, innerNames, outerNames)
		same := func(o Item) bool {
			return o.Resource == one.Resource && o.filled == one.filled && o.Rule == one.Rule && o.Deny == one.Deny && equalArgs(o.Args, one.Args)
		}
		if i := slices.IndexFunc(known, same); i >= 0 && slices.Contains(known[i].Actions, m.action) {
			return true
		}
		if i := slices.IndexFunc(out, same); i >= 0 {
			if !slices.Contains(out[i].Actions, m.action) {
				out[i].Actions = append(out[i].Actions, m.action)
			}
			return true
		}
		if size += one.size(); len(out) == MaxItems || len(out) > 0 && size > MaxItemBytes {
			d.Cut = true
			return false
		}
		out = append(out, one)
		return true
	})
	return out
}

func (i *Item) size() int {
	n := len(i.Resource) + len(i.Rule) + len(i.Deny)
	for k, v := range i.Args {
		n += len(k) + len(v)
	}
	return n
}

func equalArgs(a, b map[string]json.RawMessage) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if string(b[k]) != string(v) {
			return false
		}
	}
	return true
}

// item names what is missing.
func (m *missing) item(inner, outer, innerNames, outerNames extent) Item {
	out := Item{Actions: []string{m.action}}
	var from, by *origin
	var filters, names [2]string // of the allowed rule and of the deny rule
	prefix := watchword.TopicPrefix
	switch m.kind {
	case topics:
		r := &inner.allowed.Topics[m.rule]
		from, filters[0], names[0] = r.Origin, r.Filter, innerNames.allowed.Topics[m.rule].Filter
		if m.denied >= 0 {
			d := &outer.denied.Topics[m.denied]
			by, filters[1], names[1] = d.Origin, d.Filter, outerNames.denied.Topics[m.denied].Filter
		}
	case paths:
		prefix = watchword.APIPrefix
		r := &inner.allowed.Paths[m.rule]
		from, filters[0], names[0] = r.Origin, r.Filter, innerNames.allowed.Paths[m.rule].Filter
		if m.denied >= 0 {
			d := &outer.denied.Paths[m.denied]
			by, filters[1], names[1] = d.Origin, d.Filter, outerNames.denied.Paths[m.denied].Filter
		}
	case calls:
		r, name := inner.allowed.Calls[m.rule], innerNames.allowed.Calls[m.rule]
		if from = r.Origin; m.denied >= 0 {
			d := &outer.denied.Calls[m.denied]
			by = d.Origin
			r, _ = callIntersection(&r, d)
			name = nameIntersection(&name, &outerNames.denied.Calls[m.denied], &r)
		}
		out.Resource, out.filled = name.Resource(), r.Resource()
		for _, b := range r.Bounds {
			if out.Args == nil {
				out.Args = map[string]json.RawMessage{}
			}
			if out.Args[b.name] = json.RawMessage(b.text); len(b.text) > maxArgBytes {
				out.Args[b.name] = longArg
			}
		}
	}
	out.Rule = Decision{Origin: from}.Rule()
	out.Deny = Decision{Origin: by}.Rule()
	if m.kind != calls {
		if out.Resource, out.filled = prefix+names[0], prefix+filters[0]; by != nil {
			filled, name := filterIntersection(filters, names)
			out.Resource, out.filled = prefix+name, prefix+filled
		}
	}
	return out
}

// filterIntersection returns the filter that matches what both filters match, and the same with the levels as they are in the
// templates of the two.
func filterIntersection(filters, names [2]string) (filled, name string) {
	split := func(of [2]string) (a, b []string) {
		for i := range of {
			if of[i] == "/#" { // matches what /+/# matches
				of[i] = "/+/#"
			}
		}
		return strings.Split(of[0], "/"), strings.Split(of[1], "/")
	}
	a, b := split(filters)
	nameA, nameB := split(names)
	var out, outNames []string
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == "#":
			return strings.Join(append(out, b[i:]...), "/"), strings.Join(append(outNames, nameB[i:]...), "/")
		case b[i] == "#":
			return strings.Join(append(out, a[i:]...), "/"), strings.Join(append(outNames, nameA[i:]...), "/")
		case a[i] == "+":
			out, outNames = append(out, b[i]), append(outNames, nameB[i])
		default:
			out, outNames = append(out, a[i]), append(outNames, nameA[i])
		}
	}
	return strings.Join(out, "/"), strings.Join(outNames, "/")
}

// nameIntersection is the intersection of two call rules with templates; filled is that of the compiled rules.
func nameIntersection(a, b, filled *callRule) callRule {
	out := *filled
	for _, r := range []*callRule{a, b} {
		if r.Device != "" && r.Device != "*" {
			out.Device = r.Device
		}
	}
	if out.Labels != nil {
		out.Labels = watchword.Labels{}
		for _, r := range []*callRule{b, a} {
			for k, v := range r.Labels {
				out.Labels[k] = v
			}
		}
	}
	return out
}
