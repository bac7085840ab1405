package attack_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

const formType = "Content-Type: application/x-www-form-urlencoded"

// narrowed is a token of a subject with this scope.
func (srv *testServer) narrowed(by *jose.Signer, id watchword.SubjectID, scope string) string {
	srv.t.Helper()
	raw, err := token.SignAssertion(by, id, srv.admin.Issuer(), time.Now(), time.Minute)
	must(srv.t, err)
	form := assertionForm(raw)
	if scope != "" {
		form.Set("scope", scope)
	}
	a := srv.request("POST", "/oauth/token", "", form.Encode(), formType)
	if a.status != 200 {
		srv.t.Fatalf("no token for %q: %d %s", scope, a.status, a.body)
	}
	return a.member(srv.t, "access_token")
}

// operatorSigner returns the key of the first operator, who may do everything.
func (srv *testServer) operatorSigner() *jose.Signer {
	srv.t.Helper()
	k, err := jose.ParsePrivateJWK(mustValue(os.ReadFile(filepath.Join(srv.dir, "operator.jwk")))(srv.t), jose.ForSigning)
	must(srv.t, err)
	s, err := k.Signer()
	must(srv.t, err)
	return s
}

// TestNarrowedTokenAllowsItsEndpointOnly covers the OpenAPI document: with a token of the owner that names one path no
// other operation is allowed, not even on commands that the owner itself ordered.
func TestNarrowedTokenAllowsItsEndpointOnly(t *testing.T) {
	srv := serve(t, nil)
	srv.http = srv.client()
	srv.enroll("lamp-1", device.Options{}, nil)
	sent, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", TTL: time.Hour})
	must(t, err)
	narrow := srv.narrowed(srv.operatorSigner(), srv.admin.Subject(), "get:api:/v1/self")
	var doc struct {
		Paths map[string]map[string]struct {
			Security []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	must(t, json.Unmarshal([]byte(srv.request("GET", "/openapi.json", "", "").body), &doc))
	asked := 0
	try := func(method, path, body string, headers ...string) {
		t.Helper()
		asked++
		a := srv.request(method, path, narrow, body, headers...)
		if want := map[bool]int{true: 200, false: 403}[method+path == "GET/v1/self"]; a.status != want {
			t.Errorf("%s %s: %d %s, want %d", method, path, a.status, a.body, want)
		}
	}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if op.Security == nil {
				continue // no token, or not one alone: below
			}
			at := fillPath(path)
			if strings.HasPrefix(path, "/v1/commands/{id}") {
				at = strings.Replace(path, "{id}", string(sent.ID), 1) // its own
			}
			body := ""
			if method != "get" {
				body = `{"device":"lamp-1","function":"lamp.set"}` // the body of the only operation that any token may call
			}
			try(strings.ToUpper(method), at, body)
		}
	}
	if asked < 50 {
		t.Errorf("the description has %d operations with a token", asked)
	}
	try("GET", "/v1/commands/"+string(sent.ID)+"?wait=1s", "")
	try("GET", "/log/checkpoint", "")
	try("POST", "/oauth/introspect", "token=x", formType)
	try("POST", "/oauth/revoke", url.Values{"token": {srv.narrowed(srv.operatorSigner(), srv.admin.Subject(), "")}}.Encode(), formType)
	if c, err := srv.admin.Command(t.Context(), sent.ID, 0); err != nil || c.State != watchword.Queued {
		t.Errorf("the command is %v, %v", c.State, err)
	}
}

// TestNarrowedTokenMatchesItsScope tests the table of docs/protocol.md, §2, row by row: each operation of a subject, with a
// token that lacks the permission, and with one that has it.
func TestNarrowedTokenMatchesItsScope(t *testing.T) {
	srv := serve(t, nil)
	srv.http = srv.client()
	_, err := srv.admin.ApplyPolicy(t.Context(), "narrow", []byte(`for = { kind = "narrow" }
[[allow]]
publish = ["plant/#"]
subscribe = ["plant/#"]
call = ["lamp.*"]
`), 0)
	must(t, err)
	d := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"kind": "narrow"})
	srv.enroll("lamp-2", device.Options{}, nil)
	key := deviceSigner(t, d)
	scoped := func(scope string) string { return srv.narrowed(key, "lamp-1", scope) }
	whole := scoped("")

	// An existing session: a connection with subscriptions.
	standing, err := dialPaho(t, d, "lamp-1", whole)
	must(t, err)
	standing.subscribe(t, "plant/held", "devices/lamp-1/commands", "$watchword/auth")
	order := func() string {
		t.Helper()
		a := srv.request("POST", "/v1/commands", whole, `{"device":"lamp-2","function":"lamp.set","args":{"level":1}}`)
		if a.status != 201 {
			t.Fatalf("no command: %d %s", a.status, a.body)
		}
		return a.member(t, "id")
	}
	own := order()

	ask := func(method, path, body string, headers ...string) func(tok string) watchword.Code {
		return func(tok string) watchword.Code {
			a := srv.request(method, path, tok, body, headers...)
			if a.status < 300 {
				return accepted
			}
			return a.code
		}
	}
	connect := func(id string, p paho.Connect, then func(c *paho.Client) (byte, error)) func(tok string) watchword.Code {
		return func(tok string) watchword.Code {
			nc, err := tls.Dial("tcp", d.MQTT(), anchored(t, d))
			must(t, err)
			c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc)})
			p.ClientID, p.KeepAlive, p.Username, p.UsernameFlag, p.Password, p.PasswordFlag = id, 30, "jwt", true, []byte(tok), true
			ack, err := c.Connect(t.Context(), &p)
			if ack == nil {
				t.Fatalf("no CONNACK: %v", err)
			}
			defer func() { _ = nc.Close() }()
			if ack.ReasonCode != 0 {
				return codeIn(ack.Properties.ReasonString)
			}
			if then == nil {
				_ = c.Disconnect(&paho.Disconnect{}) // the end of it
				return accepted
			}
			if code, err := then(c); code >= 0x80 {
				return map[bool]watchword.Code{true: watchword.Denied, false: watchword.Internal}[code == 0x87]
			} else if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			_ = c.Disconnect(&paho.Disconnect{}) // the end of it
			return accepted
		}
	}
	subscribe := func(filter string) func(c *paho.Client) (byte, error) {
		return func(c *paho.Client) (byte, error) {
			ack, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
			if ack == nil || len(ack.Reasons) != 1 {
				return 0, fmt.Errorf("SUBACK %+v: %w", ack, err)
			}
			return ack.Reasons[0], nil
		}
	}
	publish := func(topic, payload string, retain bool) func(c *paho.Client) (byte, error) {
		return func(c *paho.Client) (byte, error) {
			ack, err := c.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Retain: retain, Payload: []byte(payload)})
			if ack == nil {
				return 0, fmt.Errorf("no PUBACK: %w", err)
			}
			return ack.ReasonCode, nil
		}
	}
	will := paho.Connect{CleanStart: true, WillMessage: &paho.WillMessage{Topic: "plant/will"}}
	clean := paho.Connect{CleanStart: true}
	refresh := func(tok string) watchword.Code {
		ack, err := standing.client.Publish(t.Context(), &paho.Publish{Topic: "$watchword/auth", QoS: 1, Payload: []byte(tok)})
		if ack == nil {
			t.Fatalf("no PUBACK: %v", err)
		}
		if ack.ReasonCode == 0x87 {
			return watchword.Denied
		}
		return accepted
	}
	putSession := func(tok string) watchword.Code {
		return ask("PUT", "/v1/self/sessions/"+standing.ack.Properties.User.Get("session"), "")(tok)
	}
	revoke := func(other func() string) func(tok string) watchword.Code {
		return func(tok string) watchword.Code {
			return ask("POST", "/oauth/revoke", url.Values{"token": {other()}}.Encode(), formType)(tok)
		}
	}
	introspect := func(tok string) watchword.Code {
		return ask("POST", "/oauth/introspect", "token=x", formType)(tok)
	}
	const (
		aTopic = "pub:topic:plant/x"
		holds  = "sub:topic:plant/# sub:topic:devices/lamp-1/commands"
	)
	for _, row := range []struct {
		name     string
		less     string // a scope that does not state the right
		enough   string // a sufficient scope; "" for none: policy grants it to no subject here
		act      func(tok string) watchword.Code
		withLess watchword.Code
	}{
		{"a new MQTT session", "get,put:api:/v1/self/#", aTopic, connect("lamp-1/new", clean, nil), ""},
		{"a new MQTT session, with a function alone", "call:fn:lamp-2/lamp.set", "sub:topic:plant/x", connect("lamp-1/new", clean, nil), ""},
		{"a will", aTopic, "pub:topic:plant/will", connect("lamp-1/new", will, nil), ""},
		{"a subscription", aTopic, "sub:topic:plant/#", connect("lamp-1/new", clean, subscribe("plant/+")), ""},
		{"a shared subscription", aTopic, "sub:topic:plant/#", connect("lamp-1/new", clean, subscribe("$share/g/plant/+")), ""},
		{"retained messages", aTopic, "pub:topic:plant/kept", connect("lamp-1/new", clean, publish("plant/kept", "x", true)), ""},
		{"commands over MQTT", aTopic, "sub:topic:devices/lamp-1/commands", connect("lamp-1/new", clean, subscribe("devices/lamp-1/commands")), ""},
		{"the configuration over MQTT", aTopic, "sub:topic:devices/lamp-1/config", connect("lamp-1/new", clean, subscribe("devices/lamp-1/config")), ""},
		{"the reported state over MQTT", aTopic, "sub:topic:devices/lamp-1/state", connect("lamp-1/new", clean, subscribe("devices/lamp-1/state")), ""},
		{"reporting state over MQTT", aTopic, "pub:topic:devices/lamp-1/state", connect("lamp-1/new", clean, publish("devices/lamp-1/state", "{}", false)), ""},
		{"events over MQTT", aTopic, "pub:topic:devices/lamp-1/events/#", connect("lamp-1/new", clean, publish("devices/lamp-1/events/lux", "1", false)), ""},
		{"a refresh over MQTT", aTopic, "", refresh, ""},
		{"a refresh over MQTT, with a path alone", "get,put:api:/v1/self/#", holds, refresh, ""},
		{"a refresh over HTTP", holds, holds + " put:api:/v1/self/sessions/#", putSession, ""},
		{"a refresh over HTTP of what it does not cover", "put:api:/v1/self/sessions/#", "", putSession, ""},
		{"who am I", aTopic, "get:api:/v1/self", ask("GET", "/v1/self", ""), ""},
		{"the list of its sessions", "get:api:/v1/self", "get:api:/v1/self/sessions", ask("GET", "/v1/self/sessions", ""), ""},
		{"commands over HTTP", "get:api:/v1/self/commands", "get:api:/v1/self/commands sub:topic:devices/lamp-1/commands", ask("GET", "/v1/self/commands", ""), ""},
		{"the configuration over HTTP", "get:api:/v1/self/config", "", ask("GET", "/v1/self/config", ""), ""},
		{"the reported state over HTTP", "get:api:/v1/self", "get:api:/v1/self/state", ask("GET", "/v1/self/state", ""), ""},
		{"reporting state over HTTP", "put:api:/v1/self/state", "put:api:/v1/self/state pub:topic:devices/lamp-1/state", ask("PUT", "/v1/self/state", "{}"), ""},
		{"events over HTTP", "post:api:/v1/self/events/#", "post:api:/v1/self/events/# pub:topic:devices/lamp-1/events/#", ask("POST", "/v1/self/events/lux", "1"), ""},
		{"announcing functions", "get:api:/v1/self/functions", "put:api:/v1/self/functions", ask("PUT", "/v1/self/functions", `{"functions":[]}`), ""},
		{"changing its keys", "get:api:/v1/self/#", "", ask("POST", "/v1/self/keys", "{}"), ""},
		{"receipts", "post:api:/v1/self/receipts", "", ask("POST", "/v1/self/receipts", `{"receipt":"x"}`), ""},
		{"ordering a command", "get:api:/v1/self", "call:fn:lamp-2/lamp.*", ask("POST", "/v1/commands", `{"device":"lamp-2","function":"lamp.set"}`), ""},
		{"a command of its own", "get:api:/v1/self/#", "call:fn:lamp-2/lamp.set", ask("GET", "/v1/commands/"+own, ""), ""},
		{"a command of its own, by another function", "call:fn:lamp-2/lamp.get", "call:fn:*/lamp.set", ask("GET", "/v1/commands/"+own, ""), ""},
		{"a command of its own, on another device", "call:fn:lamp-1/lamp.set", "call:fn:lamp-2/lamp.*", ask("GET", "/v1/commands/"+own+"?wait=1s", ""), ""},
		{"evidence of its own command", "get:api:/v1/self/#", "", ask("GET", "/v1/commands/"+own+"/evidence", ""), ""},
		{"cancelling a command of its own", "get:api:/v1/self/#", "call:fn:lamp-2/lamp.set", func(tok string) watchword.Code {
			return ask("POST", "/v1/commands/"+order()+"/cancel", "")(tok)
		}, ""},
		{"revoking another token of its own", aTopic, "pub:topic:plant/#", revoke(func() string { return scoped("pub:topic:plant/y") }), ""},
		{"revoking a whole token of its own", aTopic, "", revoke(func() string { return scoped("") }), ""},
		{"introspection", aTopic, "", introspect, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := row.act(scoped(row.less)); got != watchword.Denied {
				t.Errorf("with %q: %q, want denied", row.less, got)
			}
			if row.enough == "" {
				return
			}
			if got := row.act(scoped(row.enough)); got != accepted && !(got == watchword.NotFound && strings.HasPrefix(row.name, "the reported state")) {
				t.Errorf("with %q: %q, want it taken", row.enough, got)
			}
		})
	}

	// A token ends itself, and a whole one any other.
	for name, pair := range map[string][2]string{"itself": {aTopic, ""}, "a whole one": {"", aTopic}} {
		tok := scoped(pair[0])
		other := tok
		if name != "itself" {
			other = scoped(pair[1])
		}
		if got := revoke(func() string { return other })(tok); got != accepted {
			t.Errorf("revoking, %s: %q", name, got)
		}
		if a := srv.request("GET", "/v1/self", other, ""); a.code != watchword.TokenRevoked {
			t.Errorf("revoking, %s: it goes on: %d %s", name, a.status, a.body)
		}
	}

	// hello says nothing by itself: without the right to its commands none is acknowledged.
	mine, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", TTL: time.Hour})
	must(t, err)
	handed := func(c api.Command) {
		t.Helper()
		for end := time.After(10 * time.Second); ; {
			select {
			case p := <-standing.got:
				if p.Topic == "devices/lamp-1/commands" {
					return
				}
			case <-end:
				t.Fatalf("the command %s did not come to the connection that stands", c.ID)
			}
		}
	}
	handed(mine)
	hello := publish("$watchword/hello", fmt.Sprintf(`{"nonce":"","epoch":%d,"seq":%d}`, mine.Epoch, mine.Seq+100), false)
	if got := connect("lamp-1/hello", clean, hello)(scoped(aTopic)); got != accepted {
		t.Errorf("hello: %q", got)
	}
	next, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", TTL: time.Hour})
	must(t, err)
	handed(next)
	// And all the while the session stood.
	for _, c := range []paho.Connect{clean, {CleanStart: false}} {
		if got := connect("lamp-1", c, nil)(scoped(aTopic)); got != watchword.Denied {
			t.Errorf("taking over with clean start %v: %q, want denied", c.CleanStart, got)
		}
	}
	if a := srv.request("GET", "/v1/self/sessions", whole, ""); !strings.Contains(a.body, standing.ack.Properties.User.Get("session")) {
		t.Errorf("the session that stood is gone: %s", a.body)
	}
	if got := connect("lamp-1", clean, nil)(scoped(holds + " " + aTopic)); got != accepted {
		t.Errorf("taking over with what it holds: %q", got)
	}
}

// A live stream is refreshed only by a token that allows it too, and continues.
func TestNarrowedTokenDoesNotRefreshStream(t *testing.T) {
	srv := serve(t, nil)
	srv.http = srv.client()
	d := srv.enroll("lamp-1", device.Options{}, nil)
	key := deviceSigner(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", srv.url+"/v1/self/commands", http.NoBody)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+srv.narrowed(key, "lamp-1", ""))
	req.Header.Set("Accept", "text/event-stream")
	res, err := srv.client().Do(req)
	must(t, err)
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	next := func(prefix string) string {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return data
			}
		}
		t.Fatalf("the stream ended before %q: %v", prefix, lines.Err())
		return ""
	}
	var session struct {
		Session string `json:"session"`
	}
	must(t, json.Unmarshal([]byte(next("data: ")), &session))
	path := "/v1/self/sessions/" + session.Session
	for scope, want := range map[string]int{
		"put:api:/v1/self/sessions/#":                                                             403,
		"put:api:/v1/self/sessions/# get:api:/v1/self/commands":                                   403,
		"put:api:/v1/self/sessions/# get:api:/v1/self/commands sub:topic:devices/lamp-1/commands": 200,
		"get:api:/v1/self/# sub:topic:devices/lamp-1/commands":                                    403,
	} {
		if a := srv.request("PUT", path, srv.narrowed(key, "lamp-1", scope), ""); a.status != want {
			t.Errorf("%q: %d %s, want %d", scope, a.status, a.body, want)
		}
	}
	_, err = srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", TTL: time.Hour})
	must(t, err)
	next("event: command")
}
