// Command unused lists what no program uses: functions, methods, types, variables and constants of the product that only
// tests name, or nothing. It is for what deadcode and staticcheck cannot see: both count a use in a test as a use, and
// deadcode counts every exported method of a value that is put into an interface, since reflection could call it.
//
// What packages that users import export is exempt, and so are test files and packages for tests. A
// method counts as used if its type implements an interface with a method of that name that is itself used, or that is
// declared outside of the product.
//
// Usage: unused [-except FILE] PACKAGES, in the folder of the workspace. FILE lists names to leave out, one a line. It exits
// with 1 if it found something, or if a name in FILE is used.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/types"
	"log"
	"os"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

const module = "github.com/watchword-iot/watchword"

// public are the packages that other programs import: what they export need not be used here.
var public = []string{"", "/api", "/jose", "/token", "/audit/ledger", "/mqtt/packet", "/sdk/"}

// forTests are the packages whose purpose is to test or measure: what only they use, no program needs.
var forTests = []string{"/internal/peers", "/internal/testport", "/internal/testwait", "/server/attack/", "/server/bench/", "/server/storetest"}

func main() {
	log.SetFlags(0)
	log.SetPrefix("unused: ")
	except := flag.String("except", "", "file of names to leave out, one a line")
	flag.Parse()
	found, err := unused(flag.Args(), "race")
	if err != nil {
		log.Fatal(err)
	}
	var stated []string
	if *except != "" {
		text, err := os.ReadFile(*except)
		if err != nil {
			log.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				stated = append(stated, line)
			}
		}
	}
	failed := false
	for _, f := range found {
		if !slices.Contains(stated, f.name) {
			fmt.Printf("%s: only tests use %s, or nothing does: delete it, or state it in %s\n", f.position, f.name, *except)
			failed = true
		}
	}
	for _, name := range stated {
		if !slices.ContainsFunc(found, func(f finding) bool { return f.name == name }) {
			fmt.Printf("%s: %s is used, or is gone: take it off the list\n", *except, name)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

// finding is a declaration that is not used.
type finding struct{ name, position string }

// program is all packages, with the uses of each symbol. Symbols are named by package, type and name: a package that is
// compiled again for a test has other objects for the same declaration.
type program struct {
	pkgs       []*packages.Package
	uses       map[string]map[string]bool           // symbol → the symbols of programs inside which it is used
	interfaces map[*types.Interface]*types.TypeName // those that values of the product may be put into
}

func unused(patterns []string, tags string) ([]finding, error) {
	pkgs, err := packages.Load(&packages.Config{
		Mode:  packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports | packages.NeedDeps | packages.NeedForTest,
		Tests: true, BuildFlags: []string{"-tags", tags},
	}, patterns...)
	if err != nil {
		return nil, err
	}
	if packages.PrintErrors(pkgs) > 0 {
		return nil, errors.New("the packages do not compile")
	}
	p := &program{pkgs: pkgs, uses: map[string]map[string]bool{}, interfaces: map[*types.Interface]*types.TypeName{}}
	p.collect()
	return p.findings(), nil
}

func isTest(p *packages.Package, f *ast.File) bool {
	return strings.HasSuffix(p.Fset.File(f.Pos()).Name(), "_test.go")
}

// below reports whether a package of the product is one of a list, in which a path that ends with / stands for all below it.
func below(pkg string, list []string) bool {
	rest, ok := strings.CutPrefix(strings.TrimSuffix(pkg, "_test"), module)
	return ok && slices.ContainsFunc(list, func(p string) bool {
		return rest == p || strings.HasSuffix(p, "/") && strings.HasPrefix(rest+"/", p)
	})
}

// symbol names a declaration at the level of a package, or a method; "" for others.
func symbol(o types.Object) string {
	if o == nil || o.Pkg() == nil {
		return ""
	}
	path := strings.TrimSuffix(o.Pkg().Path(), "_test")
	switch o := o.(type) {
	case *types.Func:
		o = o.Origin()
		recv := o.Signature().Recv()
		if recv == nil {
			break
		}
		if name := typeName(recv.Type()); name != "" {
			return path + "." + name + "." + o.Name()
		}
		return ""
	case *types.TypeName:
		if _, ok := o.Type().(*types.TypeParam); ok {
			return ""
		}
	case *types.Var:
		o = o.Origin()
		if o.IsField() {
			return ""
		}
	case *types.Const:
	default:
		return ""
	}
	if o.Parent() != o.Pkg().Scope() {
		return ""
	}
	return path + "." + o.Name()
}

func typeName(t types.Type) string {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	switch t := t.(type) {
	case *types.Named:
		return t.Obj().Name()
	case *types.Alias:
		return t.Obj().Name()
	}
	return ""
}

// collect notes the uses in programs, and the interfaces.
func (p *program) collect() {
	foreign := map[*types.Package]bool{}
	for _, pkg := range p.pkgs {
		if below(pkg.PkgPath, forTests) {
			continue
		}
		for _, f := range pkg.Syntax {
			if isTest(pkg, f) {
				continue
			}
			for _, d := range f.Decls {
				p.collectDecl(pkg, d)
			}
		}
		p.foreignInterfaces(pkg.Types, foreign)
		if pkg.ForTest == "" {
			p.scopeInterfaces(pkg.Types)
		}
		for e, t := range pkg.TypesInfo.Types { // interfaces without a name
			if it, ok := t.Type.(*types.Interface); ok && t.IsType() && it.NumMethods() > 0 && !strings.HasSuffix(pkg.Fset.File(e.Pos()).Name(), "_test.go") {
				p.interfaces[it] = nil
			}
		}
	}
	p.interfaces[types.Universe.Lookup("error").Type().Underlying().(*types.Interface)] = nil
}

// foreignInterfaces notes the interfaces of all packages of other modules that pkg imports, directly or not.
func (p *program) foreignInterfaces(pkg *types.Package, seen map[*types.Package]bool) {
	for _, i := range pkg.Imports() {
		if !seen[i] {
			seen[i] = true
			if !strings.HasPrefix(i.Path(), module) {
				p.scopeInterfaces(i)
			}
			p.foreignInterfaces(i, seen)
		}
	}
}

func (p *program) scopeInterfaces(pkg *types.Package) {
	for _, name := range pkg.Scope().Names() {
		o, ok := pkg.Scope().Lookup(name).(*types.TypeName)
		if !ok {
			continue
		}
		if it, ok := o.Type().Underlying().(*types.Interface); ok && it.NumMethods() > 0 {
			if n, ok := o.Type().(*types.Named); !ok || n.TypeParams().Len() == 0 {
				p.interfaces[it] = o
			}
		}
	}
}

// collectDecl notes what a declaration uses. What a function or type uses of itself is no use.
func (p *program) collectDecl(pkg *packages.Package, d ast.Decl) {
	note := func(n ast.Node, inside string) {
		ast.Inspect(n, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok {
				return true
			}
			if s := symbol(pkg.TypesInfo.Uses[id]); s != "" && s != inside {
				if p.uses[s] == nil {
					p.uses[s] = map[string]bool{}
				}
				p.uses[s][inside] = true
			}
			return true
		})
	}
	if fn, ok := d.(*ast.FuncDecl); ok {
		s := symbol(pkg.TypesInfo.Defs[fn.Name])
		if fn.Recv != nil { // its receiver is no use of the type
			note(fn.Type, s)
			if fn.Body != nil {
				note(fn.Body, s)
			}
			return
		}
		note(fn, s)
		return
	}
	for _, spec := range d.(*ast.GenDecl).Specs {
		inside := ""
		if ts, ok := spec.(*ast.TypeSpec); ok {
			inside = symbol(pkg.TypesInfo.Defs[ts.Name])
		}
		note(spec, inside)
	}
}

// findings returns the declarations without a use.
func (p *program) findings() []finding {
	var out []finding
	seen := map[string]bool{}
	for _, pkg := range p.pkgs {
		if pkg.ForTest != "" || below(pkg.PkgPath, forTests) || !strings.HasPrefix(pkg.PkgPath, module) {
			continue
		}
		for id, o := range pkg.TypesInfo.Defs {
			s := symbol(o)
			if s == "" || seen[s] || strings.HasSuffix(pkg.Fset.File(id.Pos()).Name(), "_test.go") || id.Name == "_" {
				continue
			}
			seen[s] = true
			if len(p.uses[s]) > 0 || below(pkg.PkgPath, public) && exported(o) || p.implements(o) {
				continue
			}
			if _, ok := o.(*types.Func); ok && (id.Name == "main" || id.Name == "init") {
				continue
			}
			out = append(out, finding{strings.TrimPrefix(s, module+"/"), pkg.Fset.Position(id.Pos()).String()})
		}
	}
	slices.SortFunc(out, func(a, b finding) int { return cmp.Compare(a.name, b.name) })
	return out
}

// exported reports whether importers of the package can name o.
func exported(o types.Object) bool {
	if f, ok := o.(*types.Func); ok && f.Signature().Recv() != nil && !ast.IsExported(typeName(f.Signature().Recv().Type())) {
		return false
	}
	return o.Exported()
}

// implements reports whether o is a method that an interface needs: one of another module, or one of the product of which the
// method is used.
func (p *program) implements(o types.Object) bool {
	f, ok := o.(*types.Func)
	if !ok || f.Signature().Recv() == nil {
		return false
	}
	recv := f.Signature().Recv().Type()
	if types.IsInterface(recv) {
		return false
	}
	if _, ok := recv.(*types.Pointer); !ok {
		recv = types.NewPointer(recv)
	}
	for it, name := range p.interfaces {
		m, _, _ := types.LookupFieldOrMethod(it, false, f.Pkg(), f.Name())
		im, ok := m.(*types.Func)
		if !ok || !types.Implements(recv, it) && !sameMethods(recv, it) {
			continue
		}
		if name == nil || name.Pkg() == nil || !strings.HasPrefix(name.Pkg().Path(), module) || len(p.uses[symbol(im)]) > 0 {
			return true
		}
	}
	return false
}

// sameMethods reports whether the type has all methods of the interface by name: types that were loaded for different
// variants of a package are not identical.
func sameMethods(t types.Type, it *types.Interface) bool {
	set := types.NewMethodSet(t)
	for m := range it.Methods() {
		if set.Lookup(m.Pkg(), m.Name()) == nil {
			return false
		}
	}
	return true
}
