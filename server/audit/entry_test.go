package audit_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// Parse parses every output of Body: exactly one entry, byte for byte, whatever its content.
func FuzzBody(f *testing.F) {
	f.Add("default", int64(1_790_000_000_123), "token.issue", "lamp-1", "k", "tok_1", "done", "", "trace", "reason", "he said \"no\"\n</script>\u2028", "remote", "127.0.0.1")
	f.Add("", int64(0), "", "", "", "", "", "denied", "", "", "", "a", "")
	f.Fuzz(func(t *testing.T, tenant string, at int64, kind, actor, key, object, outcome, code, trace, k1, v1, k2, v2 string) {
		e := audit.Entry{
			Seq: 7, Tenant: watchword.TenantID(tenant), At: time.UnixMilli(at % (1 << 44)).UTC(), Kind: kind, Actor: watchword.SubjectID(actor), Key: watchword.KeyID(key),
			Object: object, Outcome: audit.Outcome(outcome), Code: watchword.Code(code), Trace: trace, Data: map[string]string{k1: v1, k2: v2},
		}
		b, err := e.Body()
		if err != nil {
			t.Fatal(err)
		}
		again, err := audit.Parse(7, b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		whole := true
		for _, s := range []string{tenant, kind, actor, key, object, outcome, code, trace, k1, v1, k2, v2} {
			whole = whole && utf8.ValidString(s)
		}
		if whole && !reflect.DeepEqual(again, e) {
			t.Errorf("%s is read as %+v, and was %+v", b, again, e)
		}
		if c, err := again.Body(); err != nil || whole && string(c) != string(b) {
			t.Errorf("written again it is %s, and was %s", c, b)
		}
	})
}

// The kinds are documented, each by its name, and no other.
func TestKindsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "## Entries")
	for _, k := range audit.Kinds {
		if !strings.Contains(table, "`"+k+"`") {
			t.Errorf("docs/log.md does not list %s", k)
		}
	}
	for line := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
		for _, name := range strings.Split(cell, ", ") {
			if name = strings.Trim(name, "`\n"); strings.Contains(name, ".") && !strings.Contains(name, " ") && !slices.Contains(audit.Kinds, name) {
				t.Errorf("docs/log.md lists %s, which is not a kind", name)
			}
		}
	}
}

// Kinds has every kind that entry.go names.
func TestKindsAreAll(t *testing.T) {
	b, err := os.ReadFile("entry.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ += "([a-z]+\.[a-z_]+)"$`).FindAllSubmatch(b, -1) {
		for _, of := range []watchword.Kind{watchword.Device, watchword.Operator, watchword.Service} {
			kind := audit.KindFor(of, string(m[1]))
			if of != watchword.Device && kind == string(m[1]) {
				continue // not of a subject
			}
			if n++; !slices.Contains(audit.Kinds, kind) {
				t.Errorf("%s is not among them", kind)
			}
		}
	}
	if n != len(audit.Kinds) {
		t.Errorf("%d are named, and %d listed", n, len(audit.Kinds))
	}
}

func TestEntryWithoutComparedVersionsIsRefused(t *testing.T) {
	b := watchword.AuthorityVersions{Subject: "alice", SubjectVersion: 1}
	for _, c := range []struct {
		name string
		e    audit.Entry
		with watchword.AuthorityVersions
		want watchword.Code
	}{
		{"an act whose basis was compared", audit.Entry{Kind: audit.ConfigSet, Outcome: audit.Done, Actor: "alice", Versions: b}, b, ""},
		{"an act whose basis is another", audit.Entry{Kind: audit.ConfigSet, Outcome: audit.Done, Actor: "alice", Versions: b}, watchword.AuthorityVersions{}, watchword.Internal},
		{"an act without a basis", audit.Entry{Kind: audit.ConfigSet, Outcome: audit.Done, Actor: "alice"}, watchword.AuthorityVersions{}, watchword.Internal},
		{"a token that is issued needs none", audit.Entry{Kind: audit.TokenIssue, Outcome: audit.Done, Actor: "alice"}, watchword.AuthorityVersions{}, ""},
		{"a refusal needs none", audit.Entry{Kind: audit.ConfigSet, Outcome: audit.Refused, Actor: "alice", Versions: b}, watchword.AuthorityVersions{}, ""},
		{"the server needs none", audit.Entry{Kind: audit.ConfigSet, Outcome: audit.Done}, watchword.AuthorityVersions{}, ""},
	} {
		if err := c.e.Compared(c.with); watchword.CodeOf(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
