package schema

import (
	"errors"
	"regexp"
	"regexp/syntax"
	"slices"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// regexpEngine compiles the regular expressions of one schema and refuses large ones. Go's take
// linear time in the value (RE2), but counted repetitions make large programs out of few
// characters.
type regexpEngine struct{ err error }

// tooLarge are the syntax errors of a valid pattern that is too large.
var tooLarge = []syntax.ErrorCode{syntax.ErrLarge, syntax.ErrInvalidRepeatSize, syntax.ErrNestingDepth}

// pattern is a regular expression and the number of its program's instructions.
type pattern struct {
	*regexp.Regexp
	program int
}

func (e *regexpEngine) compile(s string) (jsonschema.Regexp, error) {
	p, err := compilePattern(s)
	if err != nil {
		if large, ok := errors.AsType[*syntax.Error](err); ok && e.err == nil && slices.Contains(tooLarge, large.Code) {
			e.err = badSchema(errors.Join(ErrBounds, err), "a pattern must have at most %d bytes, and %d instructions with its repetitions expanded", maxPattern, maxProgram)
		}
		return nil, err
	}
	return p, nil
}

func compilePattern(s string) (pattern, error) {
	if len(s) > maxPattern {
		return pattern{}, &syntax.Error{Code: syntax.ErrLarge, Expr: s[:32]}
	}
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return pattern{}, err
	}
	n := programSize(parsed)
	if n > maxProgram {
		return pattern{}, &syntax.Error{Code: syntax.ErrLarge, Expr: s[:min(32, len(s))]}
	}
	re, err := regexp.Compile(s)
	return pattern{re, n}, err
}

// programSize estimates the instructions of a regular expression with its repetitions expanded, as
// regexp.Compile does.
func programSize(re *syntax.Regexp) int {
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCharClass:
		n = 1 + len(re.Rune)/16 // character ranges are searched
	}
	for _, sub := range re.Sub {
		n += programSize(sub)
		if n > maxProgram {
			return maxProgram + 1
		}
	}
	if re.Op == syntax.OpRepeat {
		n = (n-1)*max(1, re.Min, re.Max) + 1
	}
	return min(n, maxProgram+1)
}
