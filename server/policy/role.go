package policy

import (
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// Built-in roles of operators. A role is a field of the subject; labels and documents cannot give
// one of these. Any other role is a custom one: the documents with role = "NAME" say what it may do.
const (
	RoleOwner    = watchword.OwnerRole // everything; no document takes anything from it
	RoleAdmin    = "admin"             // devices, policies, services and commands; may give topics, functions and /v1/self
	RoleOperator = "operator"          // sees devices and orders commands; may give nothing
	RoleViewer   = "viewer"            // sees devices, commands and policies; may give nothing
	RoleAuditor  = "auditor"           // reads the audit log; may give nothing
)

// BuiltInRoles lists the built-in roles, the widest first.
var BuiltInRoles = []string{RoleOwner, RoleAdmin, RoleOperator, RoleViewer, RoleAuditor}

// IsBuiltInRole reports whether a role needs no document.
func IsBuiltInRole(role string) bool { return slices.Contains(BuiltInRoles, role) }

// HasRole reports whether a subject may be given the role: it is built in, or a document is for it.
func (s *Set) HasRole(role string) bool { return IsBuiltInRole(role) || len(s.byRole[role]) > 0 }

// roleRules is what a built-in role may do, and what it may give to others.
type roleRules struct {
	do, give        rules
	givesEveryTopic bool // also topics that start with $, which no single filter matches
}

const (
	get      = "get"
	allTopic = "#"
)

var builtInRoles = map[string]*roleRules{
	RoleOwner: func() *roleRules {
		all := roleRule(RoleOwner).topic(allTopic, true, true).calls().path("/#", authz.PathActions...).rules
		return &roleRules{do: all, give: all, givesEveryTopic: true}
	}(),
	RoleAdmin: {
		do: roleRule(RoleAdmin).devices().calls().see().
			path("/v1/devices/#", authz.PathActions...).path("/v1/enrollments/#", authz.PathActions...).path("/v1/services/#", authz.PathActions...).
			path("/v1/policies/#", authz.PathActions...).path("/v1/commands/#", authz.PathActions...).path("/v1/sessions/#", authz.PathActions...).
			path("/v1/tokens/#", authz.PathActions...).path("/v1/retained/#", authz.PathActions...).
			path("/v1/audit/#", get).path("/v1/keys/#", get).path("/v1/operators/#", get).rules,
		givesEveryTopic: true,
		give:            roleRule(RoleAdmin).topic(allTopic, true, true).calls().path("/v1/self/#", authz.PathActions...).rules,
	},
	RoleOperator: {do: roleRule(RoleOperator).devices().calls().see().path("/v1/commands/#", "post").rules},
	RoleViewer:   {do: roleRule(RoleViewer).devices().see().rules},
	RoleAuditor:  {do: roleRule(RoleAuditor).path("/v1/audit/#", get).rules},
}

// roleBuilder builds the rules of a built-in role.
type roleBuilder struct {
	rules
	origin *origin
}

func roleRule(role string) roleBuilder { return roleBuilder{origin: roleOrigins[role]} }

func (b roleBuilder) topic(filter string, pub, sub bool) roleBuilder {
	b.Topics = append(b.Topics, authz.NewTopic(filter, pub, sub, b.origin))
	return b
}

func (b roleBuilder) path(filter string, actions ...string) roleBuilder {
	var bits uint8
	for _, a := range actions {
		bits |= authz.PathBit(a)
	}
	b.Paths = append(b.Paths, authz.NewPath(filter, bits, b.origin))
	return b
}

func (b roleBuilder) calls() roleBuilder {
	b.Calls = append(b.Calls, callRule{Device: "*", Function: "*", Origin: b.origin})
	return b
}

// devices is reading what devices report.
func (b roleBuilder) devices() roleBuilder {
	return b.topic("devices/+/events/#", false, true).topic("devices/+/state", false, true)
}

// see is reading devices, their commands and the policies.
func (b roleBuilder) see() roleBuilder {
	for _, p := range []string{"devices", "services", "enrollments", "commands", "sessions", "policies", "events", "retained", "totals", "labels"} {
		b = b.path("/v1/"+p+"/#", get)
	}
	return b.path("/v1/explain", "post").path("/v1/policies/check", "post").path("/v1/policies/diff", "post")
}
