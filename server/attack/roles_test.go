package attack_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// enrollSubject redeems the link of an operator or a service with a signing key alone, and returns a token.
func (srv *testServer) enrollSubject(s api.Subject) string {
	srv.t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	must(srv.t, err)
	signer, err := k.Signer()
	must(srv.t, err)
	proof, err := token.SignEnrollment(signer, srv.info.URL, token.CodeHashClaim(s.Enrollment.Code), "", time.Now())
	must(srv.t, err)
	body, err := json.Marshal(map[string]any{"code": s.Enrollment.Code, "keys": map[string]any{"sign": json.RawMessage(k.Public().JWK())}, "proof": proof})
	must(srv.t, err)
	if a := srv.request("POST", "/v1/enroll", "", string(body), "Content-Type: application/json"); a.status != http.StatusOK {
		srv.t.Fatalf("%s did not enroll: %d %s", s.ID, a.status, a.body)
	}
	assertion, err := token.SignAssertion(signer, s.ID, srv.info.URL, time.Now(), token.AssertionLifetime)
	must(srv.t, err)
	var out struct {
		AccessToken string `json:"access_token"`
	}
	must(srv.t, json.Unmarshal([]byte(srv.exchangeAssertion(assertion).body), &out))
	return out.AccessToken
}

// Who may make and change whom over the API: the refusals name the permission, and leave nothing behind.
func TestNobodyGivesMoreOverTheAPI(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	_, err := srv.admin.ApplyPolicy(ctx, "installers", []byte("role = \"installer\"\nmay_give = [\"topic:plant/#\"]\n[[allow]]\nget = [\"/v1/#\"]\npost = [\"/v1/#\"]\nput = [\"/v1/#\"]\ndelete = [\"/v1/#\"]\n"), -1)
	must(t, err)
	_, err = srv.admin.ApplyPolicy(ctx, "meters", []byte("for = { kind = \"meter\" }\n[[allow]]\npublish = [\"meter/power\"]\n"), -1)
	must(t, err)
	s, err := srv.admin.CreateOperator(ctx, "ina", "installer", 0)
	must(t, err)
	ina := srv.enrollSubject(s)
	srv.enroll("meter-1", device.Options{}, watchword.Labels{"kind": "meter"})
	before := len(srv.allEntries())
	for _, tc := range []struct{ method, path, body, permission string }{
		{"POST", "/v1/devices", `{"id":"meter-2","labels":{"kind":"meter"}}`, "topic:meter/power"},
		{"POST", "/v1/operators", `{"id":"eve","role":"owner"}`, "topic:#"},
		{"POST", "/v1/operators", `{"id":"eve","role":"viewer"}`, "topic:devices/+/events/#"},
		{"PUT", "/v1/operators/ina/role", `{"role":"owner"}`, "topic:#"},
		{"POST", "/v1/operators/operator/suspend", `{}`, "topic:#"},
		{"POST", "/v1/devices/meter-1/suspend", `{}`, "topic:meter/power"},
		{"PUT", "/v1/devices/meter-1/labels", `{"labels":{}}`, "topic:meter/power"},
		{"DELETE", "/v1/devices/meter-1", "", "topic:meter/power"},
		{"PUT", "/v1/policies/installers", "role = \"installer\"\n[[allow]]\nget = [\"/#\"]\n", "api:/#"},
		{"PUT", "/v1/policies/everybody", "for = {}\n[[allow]]\npublish = [\"meter/power\"]\n", "topic:meter/power"},
		{"DELETE", "/v1/policies/meters", "", "topic:meter/power"},
	} {
		kind := "application/json"
		if strings.HasPrefix(tc.path, "/v1/policies") {
			kind = "application/toml"
		}
		a := srv.request(tc.method, tc.path, ina, tc.body, "Content-Type: "+kind)
		if a.status != http.StatusForbidden || !strings.Contains(a.body, `"exceeds_own"`) || !strings.Contains(a.body, tc.permission) {
			t.Errorf("%s %s %s: %d %s, want exceeds_own with %s", tc.method, tc.path, tc.body, a.status, a.body, tc.permission)
		}
	}
	if a := srv.request("POST", "/v1/devices", ina, `{"id":"lamp-2"}`, "Content-Type: application/json"); a.status != http.StatusCreated {
		t.Errorf("a device without further permissions: %d %s", a.status, a.body)
	}
	logged := false // the log records refusals of one subject within a rate, and counts the others
	for _, e := range srv.allEntries()[before:] {
		if e.Actor == "ina" && e.Outcome == "done" && e.Kind != "token.issue" && e.Object != "lamp-2" {
			t.Errorf("a refused act is in the log: %+v", e)
		}
		logged = logged || e.Actor == "ina" && e.Code == watchword.ExceedsOwn
	}
	if !logged {
		t.Error("no refusal is in the log")
	}
	// The last owner, by an owner.
	if _, err := srv.admin.Operators().Suspend(ctx, "operator", ""); watchword.CodeOf(err) != watchword.Conflict {
		t.Errorf("suspending the last owner: %v", err)
	}
	if _, err := srv.admin.Operators().Revoke(ctx, "operator", ""); watchword.CodeOf(err) != watchword.Conflict {
		t.Errorf("revoking the last owner: %v", err)
	}
	if _, err := srv.admin.SetRole(ctx, "operator", "viewer"); watchword.CodeOf(err) != watchword.Conflict {
		t.Errorf("another role for the last owner: %v", err)
	}
}

// The life of an operator and of a service over the SDK: each change counts for their tokens at once.
func TestLifeOfOperatorsAndServices(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	for _, tc := range []struct {
		name   string
		manage admin.Subjects
		create func() (api.Subject, error)
	}{
		{"operator", srv.admin.Operators(), func() (api.Subject, error) { return srv.admin.CreateOperator(ctx, "vera", "viewer", time.Hour) }},
		{"service", srv.admin.Services(), func() (api.Subject, error) {
			return srv.admin.CreateService(ctx, "billing", watchword.Labels{"site": "a"}, time.Hour)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := tc.create()
			must(t, err)
			e, err := tc.manage.Link(ctx, s.ID, time.Hour, 0)
			must(t, err)
			s.Enrollment = &e
			tok := srv.enrollSubject(s)
			s, err = tc.manage.SetLabels(ctx, s.ID, watchword.Labels{"site": "b"}, 0)
			must(t, err)
			_, err = tc.manage.SetLabels(ctx, s.ID, nil, s.Version-1)
			wants(t, "labels under an old version", err, watchword.PreconditionFailed)
			self := func(want int) {
				t.Helper()
				if a := srv.request("GET", "/v1/self", tok, ""); a.status != want {
					t.Errorf("its own request: %d %s, want %d", a.status, a.body, want)
				}
			}
			self(http.StatusOK)
			_, err = tc.manage.Suspend(ctx, s.ID, "away")
			must(t, err)
			self(http.StatusUnauthorized)
			_, err = tc.manage.Link(ctx, s.ID, 0, 0)
			wants(t, "a link for a suspended one", err, watchword.Conflict)
			_, err = tc.manage.Resume(ctx, s.ID)
			must(t, err)
			self(http.StatusOK)
			var listed []watchword.SubjectID
			must(t, tc.manage.List(ctx, watchword.Labels{"site": "b"}, watchword.Active, func(s api.Subject) error {
				listed = append(listed, s.ID)
				return nil
			}))
			if len(listed) != 1 || listed[0] != s.ID {
				t.Errorf("listed %v", listed)
			}
			if s, err = tc.manage.Get(ctx, s.ID); err != nil || len(s.Keys) != 1 || s.Labels["site"] != "b" {
				t.Errorf("got %+v, %v", s, err)
			}
			_, err = tc.manage.Revoke(ctx, s.ID, "left")
			must(t, err)
			self(http.StatusUnauthorized)
			must(t, tc.manage.Delete(ctx, s.ID))
			_, err = tc.manage.Get(ctx, s.ID)
			wants(t, "a deleted one", err, watchword.NotFound)
			_, err = tc.create()
			wants(t, "the id of a deleted one", err, watchword.Conflict)
		})
	}
	// A device is no operator, and the other way round.
	srv.enroll("lamp-1", device.Options{}, nil)
	_, err := srv.admin.Operators().Suspend(ctx, "lamp-1", "")
	wants(t, "a device as an operator", err, watchword.NotFound)
	_, err = srv.admin.Services().Suspend(ctx, "operator", "")
	wants(t, "an operator as a service", err, watchword.NotFound)
	_, err = srv.admin.Suspend(ctx, "operator", "")
	wants(t, "an operator as a device", err, watchword.NotFound)
	_, err = srv.admin.CreateOperator(ctx, "x", "no-such-role", 0)
	wants(t, "an unknown role", err, watchword.BadRequest)
}
