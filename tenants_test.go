package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A tenant is resolved once, where a request arrives. From there it is an argument of each call: no other code names the
// default one.
func TestDefaultTenantIsNamedOnlyWhereRequestsEnter(t *testing.T) {
	may := map[string]string{
		"id.go":                           "declares it",
		"issuer.go":                       "its issuer has no path",
		"issuer_set.go":                   "likewise",
		"server/httpapi/api.go":           "the API without a resolver",
		"server/httpapi/tenant.go":        "the server's keys are its own",
		"server/keyring/tenant_bundle.go": "the stored trust bundles are its own",
		"server/mqtt/options.go":          "likewise",
		"server/keyring/initialize.go":    "the first start of a server",
		"server/keyring/rotator.go":       "the server's own acts, which are of the first tenant's log",
	}
	rooms := map[string]bool{"server": true, "cmd": true, "bench": true, "attack": true, "storetest": true}
	found := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || rooms[s.pkg] {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "DefaultTenant" {
				if found[s.path] = true; may[s.path] == "" {
					t.Errorf("%s: the tenant is resolved where the request arrives", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
	for path := range may {
		if !found[path] {
			t.Errorf("%s does not name the default tenant any more: take it off the list", path)
		}
	}
}

// keyedBy are the generic types that keep values by their first parameter, a key.
var keyedBy = []string{"backlog.Log", "quota.Ledger", "ratelimit.Map", "ratelimit.Shared", "cache.Map", "cache.Sized"}

// keysOfNoTenant are the types of keys that are no names within a tenant.
var keysOfNoTenant = []string{
	"watchword.TenantID", "quota.Key",
	"watchword.Code", "packet.Reason", "Reason", "packet.Property", "Property", "Role", "State", // words of a closed set
	"netip.Addr", "netip.Prefix", "struct{}",
	"int64", "uint64", "uint16", "int", // numbers that this process assigns
	"[32]byte", "[sha256.Size]byte", // a hash of all that the value depends on
}

// keptByName are the fields whose key is a name without a tenant, and why two tenants do not meet there.
var keptByName = map[string]string{
	"audit.boundedQueue.sources":            "the text begins with the tenant, or is an address",
	"backup.extraction.found":               "names of files",
	"backup.Manifest.Tables":                "names of tables",
	"bus.owners.bySubject":                  "of one bus.Tenant",
	"bus.level.names":                       "the tree of one bus.Tenant",
	"bus.groups.byName":                     "of one bus.Tenant",
	"mqtt.tenant.clients":                   "of one tenant",
	"mqtt.tenant.persistent":                "of one tenant",
	"mqtt.outbound.outboundAliases":         "of one connection",
	"mqtt.row.filters":                      "of one session",
	"mqtt.clientRow.changedFilters":         "of one session",
	"mqtt.sessionState.subs":                "of one session",
	"mqtt.subscription.liveTopics":          "of one subscription",
	"policy.Set.docs":                       "the policies of one tenant",
	"policy.Set.bySubject":                  "the policies of one tenant",
	"policy.Set.byLabel":                    "the policies of one tenant",
	"policy.Set.byRole":                     "the policies of one tenant",
	"policy.Document.subjects":              "of one policy",
	"session.Guard.sessions":                "a random id, unique in the process; a caller that looks one up by an id that a client named compares the tenant",
	"session.Guard.offline":                 "likewise",
	"server.Server.hosts":                   "the value is the tenant",
	"server.Server.addressWarned":           "the server's own issuers",
	"server.Server.addressEnded":            "likewise",
	"session.Keys.signing":                  "of one subject",
	"keyring.keyState.private":              "keys of the server",
	"keyring.FolderKeys.States":             "keys of the server",
	"keyring.keyState.issuers":              "keys of the server",
	"keyring.keyState.revoked":              "keys of the server",
	"token.KeySet":                          "the keys that the caller verifies with",
	"token.Origins":                         "addresses of the server",
	"internal/logbudget.lineBudget.sources": "addresses",
	"internal/logbudget.lineBudget.leftOut": "kinds of lines",
	"sqlite.Store.read":                     "statements",
	"sqlite.tx.stmts":                       "statements",
	// Contents of one value.
	".Labels":                               "of one subject",
	"audit.Entry.Data":                      "of one entry",
	"bus.Gap.Devices":                       "of one reader's gap",
	"internal/rest.Request.Header":          "of one request",
	"internal/schema.costBudget.costs":      "of one schema",
	"internal/schema.costBudget.inProgress": "of one schema",
	"internal/tomlpos.Positions":            "of one document",
	"internal/tomlpos.locator.tables":       "of one document",
	"policy.arguments.doc":                  "of one request",
	"policy.rule.paths":                     "of one rule",
	"policy.Item.Args":                      "of one rule",
	"registry.groups.byText":                "of one answer",
	"registry.judge.like":                   "of one edit",
	"policy.IDs.levels":                     "of grants of one tenant",
}

// Fields and variables keep nothing by a name that may stand for something else in another tenant: the key of each map, and of
// each type that counts or remembers by key, has its tenant in it, or the field is in keptByName.
func TestWhatIsKeptByNameIsKeptByTenant(t *testing.T) {
	type field struct {
		pkg, name string
		key       ast.Expr
		at        token.Position
	}
	var fields []field
	structs := map[string]*ast.StructType{} // by folder and name
	for _, s := range sources(t) {
		if s.test || slices.Contains([]string{"sdk", "cmd", "bench", "attack", "storetest", "peers", "api"}, s.pkg) || strings.HasPrefix(s.path, "internal/peers/") {
			continue
		}
		fset, pkg := token.NewFileSet(), strings.TrimPrefix(path.Dir(s.path), "server/")
		f, err := parser.ParseFile(fset, filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		add := func(name string, of ast.Expr) {
			for _, k := range keysOf(of) {
				fields = append(fields, field{pkg, name, k, fset.Position(k.Pos())})
			}
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range g.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					st, ok := spec.Type.(*ast.StructType)
					if !ok {
						add(strings.TrimPrefix(pkg, ".")+"."+spec.Name.Name, spec.Type)
						continue
					}
					structs[pkg+"."+spec.Name.Name] = st
					var in func(name string, st *ast.StructType)
					in = func(name string, st *ast.StructType) {
						for _, m := range st.Fields.List {
							names := m.Names
							if len(names) == 0 {
								names = []*ast.Ident{{Name: "embedded"}}
							}
							for _, n := range names {
								if inner, ok := m.Type.(*ast.StructType); ok {
									in(name+"."+n.Name, inner)
									continue
								}
								add(name+"."+n.Name, m.Type)
							}
						}
					}
					in(pkg+"."+spec.Name.Name, st)
				case *ast.ValueSpec:
					if g.Tok == token.VAR && spec.Type != nil {
						add(pkg+"."+spec.Names[0].Name, spec.Type)
					}
				}
			}
		}
	}
	used := map[string]bool{}
	for _, f := range fields {
		key := types.ExprString(f.key)
		if slices.Contains(keysOfNoTenant, key) || strings.HasPrefix(key, "*") {
			continue
		}
		if generic, _, _ := strings.Cut(strings.TrimPrefix(f.name, "internal/"), "["); key == "K" && slices.Contains(keyedBy, generic[:strings.LastIndexByte(generic, '.')]) {
			continue // its uses are looked at
		}
		if st := structs[f.pkg+"."+key]; st != nil && slices.ContainsFunc(st.Fields.List, func(m *ast.Field) bool {
			of := types.ExprString(m.Type)
			return of == "watchword.TenantID" || of == "quota.Key" || of == "*tenant"
		}) {
			continue
		}
		if used[f.name] = true; keptByName[f.name] == "" {
			t.Errorf("%s: %s is kept by %s, which has no tenant in it", f.at, f.name, key)
		}
	}
	for name := range keptByName {
		if !used[name] {
			t.Errorf("%s is not kept by a name alone any more: take it off the list", name)
		}
	}
	if len(fields) < 50 {
		t.Errorf("only %d fields were found", len(fields))
	}
}

// keysOf returns the keys of the maps in a type, outermost first.
func keysOf(of ast.Expr) (out []ast.Expr) {
	ast.Inspect(of, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.MapType:
			out = append(out, n.Key)
			return types.ExprString(n.Key) != "watchword.TenantID" // what is behind it is of one tenant
		case *ast.IndexExpr:
			if slices.Contains(keyedBy, types.ExprString(n.X)) {
				out = append(out, n.Index)
			}
		case *ast.IndexListExpr:
			if slices.Contains(keyedBy, types.ExprString(n.X)) {
				out = append(out, n.Indices[0])
			}
		case *ast.SelectorExpr:
			if types.ExprString(n) == "sync.Map" {
				out = append(out, n)
			}
		case *ast.FuncType, *ast.InterfaceType:
			return false
		}
		return true
	})
	return out
}
