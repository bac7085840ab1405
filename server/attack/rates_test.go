package attack_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// static are the operations that neither sign, write nor log: they answer from memory.
var static = []string{"GET /v1/trust"}

// fillPath puts something into each parameter of a path of the description.
func fillPath(path string) string {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(path, "{")
		out.WriteString(before)
		if !ok {
			return out.String()
		}
		_, path, _ = strings.Cut(rest, "}")
		out.WriteString("1")
	}
}

// TestEveryOperationHasARateBySubject covers the OpenAPI document, so that new operations are tested too.
func TestEveryOperationHasARateBySubject(t *testing.T) {
	now := time.Now() // it does not advance: no account is refilled
	srv := serveAt(t, t.TempDir()+"/data", func() time.Time { return now }, func(c *server.Config) {
		c.Limits.RequestRate, c.Limits.TokenRate = 1, 50
	})
	srv.http = srv.client()
	greedy, other := srv.enroll("lamp-1", device.Options{}, nil), srv.enroll("lamp-2", device.Options{}, nil)
	tok, others := srv.token(greedy), srv.token(other)
	var doc struct {
		Paths map[string]map[string]struct {
			Security []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	must(t, json.Unmarshal([]byte(srv.request("GET", "/openapi.json", "", "").body), &doc))

	// One operation of each class, as often as it is free.
	const free = 10
	for _, op := range []string{
		"GET /v1/devices", "POST /v1/devices", "GET /v1/self", "POST /v1/self/events/lux", "POST /v1/self/receipts", "PUT /v1/self/state", "PUT /v1/self/functions",
	} {
		method, path, _ := strings.Cut(op, " ")
		for n := range free {
			if a := srv.request(method, path, tok, "{}"); a.status == 429 {
				t.Fatalf("%s: %s after %d requests, want it after %d", op, a.code, n, free)
			}
		}
	}
	limited := func(what string, a answer) {
		t.Helper()
		if a.status != 429 || a.code != watchword.RateLimited || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %q, Retry-After %q: %s", what, a.status, a.code, a.header.Get("Retry-After"), a.body)
		}
	}
	var open []string
	asked := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			method = strings.ToUpper(method)
			if op.Security == nil {
				open = append(open, method+" "+path)
				continue
			}
			asked++
			limited(method+" "+path, srv.request(method, fillPath(path), tok, "{}"))
		}
	}
	if asked < 50 || len(open) < 5 {
		t.Errorf("the description has %d operations with a token, %d without", asked, len(open))
	}
	limited("the log", srv.request("GET", "/log/checkpoint", tok, ""))
	limited("a tile", srv.request("GET", "/log/tile/0/000", tok, ""))
	limited("nowhere", srv.request("GET", "/v1/nowhere", tok, ""))
	form := "Content-Type: application/x-www-form-urlencoded"
	limited("introspection", srv.request("POST", "/oauth/introspect", tok, "token=x", form))
	limited("revocation", srv.request("POST", "/oauth/revoke", tok, "token=x", form))
	if a := srv.request("GET", "/v1/self", others, ""); a.status != 200 {
		t.Errorf("another subject: %d %s", a.status, a.body)
	}

	// What takes no token is counted by address.
	for range 2 * 50 {
		srv.request("POST", "/v1/time", "", `{}`)
	}
	for _, op := range open {
		if slices.Contains(static, op) {
			continue
		}
		method, path, _ := strings.Cut(op, " ")
		headers := []string{}
		if strings.HasPrefix(path, "/oauth/") {
			headers = append(headers, form)
		}
		limited(op, srv.request(method, path, "", "{}", headers...))
	}
}

func TestTokensHaveARateBySubject(t *testing.T) {
	now := time.Now()
	srv := serveAt(t, t.TempDir()+"/data", func() time.Time { return now }, func(c *server.Config) { c.Limits.IssueRate = 1 })
	srv.http = srv.client()
	d, other := srv.enroll("lamp-1", device.Options{}, nil), srv.enroll("lamp-2", device.Options{}, nil)
	assertion := func(d *device.Device) string { return mustValue(d.Assertion(time.Minute))(t) }
	const free = 10
	for n := range free {
		var err error
		if n%2 == 0 { // both endpoints, one account
			if a := srv.exchangeAssertion(assertion(d)); a.status != 200 {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
		} else {
			_, err = dialPaho(t, d, "lamp-1", assertion(d))
		}
		if err != nil {
			t.Fatalf("token %d: %v", n+1, err)
		}
	}
	if a := srv.exchangeAssertion(assertion(d)); a.status != 429 || a.oauth != "temporarily_unavailable" || a.code != watchword.RateLimited || a.header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %s", a.status, a.body)
	}
	if w, err := dialPaho(t, d, "lamp-1", assertion(d)); err == nil || w.ack == nil || w.ack.ReasonCode != 0x9F {
		t.Errorf("one more over MQTT: %v, %+v", err, w.ack)
	}
	if a := srv.exchangeAssertion(assertion(other)); a.status != 200 {
		t.Errorf("another subject: %d %s", a.status, a.body)
	}
	for range 10 * free { // for anything else
		if a := srv.request("POST", "/oauth/revoke", "", assertionForm(assertion(d)).Encode()+"&token=x", "Content-Type: application/x-www-form-urlencoded"); a.status != 200 {
			t.Fatalf("revocation: %d %s", a.status, a.body)
		}
	}
	if a := srv.request("POST", "/oauth/revoke", "", assertionForm(assertion(d)).Encode()+"&token=x", "Content-Type: application/x-www-form-urlencoded"); a.status != 429 {
		t.Errorf("one revocation more: %d %s", a.status, a.body)
	}
}
