package permit_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/permit"
)

// What policy's tests do not reach: who asks without knowing the device's labels.
func TestWhereLabelsAreNotKnownTheSaferReadingCounts(t *testing.T) {
	call := func(resources ...string) (out []watchword.Permission) {
		for _, r := range resources {
			out = append(out, watchword.Permission{Resource: r, Actions: []string{"call"}})
		}
		return out
	}
	g, err := permit.FromPermissions[struct{}](call("fn:*/lamp.*", "fn:site=plant-1/door.*"), call("fn:site=vault/lamp.set", "fn:lamp-9/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		target   permit.Target
		function string
		allowed  bool
		rule     string
	}{
		{"known to have no labels", permit.Target{ID: "lamp-1"}, "lamp.set", true, "token"},
		{"known to be in the vault", permit.Target{ID: "lamp-1", Labels: watchword.Labels{"site": "vault"}}, "lamp.set", false, "token"},
		{"unknown, and could be in the vault", permit.Target{ID: "lamp-1", Unlabeled: true}, "lamp.set", false, "token"},
		{"unknown, where no denied rule is about the function", permit.Target{ID: "lamp-1", Unlabeled: true}, "lamp.get", true, "token"},
		{"known to be in the plant", permit.Target{ID: "door-1", Labels: watchword.Labels{"site": "plant-1"}}, "door.open", true, "token"},
		{"unknown, and could be elsewhere", permit.Target{ID: "door-1", Unlabeled: true}, "door.open", false, ""},
		{"unknown, denied by its id", permit.Target{ID: "lamp-9", Unlabeled: true}, "lamp.get", false, "token"},
	} {
		if d := g.Call(tc.target, tc.function, nil); d.Allowed != tc.allowed || d.Rule() != tc.rule {
			t.Errorf("%s: got %v by %q", tc.name, d.Allowed, d.Rule())
		}
	}
}

func TestATokenCompilesToABoundedGrant(t *testing.T) {
	many := make([]watchword.Permission, 513)
	for i := range many {
		many[i] = watchword.Permission{Resource: "topic:a", Actions: []string{"pub"}}
	}
	if _, err := permit.FromPermissions[struct{}](many[:300], many[300:]); watchword.CodeOf(err) != watchword.TokenMalformed {
		t.Errorf("513 permissions: %v", err)
	}
	if _, err := permit.FromPermissions[struct{}](many[:300], many[301:]); err != nil {
		t.Errorf("512 permissions: %v", err)
	}
	for _, r := range []string{"topic:a/#/b", "api:readings", "api:/a+", "fn:lamp", "fn:a b/c", "fn:k=v,k=w/c", "fn:a/b*c", "secret:a"} {
		for _, action := range []string{"pub", "get", "call"} {
			if _, err := permit.FromPermissions[struct{}]([]watchword.Permission{{Resource: r, Actions: []string{action}}}, nil); watchword.CodeOf(err) != watchword.TokenMalformed {
				t.Errorf("%s %s: %v", r, action, err)
			}
		}
	}
}
