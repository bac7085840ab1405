package audit_test

import (
	"testing"

	"github.com/watchword-iot/watchword/server/audit"
)

func TestAQueryIsOfATenant(t *testing.T) {
	e := audit.Entry{Tenant: "one", Kind: audit.TokenIssue, Actor: "lamp"}
	for _, c := range []struct {
		q    audit.Query
		want bool
	}{
		{audit.Query{Tenant: "one", Subject: "lamp"}, true},
		{audit.Query{Tenant: "two", Subject: "lamp"}, false},
		{audit.Query{Tenant: "two"}, false},
		{audit.Query{Subject: "lamp"}, true},
	} {
		if got := c.q.Matches(e); got != c.want {
			t.Errorf("%+v: %v, want %v", c.q, got, c.want)
		}
	}
}
