package watchword

import (
	"slices"
	"strings"
)

// LabelTest is a condition on one label of a subject.
type LabelTest struct {
	Key    string
	Values []string // the label has one of these values; none: any value
	Not    bool     // the opposite: the subject does not have the label, or has it with another value
}

// Selector selects subjects by their labels: all tests must be true. The empty one selects all.
type Selector []LabelTest

// Bounds of a selector.
const (
	MaxSelectorTests  = 16
	MaxSelectorValues = 64 // of one test
)

// ParseSelector parses tests of the forms key=value, key=value,value (one of them), key (the label is there), and their opposites
// key!=value, key!=value,value and !key. Code: bad_request.
func ParseSelector(tests []string) (Selector, error) {
	if len(tests) > MaxSelectorTests {
		return nil, RefuseField("label", "must be given at most %d times", MaxSelectorTests)
	}
	var out Selector
	for _, text := range tests {
		t, err := parseLabelTest(text)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func parseLabelTest(text string) (t LabelTest, err error) {
	bad := RefuseField("label", "must be key=value, key=value,value, key, key!=value, key!=value,value or !key")
	key, values, compared := strings.Cut(text, "=")
	switch {
	case compared:
		key, t.Not = strings.CutSuffix(key, "!")
		t.Values = strings.Split(values, ",")
		if len(t.Values) > MaxSelectorValues {
			return t, RefuseField("label", "must have at most %d values", MaxSelectorValues)
		}
	default:
		key, t.Not = strings.CutPrefix(key, "!")
	}
	t.Key = key
	if !ValidName(key) || slices.ContainsFunc(t.Values, func(v string) bool { return !ValidName(v) }) {
		return t, bad
	}
	return t, nil
}

// SelectorOf returns the selector of subjects that have all labels of l.
func SelectorOf(l Labels) (out Selector) {
	for k, v := range l {
		out = append(out, LabelTest{Key: k, Values: []string{v}})
	}
	slices.SortFunc(out, func(a, b LabelTest) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// Matches reports whether all tests are true for l.
func (s Selector) Matches(l Labels) bool {
	return !slices.ContainsFunc(s, func(t LabelTest) bool { return !t.matches(l) })
}

func (t LabelTest) matches(l Labels) bool {
	v, has := l[t.Key]
	return (has && (len(t.Values) == 0 || slices.Contains(t.Values, v))) != t.Not
}

// String returns the test in the form that ParseSelector takes.
func (t LabelTest) String() string {
	not := ""
	if t.Not {
		not = "!"
	}
	if len(t.Values) == 0 {
		return not + t.Key
	}
	return t.Key + not + "=" + strings.Join(t.Values, ",")
}
