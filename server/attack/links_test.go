package attack_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// A one-time link of a device, an operator or a service gives nothing that its maker could not give at the moment when it is used. Each
// case makes one link with a maker of its own, changes something, and uses the link.
func TestLinkEndsWithTheRightOfItsMaker(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.IssueRate = 1 << 20 })
	ctx := t.Context()
	policies := func(name, text string) {
		t.Helper()
		_, err := srv.admin.ApplyPolicy(ctx, name, []byte(text), -1)
		must(t, err)
	}
	installer := func(mayGive, post string) string {
		return "role = \"installer\"\nmay_give = [" + mayGive + "]\n[[allow]]\nget = [\"/v1/devices/#\", \"/v1/services/#\"]\npost = [" + post + "]\n"
	}
	const given, posts = `"topic:meter/#"`, `"/v1/devices/#", "/v1/services/#"`
	mayPost := func(post string) func(operatorKey, watchword.SubjectID) error {
		return func(operatorKey, watchword.SubjectID) error {
			policies("installers", installer(given, post))
			return nil
		}
	}
	meters := "for = { kind = \"meter\" }\n[[allow]]\npublish = [\"meter/power\"]\n"
	policies("installers", installer(given, posts))
	policies("meters", meters)
	o, err := srv.admin.CreateOperator(ctx, "olga", "owner", 0)
	must(t, err)
	olga := srv.enrollKey("olga", o.Enrollment, "desktop")
	for n, tc := range []struct {
		name   string
		role   string // of the maker
		path   string // of the list to which the link's subject is added
		body   string
		change func(maker operatorKey, subject watchword.SubjectID) error
		void   bool
	}{
		{"nothing changes", "owner", "/v1/operators", `"role":"viewer"`, func(operatorKey, watchword.SubjectID) error { return nil }, false},
		{"another policy changes", "installer", "/v1/devices", `"labels":{"kind":"meter"}`, func(operatorKey, watchword.SubjectID) error {
			policies("others", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"lamp/power\"]\n")
			return nil
		}, false},
		{"the maker gets a further key", "owner", "/v1/services", "", func(m operatorKey, _ watchword.SubjectID) error {
			e, err := srv.admin.Operators().Link(ctx, m.id, 0, 0)
			must(t, err)
			srv.enrollKey(m.id, &e, "second")
			return nil
		}, false},
		{"an owner is revoked", "owner", "/v1/operators", `"role":"viewer"`, func(m operatorKey, _ watchword.SubjectID) error {
			_, err := srv.admin.Operators().Revoke(ctx, m.id, "left")
			return err
		}, true},
		{"an owner is suspended, and resumed later", "owner", "/v1/services", "", func(m operatorKey, _ watchword.SubjectID) error {
			_, err := srv.admin.Operators().Suspend(ctx, m.id, "away")
			must(t, err)
			_, err = srv.admin.Operators().Resume(ctx, m.id)
			return err
		}, true},
		{"an owner becomes a viewer", "owner", "/v1/devices", "", func(m operatorKey, _ watchword.SubjectID) error {
			_, err := srv.admin.SetRole(ctx, m.id, "viewer")
			return err
		}, true},
		{"the key of an owner was stolen, and is revoked", "owner", "/v1/operators", `"role":"owner"`, func(m operatorKey, _ watchword.SubjectID) error {
			return srv.admin.Operators().RevokeKey(ctx, m.id, m.kid())
		}, true},
		{"the invited viewer becomes an owner", "owner", "/v1/operators", `"role":"viewer"`, func(_ operatorKey, s watchword.SubjectID) error {
			_, err := srv.admin.SetRole(ctx, s, "owner")
			return err
		}, true},
		{"the device gets other labels", "admin", "/v1/devices", "", func(_ operatorKey, s watchword.SubjectID) error {
			_, err := srv.admin.SetLabels(ctx, s, watchword.Labels{"kind": "meter"}, 0)
			return err
		}, true},
		{"a policy gives the service more than an admin may give", "admin", "/v1/services", `"labels":{"app":"billing"}`, func(operatorKey, watchword.SubjectID) error {
			policies("billing", "for = { app = \"billing\" }\nkinds = [\"service\"]\n[[allow]]\nget = [\"/v1/operators/#\"]\npost = [\"/v1/operators/#\"]\n")
			return nil
		}, true},
		{"the role of the maker may give less", "installer", "/v1/devices", `"labels":{"kind":"meter"}`, func(operatorKey, watchword.SubjectID) error {
			policies("installers", installer("", posts))
			return nil
		}, true},
		{"the role of the maker only adds devices", "installer", "/v1/devices", `"labels":{"kind":"meter"}`, mayPost(`"/v1/devices"`), false},
		{"the role of the maker only makes links", "installer", "/v1/devices", `"labels":{"kind":"meter"}`, mayPost(`"/v1/devices/+/link"`), false},
		{"the role of the maker makes no links any more", "installer", "/v1/devices", `"labels":{"kind":"meter"}`, mayPost(`"/v1/services/#", "/v1/devices/+/suspend"`), true},
	} {
		policies("installers", installer(given, posts))
		names := strings.NewReplacer(" ", "-", ",", "")
		maker, err := srv.admin.CreateOperator(ctx, watchword.SubjectID("maker-"+names.Replace(tc.name)), tc.role, 0)
		must(t, err)
		m := srv.enrollKey(maker.ID, maker.Enrollment, "laptop")
		id := watchword.SubjectID("of-" + names.Replace(tc.name))
		body := `{"id":"` + string(id) + `"`
		if tc.body != "" {
			body += "," + tc.body
		}
		a := m.proved("POST", tc.path, body+"}", "")
		if a.status != http.StatusCreated {
			t.Fatalf("%s: %d %s", tc.name, a.status, a.body)
		}
		var s api.Subject
		must(t, json.Unmarshal([]byte(a.body), &s))
		pending := func() *api.PendingLink {
			t.Helper()
			var shown api.Subject
			must(t, json.Unmarshal([]byte(olga.proved("GET", tc.path+"/"+string(id), "", "").body), &shown))
			return shown.PendingLink
		}
		if l := pending(); l == nil || l.CreatedBy != maker.ID || !l.ExpiresAt.Equal(s.Enrollment.ExpiresAt.Truncate(time.Millisecond)) {
			t.Errorf("%s: the link is shown as %+v", tc.name, l)
		}
		must(t, tc.change(m, id))
		if a := srv.enrollPair(srv.clientAt(fmt.Sprintf("127.0.0.%d", n+2)), s.Enrollment); a.status != http.StatusOK != tc.void || tc.void && !strings.Contains(a.body, `"code_invalid"`) {
			t.Errorf("%s: the link is used: %d %s, want it void: %v", tc.name, a.status, a.body, tc.void)
		}
		if !tc.void && pending() != nil {
			t.Errorf("%s: a used link is shown", tc.name)
		}
	}
}

// enrollPair redeems a link with two new keys.
func (srv *testServer) enrollPair(c *http.Client, link *api.Enrollment) answer {
	srv.t.Helper()
	_, signer := newKey(srv.t, jose.P256)
	seal, err := jose.GenerateKey(jose.X25519)
	must(srv.t, err)
	proof, err := token.SignEnrollment(signer, srv.info.URL, token.CodeHashClaim(link.Code), seal.Public().ID(), time.Now())
	must(srv.t, err)
	body, err := json.Marshal(api.EnrollRequest{Code: link.Code, Keys: api.NamedKeys{PublicKeys: api.PublicKeys{Sign: signer.Public().JWK(), Seal: seal.Public().JWK()}}, Proof: proof})
	must(srv.t, err)
	a, err := srv.sendShot(c, shot{method: "POST", path: "/v1/enroll", body: string(body), head: http.Header{"Content-Type": {"application/json"}}})
	must(srv.t, err)
	return a
}
