package authz_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// A case that the tests of policy do not reach: the caller does not know the device's labels.
func TestUnknownLabelsAreReadRestrictively(t *testing.T) {
	call := func(resources ...string) (out []watchword.Permission) {
		for _, r := range resources {
			out = append(out, watchword.Permission{Resource: r, Actions: []string{"call"}})
		}
		return out
	}
	g, err := authz.FromPermissions[struct{}](call("fn:*/lamp.*", "fn:site=plant-1/door.*"), call("fn:site=vault/lamp.set", "fn:lamp-9/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		target   authz.Target
		function string
		allowed  bool
		rule     string
	}{
		{"known to have no labels", authz.Target{ID: "lamp-1"}, "lamp.set", true, "token"},
		{"known to be in the vault", authz.Target{ID: "lamp-1", Labels: watchword.Labels{"site": "vault"}}, "lamp.set", false, "token"},
		{"unknown, and could be in the vault", authz.Target{ID: "lamp-1", Unlabeled: true}, "lamp.set", false, "token"},
		{"unknown, where no denied rule is about the function", authz.Target{ID: "lamp-1", Unlabeled: true}, "lamp.get", true, "token"},
		{"known to be in the plant", authz.Target{ID: "door-1", Labels: watchword.Labels{"site": "plant-1"}}, "door.open", true, "token"},
		{"unknown, and could be elsewhere", authz.Target{ID: "door-1", Unlabeled: true}, "door.open", false, ""},
		{"unknown, denied by its id", authz.Target{ID: "lamp-9", Unlabeled: true}, "lamp.get", false, "token"},
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
	if _, err := authz.FromPermissions[struct{}](many[:300], many[300:]); watchword.CodeOf(err) != watchword.TokenMalformed {
		t.Errorf("513 permissions: %v", err)
	}
	if _, err := authz.FromPermissions[struct{}](many[:300], many[301:]); err != nil {
		t.Errorf("512 permissions: %v", err)
	}
	for _, r := range []string{"topic:a/#/b", "api:readings", "api:/a+", "fn:lamp", "fn:a b/c", "fn:k=v,k=w/c", "fn:a/b*c", "secret:a"} {
		for _, action := range []string{"pub", "get", "call"} {
			if _, err := authz.FromPermissions[struct{}]([]watchword.Permission{{Resource: r, Actions: []string{action}}}, nil); watchword.CodeOf(err) != watchword.TokenMalformed {
				t.Errorf("%s %s: %v", r, action, err)
			}
		}
	}
}

// Each method is decided by itself, in either case; a denied rule counts for its own
// methods and for the paths that it matches, and for no others.
func TestRequests(t *testing.T) {
	methods := [][]string{{"GET", "get", "HEAD", "head"}, {"PUT", "put"}, {"POST", "post"}, {"PATCH", "patch"}, {"DELETE", "delete"}}
	o := &authz.Origin{Policy: "p"}
	for denied, names := range methods {
		bit := authz.PathBit(names[0])
		if bit == 0 || bit&authz.AllPaths != bit {
			t.Fatalf("%s: bit %#x of %#x", names[0], bit, authz.AllPaths)
		}
		var g authz.Grant[struct{}]
		g.Allowed.Paths = append(g.Allowed.Paths, authz.NewPath("/v1/#", authz.AllPaths, o))
		g.Denied.Paths = append(g.Denied.Paths, authz.NewPath("/v1/+/keys", bit, o))
		for asked, names := range methods {
			for _, m := range names {
				for path, spared := range map[string]bool{"/v1/a/keys": false, "/v1/a/keys/b": true, "/v1/keys": true, "/v1": true, "/v1/a": true} {
					if d := g.Request(m, path); d.Allowed != (spared || asked != denied) || d.Rule() == "" {
						t.Errorf("%s is denied: %s %s is allowed: %v by %q", methods[denied][0], m, path, d.Allowed, d.Rule())
					}
				}
				if d := g.Request(m, "/v2/a"); d.Allowed || d.Rule() != "" {
					t.Errorf("%s /v2/a: %v by %q", m, d.Allowed, d.Rule())
				}
			}
		}
		var one authz.Grant[struct{}]
		one.Allowed.Paths = append(one.Allowed.Paths, authz.NewPath("/v1/#", bit, o))
		for asked, names := range methods {
			if got := one.Request(names[0], "/v1/a").Allowed; got != (asked == denied) {
				t.Errorf("%s alone is allowed: %s is %v", methods[denied][0], names[0], got)
			}
		}
	}
	var g authz.Grant[struct{}]
	g.Allowed.Paths = append(g.Allowed.Paths, authz.NewPath("#", authz.AllPaths, o), authz.NewPath("/#", authz.AllPaths, o))
	for path, want := range map[string]bool{
		"/": true, "/a": true, "/a/b": true, "/..a/.b/c..": true, "/a%2f..": true, "/...": true,
		"": false, "a": false, "//": false, "//a": false, "/a/": false, "/a/b/": false, "/a//b": false, "/a//": false, "/.": false, "/..": false, "/./a": false, "/../a": false,
		"/a/.": false, "/a/..": false, "/a/./b": false, "/a/../b": false, "/a/../": false, "/a\x00": false, "/a\n": false, "/a\xff": false,
	} {
		if got := g.Request("GET", path).Allowed; got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
	for _, m := range []string{"", "Get", "TRACE", "OPTIONS", "CONNECT", "GETX"} {
		if g.Request(m, "/a").Allowed {
			t.Errorf("%q is allowed", m)
		}
	}
}
