package watchword_test

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestScopesAreReadAndWritten(t *testing.T) {
	for in, out := range map[string]string{
		"":                        "",
		"pub:topic:a/b":           "pub:topic:a/b",
		"pub:topic:a sub:topic:a": "pub,sub:topic:a",
		"pub:topic:a pub:topic:a": "pub:topic:a",
		"call:fn:site=a,kind=b/lamp.* get:api:/x": "call:fn:site=a,kind=b/lamp.* get:api:/x",
		"get,put:api:/v1/self/#":                  "get,put:api:/v1/self/#",
	} {
		ps, err := watchword.ParseScope(in)
		if err != nil || watchword.FormatScope(ps) != out {
			t.Errorf("%q: %v, %v", in, ps, err)
		}
	}
	for _, bad := range []string{
		" ", "a", "a:b", ":", "pub:", "pub:topic:", "pub:topic", "get:topic:a", ",pub:topic:a", "pub,:topic:a", "PUB:topic:a",
		"pub:topic:a ", " pub:topic:a", "pub:topic:a  sub:topic:a", "pub:topic:\"", "pub:topic:\\", "pub:topic:é", "pub:topic:a\tb",
		strings.Repeat("pub:topic:a ", 64) + "pub:topic:a", "pub:topic:" + strings.Repeat("a", 4096),
	} {
		if ps, err := watchword.ParseScope(bad); watchword.CodeOf(err) != watchword.ScopeInvalid || ps != nil {
			t.Errorf("%q: %v, %v", bad, ps, err)
		}
	}
}
