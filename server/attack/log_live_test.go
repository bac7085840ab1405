package attack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// The life of a device, as a reader of the audit log sees it.
func TestTheLogIsFollowed(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Audit.CheckpointEvery.Duration = 100 * time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got, opened := make(chan api.Entry, 1000), make(chan struct{})
	followed := make(chan error, 1)
	go func() {
		followed <- srv.admin.FollowLog(ctx, admin.LogQuery{Subject: "lamp-1"}, func() { close(opened) }, func(e api.Entry) error { got <- e; return nil })
	}()
	<-opened
	var seen []string
	until := func(kind string, is func(api.Entry) bool) api.Entry {
		t.Helper()
		for {
			select {
			case e := <-got:
				seen = append(seen, e.Kind)
				if e.Kind == kind && is(e) {
					return e
				}
			case err := <-followed:
				t.Fatalf("after %v the stream ended: %v", seen, err)
			}
		}
	}
	all := func(api.Entry) bool { return true }
	lamp := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a"})
	until(audit.DeviceCreate, all)
	e := until(audit.DeviceEnroll, all)
	sign, seal := lamp.Keys()
	if e.Data["sign"] != string(sign.ID()) || e.Data["seal"] != string(seal.ID()) || e.Data["sign_jwk"] != string(sign.JWK()) || e.Data["after"] != "active" {
		t.Errorf("%+v", e)
	}
	lamp.Handle("lamp.set", func(context.Context, *device.Command) (any, error) { return nil, nil })
	go func() { _ = lamp.Run(ctx) }() // until it is revoked
	open := until(audit.SessionOpen, all)
	if open.Data["transport"] != "mqtt" || open.Actor != "lamp-1" {
		t.Errorf("%+v", open)
	}
	const secret = "the-arguments-of-this-command"
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", Args: json.RawMessage(`{"word":"` + secret + `"}`), WaitReceipt: 30 * time.Second})
	must(t, err)
	order := until(audit.CommandOrder, all)
	until(audit.CommandHandOver, all)
	if s := until(audit.CommandSettle, all); s.Object != string(c.ID) || s.Seq != c.LogEntry {
		t.Errorf("%+v", s)
	}
	_, err = srv.admin.SetLabels(ctx, "lamp-1", watchword.Labels{"site": "b"}, 0)
	must(t, err)
	if l := until(audit.DeviceLabel, all); l.Data["before"] != "site=a" || l.Data["after"] != "site=b" {
		t.Errorf("%+v", l)
	}
	_, err = srv.admin.Revoke(ctx, "lamp-1", "lost")
	must(t, err)
	if r := until(audit.DeviceRevoke, all); r.Data["before"] != "active" || r.Data["reason"] != "lost" {
		t.Errorf("%+v", r)
	}
	until(audit.SessionClose, func(e api.Entry) bool {
		return e.Object == open.Object && e.Data["cause"] == string(watchword.SubjectRevoked)
	})
	es, err := srv.admin.FindEntries(ctx, admin.LogQuery{Cause: string(watchword.SubjectRevoked), Kind: audit.SessionClose}, 10)
	must(t, err)
	if len(es) != 1 || es[0].Object != open.Object {
		t.Errorf("by its cause: %+v", es)
	}

	// The arguments are not in the log, and an authorized reader can verify their hash.
	var export bytes.Buffer
	must(t, srv.admin.ExportLog(ctx, admin.LogQuery{}, &export))
	if strings.Contains(export.String(), secret) {
		t.Error("the log holds a command's arguments")
	}
	whole, err := srv.admin.Entry(ctx, order.Seq)
	must(t, err)
	sum := sha256.Sum256(append(whole.ArgsSalt, whole.Args...))
	if !strings.Contains(string(whole.Args), secret) || order.Data["args_hash"] != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Errorf("%s does not open %s", whole.Args, order.Data["args_hash"])
	}
	plain := sha256.Sum256(whole.Args)
	if order.Data["args_hash"] == base64.RawURLEncoding.EncodeToString(plain[:]) {
		t.Error("the hash of the arguments has no salt")
	}
	body := sha256.Sum256(append(slices.Clone(whole.Salt), whole.Body...))
	if !bytes.Equal(body[:], whole.Hash) {
		t.Error("salt and body are not what the log has")
	}
}

// Readers who may read the log but not the ordered arguments, and readers that lose the right during a stream.
func TestReadersOfTheLog(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Audit.CheckpointEvery.Duration = 100 * time.Millisecond })
	ctx := t.Context()
	srv.enroll("lamp-1", device.Options{}, nil)
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set"})
	must(t, err)
	_, err = srv.admin.ApplyPolicy(ctx, "auditors", []byte("name = \"auditors\"\nfor = { role = \"auditor\" }\n[[allow]]\nget = [\"/v1/audit\", \"/v1/audit/#\", \"/log/#\"]\n"), 0)
	must(t, err)
	auditor := srv.enroll("auditor", device.Options{}, watchword.Labels{"role": "auditor"})
	tok := srv.token(auditor)
	es, err := srv.admin.FindEntries(ctx, admin.LogQuery{Object: string(c.ID)}, 1)
	must(t, err)
	n := itoa(int(es[0].Seq))
	a := srv.request("GET", "/v1/audit/"+n, tok, "")
	if a.status != 200 || !strings.Contains(a.body, `"args_hash"`) || strings.Contains(a.body, `"args_salt"`) || strings.Contains(a.body, `"args":`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	for path, want := range map[string]int{
		"/v1/audit": 200, "/v1/audit/" + n + "/proof": 200, "/v1/audit/export": 200, "/log/checkpoint": 200, "/v1/audit/0": 400, "/v1/audit/x": 400, "/v1/audit/0/proof": 400,
		"/v1/audit?limit=1001": 400, "/v1/audit?order=up": 400, "/v1/audit?nothing=1": 400, "/v1/audit?limit=1&limit=2": 400, "/v1/audit?after=-1": 400, "/v1/audit/export?after=1": 400,
		"/v1/commands/" + string(c.ID) + "/evidence": 403, "/v1/audit?from=now": 400, "/v1/audit?kind=nothing": 400,
	} {
		if a := srv.request("GET", path, tok, ""); a.status != want {
			t.Errorf("%s: %d %s, want %d", path, a.status, a.body, want)
		}
	}
	// It reads, and its read is in the log; it loses the right, and the stream ends.
	follow := make(chan answer, 1)
	go func() { follow <- srv.request("GET", "/v1/audit", tok, "", "Accept: text/event-stream") }()
	for {
		es, err := srv.admin.FindEntries(ctx, admin.LogQuery{Subject: "auditor", Kind: audit.LogRead}, 100)
		must(t, err)
		if slices.ContainsFunc(es, func(e api.Entry) bool { return e.Data["what"] == "stream" }) {
			break
		}
	}
	must(t, srv.admin.DeletePolicy(ctx, "auditors"))
	if a := <-follow; !strings.Contains(a.body, "event: end") || !strings.Contains(a.body, string(watchword.Denied)) {
		t.Errorf("the stream went on: %s", a.body)
	}
}
