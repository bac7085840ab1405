package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
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

// others is what each operator is changed to, one mutant for each.
var others = map[token.Token][]string{
	token.EQL: {"!="}, token.NEQ: {"=="},
	token.LSS: {"<=", ">="}, token.LEQ: {"<", ">"}, token.GTR: {">=", "<="}, token.GEQ: {">", "<"},
	token.LAND: {"||"}, token.LOR: {"&&"},
	token.ADD: {"-"}, token.SUB: {"+"}, token.AND: {"|"}, token.OR: {"&"}, token.AND_NOT: {"|"},
}

// mutantsOf returns every mutant of one file that is likely to compile, in order.
func mutantsOf(dir, name, hash string, src []byte) ([]mutant, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var out []mutant
	at := func(p token.Pos) int { return set.Position(p).Offset }
	edit := func(from, to token.Pos, now string) {
		pos := set.Position(from)
		out = append(out, mutant{
			Dir: dir, File: name, Source: hash, Start: at(from), End: at(to), Line: pos.Line, Column: pos.Column,
			Was: string(src[at(from):at(to)]), Now: now,
		})
	}
	remove := func(list []ast.Stmt) {
		for _, s := range list {
			switch s := s.(type) {
			case *ast.ExprStmt, *ast.DeferStmt, *ast.IncDecStmt, *ast.SendStmt, *ast.GoStmt:
				edit(s.Pos(), s.End(), "")
			case *ast.AssignStmt:
				if s.Tok != token.DEFINE {
					edit(s.Pos(), s.End(), "")
				}
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if n.Op == token.ADD && (isText(n.X) || isText(n.Y)) {
				break // concatenation
			}
			for _, o := range others[n.Op] {
				edit(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), o)
			}
		case *ast.IfStmt:
			negate(n.Cond, src, at, edit)
			early(n.Body, edit)
		case *ast.UnaryExpr:
			if n.Op == token.NOT {
				edit(n.OpPos, n.OpPos+1, "")
			}
		case *ast.Ident:
			switch n.Name {
			case "true":
				edit(n.Pos(), n.End(), "false")
			case "false":
				edit(n.Pos(), n.End(), "true")
			}
		case *ast.BasicLit:
			if n.Kind == token.INT {
				if v, err := strconv.ParseInt(n.Value, 0, 63); err == nil {
					edit(n.Pos(), n.End(), strconv.FormatInt(v+1, 10))
				}
			}
		case *ast.CaseClause:
			if n.List != nil {
				edit(n.Pos(), n.End(), "")
			}
			remove(n.Body)
		case *ast.BlockStmt:
			remove(n.List)
		case *ast.CommClause:
			remove(n.Body)
		case *ast.ImportSpec:
			return false
		}
		return true
	})
	return out, nil
}

// negate negates a condition that no other mutant turns around: a call, a name.
func negate(cond ast.Expr, src []byte, at func(token.Pos) int, edit func(from, to token.Pos, now string)) {
	switch cond.(type) {
	case *ast.CallExpr, *ast.Ident, *ast.SelectorExpr, *ast.IndexExpr:
		edit(cond.Pos(), cond.End(), "!"+string(src[at(cond.Pos()):at(cond.End())]))
	}
}

// early removes the return, continue or break at the end of an if's body.
func early(body *ast.BlockStmt, edit func(from, to token.Pos, now string)) {
	if len(body.List) == 0 {
		return
	}
	switch s := body.List[len(body.List)-1].(type) {
	case *ast.ReturnStmt, *ast.BranchStmt:
		edit(s.Pos(), s.End(), "")
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
