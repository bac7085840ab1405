package watchword_test

import (
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
)

func TestIssuerSet(t *testing.T) {
	const a, b, c watchword.Issuers = "https://a", "https://b", "https://c"
	end := time.Unix(1000, 0)
	before, after := end.Add(-time.Nanosecond), end
	fixed := watchword.FixedIssuer(string(a))()
	moved := watchword.NewIssuerSet(watchword.AcceptedIssuer{Issuer: a, Until: end}, watchword.AcceptedIssuer{Issuer: b})
	again := watchword.NewIssuerSet(watchword.AcceptedIssuer{Issuer: a, Until: end}, watchword.AcceptedIssuer{Issuer: b, Until: end.Add(time.Hour)}, watchword.AcceptedIssuer{Issuer: c})
	back := watchword.NewIssuerSet(watchword.AcceptedIssuer{Issuer: a}, watchword.AcceptedIssuer{Issuer: b, Until: end})
	for _, tc := range []struct {
		name     string
		set      *watchword.IssuerSet
		now      time.Time
		accepted []string
		known    string
		former   int
	}{
		{"a server that never moved", fixed, after, []string{"https://a"}, "https://a", 0},
		{"after a move", moved, before, []string{"https://b", "https://a"}, "https://a", 1},
		{"at the end of the overlap", moved, after, []string{"https://b"}, "https://b", 0},
		{"after two moves", again, before, []string{"https://c", "https://a", "https://b"}, "https://a", 2},
		{"after two moves, later", again, after, []string{"https://c", "https://b"}, "https://b", 1},
		{"after a move back", back, before, []string{"https://a", "https://b"}, "https://a", 1},
		{"after a move back, later", back, after, []string{"https://a"}, "https://a", 0},
	} {
		for _, tenant := range []watchword.TenantID{watchword.DefaultTenant, "other"} {
			path := watchword.TenantPath(tenant)
			var want []string
			for _, i := range tc.accepted {
				want = append(want, i+path)
				if got := tc.set.Tenant(i+path, tc.now); got != tenant {
					t.Errorf("%s: %s%s is of tenant %q", tc.name, i, path, got)
				}
			}
			if got := tc.set.Accepted(tenant, tc.now); !slices.Equal(got, want) {
				t.Errorf("%s: accepted are %v, want %v", tc.name, got, want)
			}
			if got := tc.set.Known(tenant, tc.now); got != tc.known+path {
				t.Errorf("%s: devices know %s, want %s", tc.name, got, tc.known+path)
			}
			if got := tc.set.Current(tenant); got != want[0] {
				t.Errorf("%s: the current issuer is %s", tc.name, got)
			}
		}
		if got := tc.set.Former(tc.now); len(got) != tc.former {
			t.Errorf("%s: former ones are %v", tc.name, got)
		}
	}
	if got := moved.Tenant("https://a", after); got != "" {
		t.Errorf("an issuer after its end is of tenant %q", got)
	}
	if fixed.Moved() || !moved.Moved() {
		t.Error("Moved")
	}
}
