package attack_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// fullAuthorityPolicy allows a subject with the label everything, so that every operation can be tried as a subject whose
// right can be removed.
const fullAuthorityPolicy = `for = { boss = "yes" }
[[allow]]
get = ["/#"]
put = ["/#"]
post = ["/#"]
patch = ["/#"]
delete = ["/#"]
[[allow]]
publish = ["#"]
subscribe = ["#"]
[[allow]]
call = ["*"]
on = {}
`

// fullAuthorityDevice is a device that may do everything, and the ways to take that from it and to give it back.
type fullAuthorityDevice struct {
	*testServer
	*device.Device
	token string
}

func newFullAuthorityDevice(t *testing.T, srv *testServer, id watchword.SubjectID) *fullAuthorityDevice {
	t.Helper()
	_, err := srv.admin.ApplyPolicy(t.Context(), "boss", []byte(fullAuthorityPolicy), -1)
	must(t, err)
	d := srv.enroll(id, device.Options{}, watchword.Labels{"boss": "yes"})
	return &fullAuthorityDevice{srv, d, srv.token(d)}
}

type authorityEdit struct {
	name            string
	revoke, restore func() error
	kind            string // of the entry that take leaves
}

func (b *fullAuthorityDevice) edits(ctx context.Context, id watchword.SubjectID) []authorityEdit {
	labels := func(l watchword.Labels) func() error {
		return func() error { _, err := b.admin.SetLabels(ctx, id, l, 0); return err }
	}
	apply := func(doc string) func() error {
		return func() error { _, err := b.admin.ApplyPolicy(ctx, "boss", []byte(doc), -1); return err }
	}
	return []authorityEdit{
		{"suspended", func() error { _, err := b.admin.Suspend(ctx, id, "t"); return err }, func() error { _, err := b.admin.Resume(ctx, id); return err }, audit.DeviceSuspend},
		{"its label taken", labels(nil), labels(watchword.Labels{"boss": "yes"}), audit.DeviceLabel},
		{"the policy edited", apply(strings.Replace(fullAuthorityPolicy, `boss = "yes"`, `boss = "no"`, 1)), apply(fullAuthorityPolicy), audit.PolicyApply},
	}
}

// requestInTwoParts sends the headers of a request, waits until the server requests the body, calls between, and then sends
// the body.
func (b *fullAuthorityDevice) requestInTwoParts(method, path, contentType, body string, header http.Header, between func()) (*http.Response, string, error) {
	t := b.testServer.t
	t.Helper()
	u, err := url.Parse(b.url)
	must(t, err)
	conf := b.client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName, conf.NextProtos = u.Hostname(), []string{"http/1.1"}
	c, err := tls.Dial("tcp", u.Host, conf)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	auth := "Authorization: Bearer " + b.token + "\r\n"
	for k, v := range header {
		auth += k + ": " + v[0] + "\r\n"
	}
	_, err = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\n%sContent-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", method, path, u.Host, auth, contentType, len(body))
	must(t, err)
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	must(t, err)
	if !strings.Contains(line, "100 Continue") {
		return nil, "", fmt.Errorf("the server does not read the body first: %s", line)
	}
	if _, err := r.ReadString('\n'); err != nil {
		return nil, "", err
	}
	between()
	if _, err := io.WriteString(c, body); err != nil {
		return nil, "", err
	}
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res, string(text), err
}

// entriesAfter returns what a subject did after the last entry of a kind, that was no refusal.
func (srv *testServer) entriesAfter(id watchword.SubjectID, kind string) []audit.Entry {
	srv.t.Helper()
	var out []audit.Entry
	for _, e := range srv.allEntries() {
		switch {
		case e.Kind == kind && e.Actor != id:
			out = nil
		case e.Actor == id && e.Outcome == audit.Done && audit.NeedsAuthority(e.Kind):
			out = append(out, e)
		}
	}
	return out
}

// allEntries is the whole log.
func (srv *testServer) allEntries() []audit.Entry {
	srv.t.Helper()
	st, err := sqlite.Open(srv.t.Context(), filepath.Join(srv.dir, "watchword.db"), sqlite.Options{})
	must(srv.t, err)
	defer st.Close()
	all, err := audit.Entries(srv.t.Context(), st, 0, 100_000)
	must(srv.t, err)
	return all
}

// operation is how a change over HTTP is made so that it would succeed.
type operation struct {
	path, body, contentType string
	header                  http.Header
}

// operations is a way to make every operation of the description that has a body and takes a token. n makes names.
func (b *fullAuthorityDevice) operations(t *testing.T, n *int) map[string]func() operation {
	ctx := t.Context()
	name := func() watchword.SubjectID { *n++; return watchword.SubjectID(fmt.Sprint("x-", *n)) }
	added := func() watchword.SubjectID {
		id := name()
		_, err := b.admin.CreateDevice(ctx, id, nil, 0)
		must(t, err)
		return id
	}
	of := func(format, body string) func() operation {
		return func() operation { return operation{path: fmt.Sprintf(format, added()), body: body} }
	}
	at := func(path, body string) func() operation {
		return func() operation { return operation{path: path, body: body} }
	}
	operator := func(format, body string) func() operation {
		return func() operation {
			id := name()
			_, err := b.admin.CreateOperator(ctx, id, "viewer", 0)
			must(t, err)
			return operation{path: fmt.Sprintf("/v1/operators/"+format, id), body: body}
		}
	}
	service := func(format, body string) func() operation {
		return func() operation {
			id := name()
			_, err := b.admin.CreateService(ctx, id, nil, 0)
			must(t, err)
			return operation{path: fmt.Sprintf("/v1/services/"+format, id), body: body}
		}
	}
	keyEnd := func(list string, create func(watchword.SubjectID) (api.Subject, error)) func() operation {
		return func() operation {
			s, err := create(name())
			must(t, err)
			k := b.enrollKey(s.ID, s.Enrollment, "laptop")
			return operation{path: fmt.Sprintf("%s/%s/keys/%s/end", list, s.ID, k.kid()), body: `{"ends_at":"2040-01-01T00:00:00Z"}`}
		}
	}
	lamp := b.enroll("lamp-of-boss", device.Options{}, nil)
	return map[string]func() operation{
		"POST /v1/devices":              func() operation { return operation{path: "/v1/devices", body: fmt.Sprintf(`{"id":%q}`, name())} },
		"PUT /v1/devices/{id}/labels":   of("/v1/devices/%s/labels", `{"labels":{"a":"b"}}`),
		"PUT /v1/devices/{id}/name":     of("/v1/devices/%s/name", `{"name":"n"}`),
		"PUT /v1/devices/{id}/proof":    of("/v1/devices/%s/proof", `{"proof":"required"}`),
		"POST /v1/devices/{id}/link":    of("/v1/devices/%s/link", `{"ttl":"1h"}`),
		"POST /v1/devices/{id}/suspend": of("/v1/devices/%s/suspend", `{"reason":"r"}`),
		"POST /v1/devices/{id}/resume":  of("/v1/devices/%s/resume", `{"reason":"r"}`),
		"POST /v1/devices/{id}/revoke":  of("/v1/devices/%s/revoke", `{"reason":"r"}`),
		"POST /v1/operators": func() operation {
			return operation{path: "/v1/operators", body: fmt.Sprintf(`{"id":%q,"role":"viewer"}`, name())}
		},
		"PUT /v1/operators/{id}/labels":   operator("%s/labels", `{"labels":{"a":"b"}}`),
		"PUT /v1/operators/{id}/role":     operator("%s/role", `{"role":"auditor"}`),
		"POST /v1/operators/{id}/link":    operator("%s/link", `{"ttl":"1h"}`),
		"POST /v1/operators/{id}/suspend": operator("%s/suspend", `{"reason":"r"}`),
		"POST /v1/operators/{id}/resume":  operator("%s/resume", `{"reason":"r"}`),
		"POST /v1/operators/{id}/revoke":  operator("%s/revoke", `{"reason":"r"}`),
		"PUT /v1/operators/{id}/keys/{kid}/end": keyEnd("/v1/operators", func(id watchword.SubjectID) (api.Subject, error) {
			return b.admin.CreateOperator(ctx, id, "viewer", 0)
		}),
		"PUT /v1/services/{id}/keys/{kid}/end": keyEnd("/v1/services", func(id watchword.SubjectID) (api.Subject, error) {
			return b.admin.CreateService(ctx, id, nil, 0)
		}),
		"POST /v1/services":              func() operation { return operation{path: "/v1/services", body: fmt.Sprintf(`{"id":%q}`, name())} },
		"PUT /v1/services/{id}/labels":   service("%s/labels", `{"labels":{"a":"b"}}`),
		"POST /v1/services/{id}/link":    service("%s/link", `{"ttl":"1h"}`),
		"POST /v1/services/{id}/suspend": service("%s/suspend", `{"reason":"r"}`),
		"POST /v1/services/{id}/resume":  service("%s/resume", `{"reason":"r"}`),
		"POST /v1/services/{id}/revoke":  service("%s/revoke", `{"reason":"r"}`),
		"PUT /v1/devices/{id}/config":    of("/v1/devices/%s/config", `{"a":1}`),
		"POST /v1/commands":              at("/v1/commands", fmt.Sprintf(`{"device":%q,"function":"f","args":{}}`, lamp.ID())),
		"PUT /v1/policies/{name}": func() operation {
			*n++
			return operation{path: fmt.Sprint("/v1/policies/p", *n), body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"a\"]\n", contentType: "application/toml"}
		},
		"POST /v1/policies/check": func() operation {
			return operation{path: "/v1/policies/check?name=p", body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"a\"]\n", contentType: "application/toml"}
		},
		"POST /v1/policies/diff": func() operation {
			return operation{path: "/v1/policies/diff?name=p", body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"a\"]\n", contentType: "application/toml"}
		},
		"POST /v1/explain":                         at("/v1/explain", `{"subject":"operator","action":"get","resource":"api:/v1/devices"}`),
		"POST /v1/keys/{role}/rotate":              at("/v1/keys/time/rotate", `{"now":true}`),
		"POST /v1/keys/{id}/revoke":                nil, // by keyOf below
		"POST /v1/keys/bundles/plan":               nil, // needs a root that lives offline: the store's contract holds TurnKeys
		"POST /v1/keys/bundles":                    nil,
		"POST /v1/address/move":                    nil, // the same act of the store as a rotation of keys; it would change the issuer of the other rows
		"POST /v1/self/events/{stream}":            at("/v1/self/events/lux", `1`),
		"PUT /v1/self/state":                       at("/v1/self/state", `{"on":true}`),
		"PUT /v1/self/trust":                       nil, // a bundle that changes something: TestABundleOfTheRootStopsASupersededServer
		"PUT /v1/self/functions":                   at("/v1/self/functions", `{"functions":[{"name":"f"}]}`),
		"POST /v1/self/receipts":                   nil, // one that fits is in TestReceiptsOfOneWhoseRightWentAreRefused
		"POST /v1/self/link":                       nil, // of an operator: see server/attack/operator_keys_test.go; the same act is POST /v1/operators/{id}/link
		"PUT /v1/self/keys/{kid}/end":              nil, // of an operator: see server/attack/operator_keys_test.go; the same act is PUT /v1/operators/{id}/keys/{kid}/end
		"POST /v1/self/keys":                       nil, // its proof is by the keys: see server/attack/rekey_test.go; the store's contract holds Rekey
		"POST /v1/enrollments/{user_code}/approve": nil, // the store's contract holds ApprovePairing
		"POST /v1/logins/{user_code}/approve":      nil, // the same: ApprovePairing
	}
}

var withoutBody = map[string]bool{
	"POST /v1/commands/{id}/cancel":           true,
	"POST /v1/enrollments/{user_code}/reject": true,
	"POST /v1/devices/{id}/forget":            true,
	"POST /v1/logins/{user_code}/reject":      true,
	"PUT /v1/self/sessions/{id}":              true,
}

// tokenOperations are the operations of the description that take a token and a body.
func (srv *testServer) tokenOperations() (withBody, all []string) {
	var doc struct {
		Paths map[string]map[string]struct {
			Security    []map[string][]string
			RequestBody any `json:"requestBody"`
		}
	}
	must(srv.t, json.Unmarshal([]byte(srv.request("GET", "/openapi.json", "", "").body), &doc))
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if len(op.Security) == 0 {
				continue
			}
			name := strings.ToUpper(method) + " " + path
			all = append(all, name)
			if op.RequestBody != nil || method == "put" || method == "post" {
				withBody = append(withBody, name)
			}
		}
	}
	slices.Sort(withBody)
	return withBody, all
}

// For every operation with a body: the headers are sent and authorized, the right is removed, the body is sent. The request
// has no effect, and the same request with the right has.
func TestAuthorityLostBeforeBodyIsRefused(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 100_000 })
	b := newFullAuthorityDevice(t, srv, "boss")
	n := 0
	ways := b.operations(t, &n)
	names, _ := srv.tokenOperations()
	for _, name := range names {
		way, known := ways[name]
		if !known && !withoutBody[name] {
			t.Errorf("%s: how is it made to succeed? Put it in the table", name)
		}
		if way == nil {
			continue
		}
		method, _, _ := strings.Cut(name, " ")
		send := func(between func()) (int, string) {
			op := way()
			if op.contentType == "" {
				op.contentType = "application/json"
			}
			res, body, err := b.requestInTwoParts(method, op.path, op.contentType, op.body, op.header, between)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return 0, ""
			}
			return res.StatusCode, body
		}
		if status, body := send(func() {}); status >= 300 {
			t.Errorf("%s, while it may: %d %s", name, status, body)
		}
		for _, e := range b.edits(t.Context(), "boss") {
			if strings.Contains(name, " /v1/self/") && e.name != "suspended" {
				continue // what is its own is given by no policy that could be edited
			}
			status, body := send(func() { must(t, e.revoke()) })
			if status != http.StatusForbidden && status != http.StatusUnauthorized {
				t.Errorf("%s, %s before the body: %d %s", name, e.name, status, body)
			}
			if done := srv.entriesAfter("boss", e.kind); len(done) > 0 {
				t.Errorf("%s, %s before the body: it did %s after that", name, e.name, done[0].Kind)
			}
			must(t, e.restore())
		}
	}
}

// Acts of a subject whose right is granted and removed, as fast as possible, at endpoints of all kinds: none commits while
// the right was missing, by the numbers of the log.
func TestActsDoNotCommitWithoutAuthority(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 100_000 })
	ctx := t.Context()
	b := newFullAuthorityDevice(t, srv, "boss")
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var acted atomic.Int64
	client := srv.client()
	try := func(method, path string, body func(i int) string, contentType string) {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				req, err := http.NewRequestWithContext(ctx, method, srv.url+path, strings.NewReader(body(i)))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+b.token)
				req.Header.Set("Content-Type", contentType)
				res, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if res.StatusCode < 300 {
					acted.Add(1)
				}
			}
		})
	}
	// It gives itself back what it can reach: by its label, by resuming itself, by its policy.
	try("PUT", "/v1/devices/boss/labels", func(int) string { return `{"labels":{"boss":"yes"}}` }, "application/json")
	try("POST", "/v1/devices/boss/resume", func(int) string { return `{}` }, "application/json")
	try("PUT", "/v1/policies/boss", func(i int) string { return fullAuthorityPolicy + fmt.Sprintf("# %d\n", i) }, "application/toml")
	try("POST", "/v1/commands", func(int) string { return fmt.Sprintf(`{"device":%q,"function":"f","args":{},"ttl":"1s"}`, lamp.ID()) }, "application/json")
	try("PUT", "/v1/devices/lamp-1/config", func(i int) string { return fmt.Sprintf(`{"i":%d}`, i) }, "application/json")
	edits := b.edits(ctx, "boss")
	for range 12 {
		for _, e := range edits {
			must(t, e.revoke())
			seen := acted.Load()
			must(t, e.restore())
			for limit := time.Now().Add(20 * time.Second); acted.Load() < seen+3; { // until it acts again
				if time.Now().After(limit) {
					t.Fatalf("after %s was undone it acts no more", e.name)
				}
				if _, err := srv.admin.Device(ctx, "boss"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	stop.Store(true)
	testwait.All(t, "the end of what acts", &wg)
	gone := ""
	taken, done := 0, 0
	for _, e := range srv.allEntries() {
		switch {
		case e.Actor == "boss" && e.Outcome == audit.Done && audit.NeedsAuthority(e.Kind):
			if done++; gone != "" {
				t.Errorf("entry %d: %s by one that may nothing since %s", e.Seq, e.Kind, gone)
			}
		case e.Actor == "boss":
		case e.Kind == audit.DeviceSuspend, e.Kind == audit.DeviceLabel && e.Data["after"] == "", e.Kind == audit.PolicyApply && strings.Contains(e.Data["source"], `boss = "no"`):
			taken++
			gone = fmt.Sprintf("entry %d, %s", e.Seq, e.Kind)
		case e.Kind == audit.DeviceResume, e.Kind == audit.DeviceLabel, e.Kind == audit.PolicyApply:
			gone = ""
		}
	}
	if taken != 36 || done < 100 {
		t.Errorf("its right was taken %d times (want 36), and it did %d things (want at least 100)", taken, done)
	}
}

// An act that takes its own actor's right away commits and is answered.
func TestSelfRevocationIsReported(t *testing.T) {
	srv := serve(t, nil)
	b := newFullAuthorityDevice(t, srv, "boss")
	for _, c := range []struct {
		method, path, body string
		back               func() error
	}{
		{"PUT", "/v1/devices/boss/labels", `{"labels":{}}`, b.edits(t.Context(), "boss")[1].restore},
		{"POST", "/v1/devices/boss/suspend", `{}`, b.edits(t.Context(), "boss")[0].restore},
		{"DELETE", "/v1/policies/boss", ``, b.edits(t.Context(), "boss")[2].restore},
		{"POST", "/v1/devices/boss/revoke", `{}`, nil},
	} {
		if a := srv.request(c.method, c.path, b.token, c.body); a.status >= 300 {
			t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
		}
		if a := srv.request("GET", "/v1/devices", b.token, ""); a.status < 400 {
			t.Errorf("%s %s: it may still read", c.method, c.path)
		}
		if c.back != nil {
			must(t, c.back())
		}
	}
}

// A wait returns nothing to a caller that lost its right meanwhile.
func TestAuthorityLostDuringWaitIsRefused(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	b := newFullAuthorityDevice(t, srv, "boss")
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	_, err := srv.admin.ApplyPolicy(ctx, "order", []byte("subjects = [\"operator\"]\n[[allow]]\ncall = [\"*\"]\non = {}\n"), -1)
	must(t, err)
	row, err := srv.admin.Send(ctx, admin.CommandOrder{Device: lamp.ID(), Function: "f", Args: []byte(`{"secret":42}`)})
	must(t, err)
	for name, request := range map[string][3]string{
		"another subject's command": {"GET", "/v1/commands/" + string(row.ID) + "?wait=60s", ""},
		"its own order":             {"POST", "/v1/commands?wait=60s", fmt.Sprintf(`{"device":%q,"function":"f","args":{"secret":42}}`, lamp.ID())},
		"its commands":              {"GET", "/v1/self/commands?wait=60s", ""},
	} {
		for _, e := range b.edits(ctx, "boss") {
			if name == "its commands" && e.name != "suspended" {
				continue // its own commands are its own
			}
			answered := make(chan answer, 1)
			go func() { answered <- srv.request(request[0], request[1], b.token, request[2]) }()
			srv.waitForSession(t, "boss")
			must(t, e.revoke())
			select {
			case a := <-answered:
				if a.status != http.StatusForbidden && a.status != http.StatusUnauthorized || strings.Contains(a.body, "secret") {
					t.Errorf("%s, %s meanwhile: %d %s", name, e.name, a.status, a.body)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s, %s meanwhile: no answer", name, e.name)
			}
			must(t, e.restore())
		}
	}
}

// A caller that may order a command because of the device's labels may not once the device is another, even if it waited
// already.
func TestCommandOfReenrolledDeviceIsNotDelivered(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	lamp := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a"})
	_, err := srv.admin.ApplyPolicy(ctx, "caller", []byte("subjects = [\"caller\"]\n[[allow]]\npost = [\"/v1/commands\"]\n[[allow]]\ncall = [\"*\"]\non = { site = \"a\" }\n"), -1)
	must(t, err)
	token := srv.token(srv.enroll("caller", device.Options{}, nil))
	order := fmt.Sprintf(`{"device":%q,"function":"f","args":{"secret":42}}`, lamp.ID())
	for _, wait := range []string{"GET", "POST"} {
		path, body := "/v1/commands?wait=60s", order
		if wait == "GET" {
			var row struct{ ID string }
			must(t, json.Unmarshal([]byte(srv.request(http.MethodPost, "/v1/commands", token, order).body), &row))
			path, body = "/v1/commands/"+row.ID+"?wait=60s", ""
		}
		answered := make(chan answer, 1)
		go func() { answered <- srv.request(wait, path, token, body) }()
		srv.waitForSession(t, "caller")
		_, err := srv.admin.SetLabels(ctx, lamp.ID(), watchword.Labels{"site": "b"}, 0)
		must(t, err)
		queued, err := srv.admin.Commands(ctx, admin.Filter{Device: lamp.ID(), State: watchword.Queued}, 10)
		must(t, err)
		for _, c := range queued {
			_, err := srv.admin.Cancel(ctx, c.ID)
			must(t, err)
		}
		select {
		case a := <-answered:
			if a.status != http.StatusForbidden || strings.Contains(a.body, "secret") {
				t.Errorf("%s: %d %s", wait, a.status, a.body)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: no answer", wait)
		}
		_, err = srv.admin.SetLabels(ctx, lamp.ID(), watchword.Labels{"site": "a"}, 0)
		must(t, err)
	}
}

// waitForSession waits until a subject has a request that waits or lasts.
func (srv *testServer) waitForSession(t *testing.T, id watchword.SubjectID) api.Session {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		ss, err := srv.admin.Sessions(t.Context(), id)
		must(t, err)
		for _, s := range ss {
			return s
		}
	}
	t.Fatalf("%s: no session was seen", id)
	return api.Session{}
}

// Long answers are listed, counted and cut: a client that reads slowly gets no end of what it may no longer read.
func TestLongResponseIsBrokenWhenAuthorityEnds(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	b := newFullAuthorityDevice(t, srv, "boss")
	const entries, size = 250, 60 << 10
	lengthen(t, srv, entries, size)
	since := srv.lastEvent(t, b)
	for name, request := range map[string]struct{ path, accept string }{
		"an export":        {"/v1/audit/export", "*/*"},
		"the log, live":    {"/v1/audit?after=0", "text/event-stream"},
		"events of before": {"/v1/events", "text/event-stream"},
	} {
		for _, e := range b.edits(ctx, "boss") {
			t.Run(name+", "+e.name, func(t *testing.T) {
				header := http.Header{"Accept": {request.accept}}
				if name == "events of before" {
					header.Set("Last-Event-ID", since)
				}
				c, r := srv.slowReader(t, request.path, b.token, header)
				defer c.Close()
				srv.waitForSession(t, "boss")
				must(t, e.revoke())
				for limit := time.Now().Add(20 * time.Second); ; {
					ss, err := srv.admin.Sessions(ctx, "boss")
					must(t, err)
					if len(ss) == 0 {
						break
					}
					if time.Now().After(limit) {
						t.Fatalf("it is still served: %+v", ss)
					}
				}
				must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
				must(t, c.NetConn().(*net.TCPConn).SetReadBuffer(4<<20))
				n, err := io.Copy(io.Discard, r)
				if errors.Is(err, os.ErrDeadlineExceeded) || n > entries*size*9/10 {
					t.Errorf("it got %d bytes of %d (%v)", n, entries*size, err)
				}
				must(t, e.restore())
			})
		}
	}
}

// slowReader sends a request and reads the first bytes of its answer alone. The client's receive buffer is small.
func (srv *testServer) slowReader(t *testing.T, path, token string, header http.Header) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	u, err := url.Parse(srv.url)
	must(t, err)
	raw, err := net.Dial("tcp", u.Host)
	must(t, err)
	must(t, raw.(*net.TCPConn).SetReadBuffer(4096))
	conf := srv.client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName, conf.NextProtos = u.Hostname(), []string{"http/1.1"}
	c := tls.Client(raw, conf)
	var lines strings.Builder
	must(t, header.Write(&lines))
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nAuthorization: Bearer %s\r\n%s\r\n", path, u.Host, token, lines.String())
	must(t, err)
	r := bufio.NewReaderSize(c, 16)
	must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	line, err := r.ReadString('\n')
	must(t, err)
	if !strings.Contains(line, "200") {
		t.Fatalf("%s: %s", path, line)
	}
	return c, r
}

// lengthen makes the log long.
func lengthen(t *testing.T, srv *testServer, entries, size int) {
	t.Helper()
	text := strings.Repeat("x", size-100)
	for i := range entries {
		_, err := srv.admin.ApplyPolicy(t.Context(), "filler", fmt.Appendf(nil, "subjects = [\"nobody\"]\n# %d %s\n[[allow]]\npublish = [\"a\"]\n", i, text), -1)
		must(t, err)
	}
}

// lastEvent is the id of an event behind which there are many.
func (srv *testServer) lastEvent(t *testing.T, b *fullAuthorityDevice) string {
	t.Helper()
	s := srv.stream("/v1/events", b.token)
	next(t, s, "session")
	must(t, b.Publish(t.Context(), "mark", 1))
	mark := next(t, s, "event")
	for range 300 {
		must(t, b.Publish(t.Context(), "many", strings.Repeat("y", 30_000)))
	}
	return mark.ID
}

// A request announces a body that is not sent, so its answer cannot be written. A policy edit ends it nevertheless.
func TestStalledRequestBodyDoesNotBlockPolicyEdit(t *testing.T) {
	srv := serve(t, nil)
	b := newFullAuthorityDevice(t, srv, "boss")
	u, err := url.Parse(srv.url)
	must(t, err)
	conf := srv.client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName, conf.NextProtos = u.Hostname(), []string{"http/1.1"}
	const many = 40
	conns := make([]*tls.Conn, many)
	for i := range conns {
		c, err := tls.Dial("tcp", u.Host, conf)
		must(t, err)
		defer c.Close()
		_, err = fmt.Fprintf(c, "GET /v1/devices HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: 1\r\n\r\n", u.Host, b.token)
		must(t, err)
		conns[i] = c
	}
	for limit := time.Now().Add(20 * time.Second); ; {
		ss, err := srv.admin.Sessions(t.Context(), "boss")
		must(t, err)
		if len(ss) == many {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%d of %d requests are listed", len(ss), many)
		}
	}
	must(t, b.edits(t.Context(), "boss")[0].revoke())
	for _, c := range conns {
		must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		if got, err := io.ReadAll(c); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q, %v", got, err)
		}
	}
}
