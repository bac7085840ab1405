package watchword_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestSelectorMatchesLabels(t *testing.T) {
	for tests, x := range map[string]struct{ yes, no []watchword.Labels }{
		"":                {yes: []watchword.Labels{nil, {"a": "1"}}},
		"a=1":             {yes: []watchword.Labels{{"a": "1"}, {"a": "1", "b": "2"}}, no: []watchword.Labels{nil, {"a": "2"}, {"b": "1"}}},
		"a=1,2":           {yes: []watchword.Labels{{"a": "1"}, {"a": "2"}}, no: []watchword.Labels{nil, {"a": "3"}, {"b": "1"}}},
		"a":               {yes: []watchword.Labels{{"a": "1"}, {"a": "2"}}, no: []watchword.Labels{nil, {"b": "1"}}},
		"!a":              {yes: []watchword.Labels{nil, {"b": "1"}}, no: []watchword.Labels{{"a": "1"}}},
		"a!=1":            {yes: []watchword.Labels{nil, {"a": "2"}, {"b": "1"}}, no: []watchword.Labels{{"a": "1"}}},
		"a!=1,2":          {yes: []watchword.Labels{nil, {"a": "3"}}, no: []watchword.Labels{{"a": "1"}, {"a": "2"}}},
		"a=1 b=2":         {yes: []watchword.Labels{{"a": "1", "b": "2"}}, no: []watchword.Labels{{"a": "1"}, {"b": "2"}}},
		"a a!=1,2 !b":     {yes: []watchword.Labels{{"a": "3"}}, no: []watchword.Labels{{"a": "1"}, {"a": "3", "b": "1"}, nil}},
		"x.y_z~-=A.b_c~-": {yes: []watchword.Labels{{"x.y_z~-": "A.b_c~-"}}, no: []watchword.Labels{{"x.y_z~-": "A"}}},
	} {
		s, err := watchword.ParseSelector(strings.Fields(tests))
		if err != nil {
			t.Errorf("%q: %v", tests, err)
			continue
		}
		var again []string
		for _, l := range s {
			again = append(again, l.String())
		}
		if got := strings.Join(again, " "); got != tests {
			t.Errorf("%q is printed as %q", tests, got)
		}
		for _, l := range x.yes {
			if !s.Matches(l) {
				t.Errorf("%q does not match %v", tests, l)
			}
		}
		for _, l := range x.no {
			if s.Matches(l) {
				t.Errorf("%q matches %v", tests, l)
			}
		}
	}
	for _, bad := range []string{"", "=", "a=", "=1", "a=1,", "a=,1", "a!", "!", "!a=1", "!!a", "a==1", "a=1 ", "a=b/c", strings.Repeat("a", 65), "a=" + strings.Repeat("v,", watchword.MaxSelectorValues) + "v"} {
		if _, err := watchword.ParseSelector([]string{bad}); watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("%q: %v", bad, err)
		}
	}
	var many []string
	for i := range watchword.MaxSelectorTests + 1 {
		many = append(many, fmt.Sprint("k", i))
	}
	if _, err := watchword.ParseSelector(many); watchword.CodeOf(err) != watchword.BadRequest {
		t.Errorf("%d tests: %v", len(many), err)
	}
	if s := watchword.SelectorOf(watchword.Labels{"b": "2", "a": "1"}); len(s) != 2 || s[0].String() != "a=1" || s[1].String() != "b=2" {
		t.Errorf("the selector of labels: %v", s)
	}
}
