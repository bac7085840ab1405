package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
)

// mutant is one edit of one source file: the bytes from start to end become now.
type mutant struct {
	Dir    string `json:"dir"`    // of the package, from the root
	File   string `json:"file"`   // base name
	Source string `json:"source"` // hash of the file's bytes
	Start  int    `json:"start"`
	End    int    `json:"end"`
	Line   int    `json:"line"`
	Column int    `json:"column"` // in bytes, from 1
	Was    string `json:"was"`
	Now    string `json:"now"`
}

func (m mutant) String() string {
	now := m.Now
	if now == "" {
		now = "(removed)"
	}
	return fmt.Sprintf("%s/%s:%d:%d: %s → %s", m.Dir, m.File, m.Line, m.Column, clip(m.Was), clip(now))
}

// insert is text that is inserted into a file so that a mutant can be switched on while the tests run: then one build
// serves many mutants. At one place, the text of the outer expression is outside.
type insert struct {
	at     int
	text   string
	closes bool
}

// candidate is a mutant with what switches it, where it can be switched: %s stands for the
// condition that it is on, which is no constant.
type candidate struct {
	mutant
	inserts []insert
	order   int // in its file, outer ones first
	end     int // the last line of the function around it
}

// others is what each operator is changed to, one mutant for each.
var others = map[token.Token][]string{
	token.EQL: {"!="}, token.NEQ: {"=="},
	token.LSS: {"<=", ">="}, token.LEQ: {"<", ">"}, token.GTR: {">=", "<="}, token.GEQ: {">", "<"},
	token.LAND: {"||"}, token.LOR: {"&&"},
	token.ADD: {"-"}, token.SUB: {"+"}, token.AND: {"|"}, token.OR: {"&"}, token.AND_NOT: {"|"},
}

// mutantsOf returns every mutant of one file that is likely to compile, outer ones first.
func mutantsOf(dir, name, hash string, src []byte) ([]candidate, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &finder{dir: dir, name: name, hash: hash, src: src, set: set, free: map[*ast.CaseClause]bool{}}
	ast.Inspect(file, f.visit)
	ast.Inspect(file, func(n ast.Node) bool { // inner functions come last
		switch n.(type) {
		case *ast.FuncDecl, *ast.FuncLit:
			for i := range f.found {
				if c := &f.found[i]; f.at(n.Pos()) <= c.Start && c.End <= f.at(n.End()) {
					c.end = set.Position(n.End()).Line
				}
			}
		}
		return true
	})
	return f.found, nil
}

// finder collects the mutants of a file.
type finder struct {
	dir, name, hash string
	src             []byte
	set             *token.FileSet
	free            map[*ast.CaseClause]bool // of a switch without a tag
	found           []candidate
}

func (f *finder) at(p token.Pos) int { return f.set.Position(p).Offset }

func (f *finder) text(n ast.Node) string { return string(f.src[f.at(n.Pos()):f.at(n.End())]) }

// edit adds the mutant that replaces the text between two positions with now.
func (f *finder) edit(from, to token.Pos, now string, inserts ...insert) {
	pos := f.set.Position(from)
	f.found = append(f.found, candidate{mutant{
		Dir: f.dir, File: f.name, Source: f.hash, Start: f.at(from), End: f.at(to), Line: pos.Line, Column: pos.Column,
		Was: string(f.src[f.at(from):f.at(to)]), Now: now,
	}, inserts, len(f.found), 0})
}

// around puts text before and behind a node.
func (f *finder) around(n ast.Node, before, behind string) []insert {
	return []insert{{f.at(n.Pos()), before, false}, {f.at(n.End()), behind, true}}
}

// not switches a condition around.
func (f *finder) not(e ast.Expr) []insert { return f.around(e, "((%s) != (", "))") }

// skip leaves a statement out.
func (f *finder) skip(s ast.Stmt) {
	f.edit(s.Pos(), s.End(), "", f.around(s, "if !(%s) { ", " }")...)
}

func (f *finder) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ImportSpec:
		return false
	case *ast.BinaryExpr:
		f.operator(n)
	case *ast.IfStmt:
		// What no other mutant turns around: a call, a name.
		switch n.Cond.(type) {
		case *ast.CallExpr, *ast.Ident, *ast.SelectorExpr, *ast.IndexExpr:
			f.edit(n.Cond.Pos(), n.Cond.End(), "!"+f.text(n.Cond), f.not(n.Cond)...)
		}
		if len(n.Body.List) > 0 {
			switch last := n.Body.List[len(n.Body.List)-1].(type) {
			case *ast.ReturnStmt, *ast.BranchStmt:
				f.skip(last)
			}
		}
	case *ast.UnaryExpr:
		if n.Op == token.NOT {
			f.edit(n.OpPos, n.OpPos+1, "", f.not(n)...)
		}
	case *ast.Ident:
		switch n.Name {
		case "true":
			f.edit(n.Pos(), n.End(), "false", f.not(n)...)
		case "false":
			f.edit(n.Pos(), n.End(), "true", f.not(n)...)
		}
	case *ast.BasicLit:
		if n.Kind == token.INT {
			if v, err := strconv.ParseInt(n.Value, 0, 63); err == nil {
				f.edit(n.Pos(), n.End(), strconv.FormatInt(v+1, 10))
			}
		}
	case *ast.SwitchStmt:
		for _, c := range n.Body.List {
			f.free[c.(*ast.CaseClause)] = n.Tag == nil
		}
	case *ast.CaseClause:
		if n.List != nil {
			var inserts []insert
			for _, e := range n.List {
				if f.free[n] {
					inserts = append(inserts, f.around(e, "(!(%s) && (", "))")...)
				}
			}
			f.edit(n.Pos(), n.End(), "", inserts...)
		}
		f.statements(n.Body)
	case *ast.BlockStmt:
		f.statements(n.List)
	case *ast.CommClause:
		f.statements(n.Body)
	}
	return true
}

func (f *finder) statements(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt, *ast.DeferStmt, *ast.IncDecStmt, *ast.SendStmt, *ast.GoStmt:
			f.skip(s)
		case *ast.AssignStmt:
			if s.Tok != token.DEFINE {
				f.skip(s)
			}
		}
	}
}

// operator adds what an operator can become.
func (f *finder) operator(n *ast.BinaryExpr) {
	if n.Op == token.ADD && (isText(n.X) || isText(n.Y)) {
		return // concatenation
	}
	for i, now := range others[n.Op] {
		var inserts []insert
		switch n.Op {
		case token.EQL, token.NEQ:
			inserts = f.not(n)
		case token.LSS, token.LEQ, token.GTR, token.GEQ:
			equal := " && (" + f.text(n.X) + ") == (" + f.text(n.Y) + ")"
			switch {
			case i == 1: // the opposite
				inserts = f.not(n)
			case strings.Contains(equal, "\n"):
			case n.Op == token.LSS, n.Op == token.GTR:
				inserts = f.around(n, "((", ") || (%s)"+equal+")")
			default:
				inserts = f.around(n, "((", ") && !((%s)"+equal+"))")
			}
		case token.LAND, token.LOR: // De Morgan
			inserts = f.around(n, "((%s) != (", "))")
			inserts = append(inserts, f.around(n.X, "((%s) != (", "))")...)
			inserts = append(inserts, f.around(n.Y, "((%s) != (", "))")...)
		}
		f.edit(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), now, inserts...)
	}
}

func isText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return isText(e.X) || isText(e.Y)
	case *ast.CallExpr:
		f, ok := e.Fun.(*ast.Ident)
		return ok && f.Name == "string"
	}
	return false
}
