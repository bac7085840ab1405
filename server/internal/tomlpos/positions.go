// Package tomlpos finds the positions of keys and values in a TOML document, for error messages
// with line and column. The document must be valid TOML.
package tomlpos

import (
	"strconv"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Positions maps the path of each key and element of a TOML document, such as "allow.0.publish.1",
// to its line and column.
type Positions map[string][2]int

// Locate finds the positions in src, which must be valid TOML.
func Locate(src []byte) Positions {
	l := locator{at: Positions{}, tables: map[string]int{}}
	l.p.Reset(src)
	prefix := ""
	for l.p.NextExpression() {
		e := l.p.Expression()
		switch e.Kind {
		case unstable.Table:
			prefix = l.key("", e)
		case unstable.ArrayTable:
			prefix = l.key("", e)
			n := l.tables[prefix]
			l.tables[prefix]++
			l.at[prefix+"."+strconv.Itoa(n)] = l.at[prefix]
			prefix += "." + strconv.Itoa(n)
		case unstable.KeyValue:
			l.keyValue(prefix, e)
		}
	}
	return l.at
}

type locator struct {
	p      unstable.Parser
	at     Positions
	tables map[string]int // number of [[table]] of each name so far
}

// key records the parts of a node's key and returns its path below prefix.
func (l *locator) key(prefix string, n *unstable.Node) string {
	path := prefix
	for it := n.Key(); it.Next(); {
		path = Below(path, string(it.Node().Data))
		if _, known := l.at[path]; !known || !it.Node().Next().Valid() {
			l.note(path, it.Node())
		}
	}
	return path
}

func (l *locator) keyValue(prefix string, n *unstable.Node) { l.value(l.key(prefix, n), n.Value()) }

func (l *locator) value(path string, v *unstable.Node) {
	switch v.Kind {
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			at := path + "." + strconv.Itoa(i)
			l.note(at, it.Node())
			l.value(at, it.Node())
		}
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			l.keyValue(path, it.Node())
		}
	}
}

func (l *locator) note(path string, n *unstable.Node) {
	if n.Raw.Length == 0 {
		return
	}
	start := l.p.Shape(n.Raw).Start
	l.at[path] = [2]int{start.Line, start.Column}
}

// Below returns the path of key under prefix, which may be empty.
func Below(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}
