package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/internal/spelling"
	"github.com/watchword-iot/watchword/server/internal/schema"
	"github.com/watchword-iot/watchword/server/internal/tomlpos"
)

// Parse parses a policy document in TOML (docs/protocol.md, "Policies"). name is the name of the
// policy; a name in the document must be equal to it. Up to 20 mistakes are reported, with line and
// column. Code: policy_invalid.
func Parse(name string, src []byte) (*Document, error) {
	if len(src) > MaxDocument {
		return nil, mistakes{{Message: "a policy must have at most 65536 bytes"}}.refuse(name)
	}
	tree := map[string]any{}
	if err := toml.Unmarshal(src, &tree); err != nil {
		m := Mistake{Message: "the document must be valid TOML"}
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			m.Line, m.Column = de.Position()
			m.Message = strings.TrimPrefix(de.Error(), "toml: ")
		}
		return nil, mistakes{m}.refuse(name)
	}
	return parse(name, tree, tomlpos.Locate(src), false)
}

// ParseStored is [Parse] for a stored document. A bound that [schema.Compile] would refuse now,
// since it may take too long to evaluate, fails closed: its allow rule allows no call, its deny
// rule denies every call that it might match. unread names the arguments with such bounds.
func ParseStored(name string, src []byte) (doc *Document, unread []string, err error) {
	tree := map[string]any{}
	if err := toml.Unmarshal(src, &tree); err != nil {
		return nil, nil, err
	}
	doc, err = parse(name, tree, tomlpos.Locate(src), true)
	if doc != nil {
		unread = doc.skippedBounds
	}
	return doc, unread, err
}

// ParseJSON parses the same document in JSON; its mistakes have no line numbers.
func ParseJSON(name string, src []byte) (*Document, error) {
	if len(src) > MaxDocument {
		return nil, mistakes{{Message: "a policy must have at most 65536 bytes"}}.refuse(name)
	}
	tree := map[string]any{}
	if err := json.Unmarshal(src, &tree); err != nil {
		return nil, mistakes{{Message: "the document must be a JSON object"}}.refuse(name)
	}
	return parse(name, tree, nil, false)
}

func parse(name string, tree map[string]any, at tomlpos.Positions, stored bool) (*Document, error) {
	p := &parser{at: at, doc: &Document{Name: name}, stored: stored}
	p.document(tree)
	if len(p.mistakes) > 0 {
		slices.SortStableFunc(p.mistakes, func(a, b Mistake) int { return a.Line - b.Line })
		return nil, p.mistakes.refuse(name)
	}
	return p.doc, nil
}

// parser walks a decoded document and collects its mistakes.
type parser struct {
	at       tomlpos.Positions
	doc      *Document
	mistakes mistakes

	stored bool // the document is stored already: a bound that may take too long is no mistake
}

// mistake adds one mistake at a member. A text that begins with "must" is about that member, whose name is put before it.
func (p *parser) mistake(path, format string, a ...any) {
	member := memberOf(path)
	if len(p.mistakes) >= maxMistakes {
		return
	}
	pos, ok := p.at[path]
	for !ok && path != "" { // without a position of its own, the position of the parent
		path = path[:max(strings.LastIndexByte(path, '.'), 0)]
		pos, ok = p.at[path]
	}
	if !ok && p.at != nil {
		pos = [2]int{1, 1} // the whole document
	}
	message := fmt.Sprintf(format, a...)
	if strings.HasPrefix(message, "must ") { // a check that does not know what it checks
		message = member + " " + message
	}
	p.mistakes = append(p.mistakes, Mistake{pos[0], pos[1], message})
}

// memberOf returns the innermost member that a path names, without indices of lists.
func memberOf(path string) string {
	parts := strings.Split(path, ".")
	for len(parts) > 1 {
		if _, err := strconv.Atoi(parts[len(parts)-1]); err != nil {
			break
		}
		parts = parts[:len(parts)-1]
	}
	return parts[len(parts)-1]
}

// Keys of a document and of a rule, and the actions that they grant.
var (
	documentKeys = []string{"name", "for", "subjects", "role", "kinds", "proof", "allow", "deny", "may_give"}
	ruleKeys     = append([]string{"publish", "subscribe", "call", "on", "devices", "args"}, authz.PathActions...)
)

// keys refuses unknown keys.
func (p *parser) keys(path string, table map[string]any, known []string) {
	for k := range table {
		if !slices.Contains(known, k) {
			hint := ""
			if n := spelling.Nearest(k, known, 2); n != "" {
				hint = fmt.Sprintf("; did you mean %q?", n)
			}
			p.mistake(tomlpos.Below(path, k), "unknown key %q%s", k, hint)
		}
	}
}

func (p *parser) document(tree map[string]any) {
	p.keys("", tree, documentKeys)
	if v, ok := tree["name"]; ok {
		if s, ok := v.(string); !ok || !watchword.ValidName(s) {
			p.mistake("name", "name must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
		} else if p.doc.Name == "" {
			p.doc.Name = s
		} else if s != p.doc.Name {
			p.mistake("name", "name is %q, and must be %q as in the request", s, p.doc.Name)
		}
	}
	if p.doc.Name == selfPolicy || p.doc.Name == RoleOwner || IsBuiltInRole(p.doc.Name) && !p.stored {
		p.mistake("name", "name must not be %q, which is a built-in policy", p.doc.Name)
	} else if !watchword.ValidName(p.doc.Name) {
		p.mistake("name", "name is required: 1 to 64 of A-Z a-z 0-9 . _ ~ -")
	}
	p.subjects(tree)
	if v, ok := tree["proof"]; ok {
		if v != "required" {
			p.mistake("proof", `proof must be "required" or absent`)
		}
		p.doc.ProofRequired = true
	}
	for _, list := range []string{"deny", "allow"} {
		p.rules(list, tree[list])
	}
	if v, ok := tree["may_give"]; ok {
		p.mayGive(v)
	}
	if tree["allow"] == nil && tree["deny"] == nil && tree["may_give"] == nil && !p.doc.ProofRequired {
		p.mistake("", `a policy must have at least one [[allow]] or [[deny]], or proof = "required"`)
	}
}

func (p *parser) subjects(tree map[string]any) {
	labels, byLabels := tree["for"]
	subjects, bySubjects := tree["subjects"]
	role, byRole := tree["role"]
	switch {
	case byLabels && bySubjects, byLabels && byRole, bySubjects && byRole:
		p.mistake("for", "only one of for, subjects and role must be given")
	case !byLabels && !bySubjects && !byRole:
		p.mistake("for", `one of for, subjects and role is required: for = { label = "value" }, subjects = ["id"] or role = "name"; for = {} selects all subjects`)
	case byRole:
		p.role(role, tree["kinds"] != nil)
	case byLabels:
		p.doc.labels = p.labels("for", labels, false)
	default:
		p.doc.subjects = map[watchword.SubjectID]struct{}{}
		for i, s := range p.strings("subjects", subjects) {
			if !watchword.ValidName(s) {
				p.mistake("subjects."+strconv.Itoa(i), "an id must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
			}
			p.doc.subjects[watchword.SubjectID(s)] = struct{}{}
		}
	}
	if kinds, ok := tree["kinds"]; ok {
		p.doc.kinds = []watchword.Kind{}
		for i, s := range p.strings("kinds", kinds) {
			switch k := watchword.Kind(s); k {
			case watchword.Device, watchword.Operator, watchword.Service:
				p.doc.kinds = append(p.doc.kinds, k)
			default:
				p.mistake("kinds."+strconv.Itoa(i), `kinds must be "device", "operator" or "service"`)
			}
		}
	}
}

// role parses the member role, which makes the document one of a custom role.
func (p *parser) role(v any, kinds bool) {
	name, ok := v.(string)
	switch {
	case !ok || !watchword.ValidName(name):
		p.mistake("role", "a role must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
	case name == RoleOwner:
		p.mistake("role", "no document is for owners: they may do everything")
	case kinds:
		p.mistake("kinds", "kinds does not belong to role: only operators have roles")
	}
	p.doc.role = name
}

// mayGive parses the member may_give: resources of permissions, with all their actions.
func (p *parser) mayGive(v any) {
	p.doc.mayGive = []rule{}
	for i, s := range p.strings("may_give", v) {
		at := "may_give." + strconv.Itoa(i)
		one := rule{line: max(p.at[at][0], 1), paths: map[string][]string{}}
		filled, err := expand(s, func(string) (string, bool) { return "x", true })
		if err == nil {
			_, err = authz.FromPermissions[bound]([]watchword.Permission{allActions(filled)}, nil)
		}
		switch prefix, rest, _ := strings.Cut(s, ":"); {
		case err != nil:
			p.mistake(at, "a resource is topic:FILTER, fn:DEVICE/FUNCTION or api:/PATH")
			continue
		case prefix+":" == watchword.TopicPrefix:
			one.publish, one.subscribe = []string{rest}, []string{rest}
		case prefix+":" == watchword.APIPrefix:
			for _, a := range authz.PathActions {
				one.paths[a] = []string{rest}
			}
		default:
			device, function, _ := strings.Cut(rest, "/")
			if one.call = []string{function}; strings.Contains(device, "=") {
				one.on = watchword.Labels{}
				for pair := range strings.SplitSeq(device, ",") {
					k, v, _ := strings.Cut(pair, "=")
					one.on[k] = v
				}
			} else if device != "*" {
				one.devices = []string{device}
			}
		}
		p.doc.mayGive = append(p.doc.mayGive, one)
	}
}

// allActions is the permission on a resource with all the actions that it has.
func allActions(resource string) watchword.Permission {
	return watchword.Permission{Resource: resource, Actions: watchword.ActionsOf(resource)}
}

func (p *parser) rules(list string, v any) {
	if v == nil {
		return
	}
	tables, ok := v.([]any)
	if !ok {
		p.mistake(list, "%[1]s must be written as [[%[1]s]], with two brackets", list)
		return
	}
	for i, v := range tables {
		path := list + "." + strconv.Itoa(i)
		table, ok := v.(map[string]any)
		if !ok {
			p.mistake(path, "[[%s]] must be a table", list)
			continue
		}
		p.rule(path, list == "deny", table)
	}
}

func (p *parser) rule(path string, deny bool, table map[string]any) {
	p.keys(path, table, ruleKeys)
	r := rule{deny: deny, line: p.at[path][0], paths: map[string][]string{}}
	r.publish = p.filters(path, table, "publish", CheckFilter)
	r.subscribe = p.filters(path, table, "subscribe", CheckFilter)
	r.call = p.filters(path, table, "call", authz.CheckFunction)
	for _, a := range authz.PathActions {
		if fs := p.filters(path, table, a, authz.CheckPath); fs != nil {
			r.paths[a] = fs
		}
	}
	if r.publish == nil && r.subscribe == nil && r.call == nil && len(r.paths) == 0 {
		p.mistake(path, "a rule must have at least one of publish, subscribe, call, get, put, post, patch, delete")
	}
	p.target(path, table, &r)
	p.args(path, table, &r)
	p.doc.rules = append(p.doc.rules, r)
}

// filters parses a list of templates and checks each with its variables replaced by a valid name.
func (p *parser) filters(path string, table map[string]any, key string, check func(string) error) []string {
	v, ok := table[key]
	if !ok {
		return nil
	}
	path = tomlpos.Below(path, key)
	list := p.strings(path, v)
	if len(list) == 0 {
		p.mistake(path, "%s must have at least one entry", key)
	}
	for i, s := range list {
		at := path + "." + strconv.Itoa(i)
		filled, err := expand(s, func(string) (string, bool) { return "x", true })
		if err == nil {
			err = check(filled)
		}
		if err != nil {
			p.mistake(at, "%s", watchword.DetailOf(err))
		}
	}
	return list
}

func (p *parser) target(path string, table map[string]any, r *rule) {
	on, byLabels := table["on"]
	devices, byID := table["devices"]
	switch {
	case (byLabels || byID) && r.call == nil:
		p.mistake(path, "on and devices require call")
	case byLabels && byID:
		p.mistake(tomlpos.Below(path, "devices"), "on and devices must not both be given")
	case byLabels:
		r.on = p.labels(tomlpos.Below(path, "on"), on, true)
	case byID:
		r.devices = p.strings(tomlpos.Below(path, "devices"), devices)
		for i, s := range r.devices {
			filled, err := expand(s, func(string) (string, bool) { return "x", true })
			if err != nil || !watchword.ValidName(filled) {
				p.mistake(tomlpos.Below(path, "devices")+"."+strconv.Itoa(i), "an id must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
			}
		}
	}
}

// withType adds "type" to a bound on numbers or strings that names none. In JSON Schema the text
// "99" satisfies { maximum = 80 }, because it is no number, so the bound would not hold. In a deny
// rule the bound is left as it is: there the wider reading is the safe one.
func withType(bound any) any {
	m, ok := bound.(map[string]any)
	if !ok {
		return bound
	}
	for _, k := range []string{"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "not", "if"} {
		if _, ok := m[k]; ok {
			return bound
		}
	}
	for kind, keywords := range map[string][]string{
		"number": {"maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "multipleOf"},
		"string": {"maxLength", "minLength", "pattern"},
	} {
		for _, k := range keywords {
			if _, ok := m[k]; ok {
				out := maps.Clone(m)
				out["type"] = kind
				return out
			}
		}
	}
	return bound
}

func (p *parser) args(path string, table map[string]any, r *rule) {
	v, ok := table["args"]
	if !ok {
		return
	}
	path = tomlpos.Below(path, "args")
	bounds, ok := v.(map[string]any)
	switch {
	case r.call == nil:
		p.mistake(path, "args requires call")
		return
	case !ok || len(bounds) == 0:
		p.mistake(path, "args must be a table: args = { level = { maximum = 80 } }")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(bounds)) {
		text := bounds[name]
		if !r.deny {
			text = withType(text)
		}
		compiled, source, err := compileBound(text)
		switch {
		case err == nil:
		case p.stored:
			p.doc.skippedBounds = append(p.doc.skippedBounds, name)
			source = strconv.FormatBool(r.deny)
			if compiled, err = schema.Compile([]byte(source)); err != nil { // matches everything in a deny rule, nothing in an allow rule
				panic(err) // true and false are valid schemas
			}
		case errors.Is(err, schema.ErrBounds):
			p.mistake(tomlpos.Below(path, name), "args.%s is not accepted: %s", name, watchword.DetailOf(err))
			continue
		default:
			p.mistake(tomlpos.Below(path, name), "args.%s must be a JSON Schema (draft 2020-12)", name)
			continue
		}
		r.args = append(r.args, bound{name, source, compiled, r.deny})
	}
}

// compileBound compiles a bound that was decoded from TOML or JSON. Code: bad_request.
func compileBound(v any) (s *schema.Schema, text string, err error) {
	b, err := json.Marshal(v) // the members of an object in the order of their names
	if err != nil {
		return nil, "", watchword.Wrap(err, watchword.BadRequest, "the value cannot be written as JSON")
	}
	s, err = schema.Compile(b)
	return s, string(b), err
}

// labels parses a table of labels; template says whether values may be templates.
func (p *parser) labels(path string, v any, template bool) watchword.Labels {
	table, ok := v.(map[string]any)
	if !ok {
		p.mistake(path, `labels must be a table: { site = "plant-1" }`)
		return nil
	}
	out := watchword.Labels{}
	for k, v := range table {
		s, ok := v.(string)
		filled := s
		if template && ok {
			var err error
			if filled, err = expand(s, func(string) (string, bool) { return "x", true }); err != nil {
				p.mistake(tomlpos.Below(path, k), "%s", watchword.DetailOf(err))
				continue
			}
		}
		if !ok || !watchword.ValidName(filled) || !watchword.ValidName(k) {
			p.mistake(tomlpos.Below(path, k), "a label's key and value must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
			continue
		}
		out[k] = s
	}
	return out
}

func (p *parser) strings(path string, v any) []string {
	list, ok := v.([]any)
	if !ok {
		p.mistake(path, `must be a list of strings: ["…"]`)
		return nil
	}
	out := make([]string, 0, len(list))
	for i, v := range list {
		s, ok := v.(string)
		if !ok {
			p.mistake(path+"."+strconv.Itoa(i), "must be a string")
			continue
		}
		out = append(out, s)
	}
	return out
}

// expand replaces ${name} in s by value(name). Where value returns false, expand returns "" and no
// error. Code: policy_invalid.
func expand(s string, value func(name string) (string, bool)) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed || !watchword.ValidName(name) {
			return "", watchword.Refuse(watchword.PolicyInvalid, "a variable must be ${id} or ${LABEL}")
		}
		v, ok := value(name)
		if !ok {
			return "", nil
		}
		out.WriteString(v)
		s = after
	}
}
