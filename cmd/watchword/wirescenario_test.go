package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// wireTrace is the record of the scenario from the build of commit 4baa8bc, before the packages were rearranged and their
// names replaced. It is never recorded again: the wire protocol stays the same, except for the words in wireRenames.
const wireTrace = "testdata/wire-trace.txt"

// wireRename is a word of the wire that was replaced since the record was made: a JSON member
// with its quotes and colon, a word in a value, a kind of log entry. It replaces every occurrence
// of old in the record.
type wireRename struct{ old, new string }

// wireRenames lists them all. Each row must occur in the record, and its words, without quotes
// and colons, in CHANGELOG.md under "Renamed". To rename a member, add a row here and there;
// never make the record again.
var wireRenames = []wireRename{
	{`"away":`, `"offline":`},
	{`"left_at":`, `"disconnected_at":`},
	{`"ends_at":"TIME","mqtt":`, `"expires_at":"TIME","mqtt":`}, // of offline sessions; keys have an ends_at too
	{`"wish":`, `"requested_id":`},
	{`urn:watchword:error:`, `https://github.com/watchword-iot/watchword/blob/main/docs/errors.md#`},
	{`"given":`, `"deliverable":`},
	{`,"labels":{"role":"owner"}`, ``}, // a role is a field of the subject
	{`"labels":"role=owner"`, `"labels":"","role":"owner"`},
	{`"bundle":{"ver":1`, `"bundle":{"epoch":1,"ver":1`},                                                    // the version of a bundle is the pair
	{`0x8C {reason-string="TEXT"`, `0x8C {reason-string="denied: TEXT"`},                                    // protocol errors begin with their code too
	{`"iss":"operator","jti":"jti-50"}`, `"iss":"operator","jti":"jti-50","server":"https://hub.example"}`}, // an order names its server
	{`"iss":"operator","jti":"jti-52"}`, `"iss":"operator","jti":"jti-52","server":"https://hub.example"}`},
	{`{reason-string="TEXT"`, `{reason-string="bad_request: TEXT"`},
}

var memoryForm = regexp.MustCompile(`"memory":[0-9]+`)

// One scenario over both endpoints is, decoded, what it was: methods, paths, statuses, headers,
// JSON members with their values and their order, packets with flags, codes and properties.
func TestWireTraceIsUnchanged(t *testing.T) {
	s := &scenario{hub: newHub(t)}
	for _, part := range []struct {
		name string
		run  func()
	}{
		{"discovery", s.discovery},
		{"enrollment", s.enrollment},
		{"tokens", s.tokens},
		{"dpop", s.proofs},
		{"problem documents", s.problems},
		{"connect", s.connecting},
		{"publish and subscribe", s.messages},
		{"retained messages and wills", s.retained},
		{"persistent sessions", s.persistent},
		{"events", s.events},
		{"twin", s.twin},
		{"commands over MQTT", s.commandsMQTT},
		{"commands over HTTP", s.commandsHTTP},
		{"policies", s.policies},
		{"revocation of tokens", s.revocation},
		{"suspension", s.suspension},
		{"pairing", s.pairing},
		{"change of keys", s.rekey},
		{"server keys", s.serverKeys},
		{"end of a device", s.end},
		{"log", s.log},
	} {
		s.section(part.name)
		part.run()
	}
	got := s.out.String()
	if path := os.Getenv("WATCHWORD_WIRE_TRACE"); path != "" { // to look at, or to compare by hand
		s.must(os.WriteFile(path, []byte(got), 0o600))
	}
	want := string(s.read(wireTrace))
	changelog := string(s.read("../../CHANGELOG.md"))
	for _, r := range wireRenames {
		if !strings.Contains(want, r.old) {
			t.Errorf("%s is not in %s", r.old, wireTrace)
		}
		for _, state := range []string{r.old, r.new} {
			word, _, _ := strings.Cut(strings.TrimLeft(state, `"`), `"`)
			if !strings.Contains(changelog, word) {
				t.Errorf("%s is not in CHANGELOG.md", state)
			}
		}
		want = strings.ReplaceAll(want, r.old, r.new)
	}
	// What a session or message takes in memory is an estimate of each build.
	got, want = memoryForm.ReplaceAllString(got, `"memory":N`), memoryForm.ReplaceAllString(want, `"memory":N`)
	if d := firstDifference(got, want); d != "" {
		t.Error(d)
	}
}

// firstDifference says where two records part, with the lines around; empty where they are equal.
func firstDifference(got, want string) string {
	if got == want {
		return ""
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	i := 0
	for i < len(g) && i < len(w) && g[i] == w[i] {
		i++
	}
	around := func(lines []string) string {
		return strings.Join(lines[min(i, len(lines)):min(i+4, len(lines))], "\n")
	}
	return fmt.Sprintf("the record parts at line %d, after\n%s\n\ngot\n%s\n\nwant\n%s", i+1, strings.Join(g[max(0, i-6):i], "\n"), around(g), around(w))
}

// scenario is the subjects of the record.
type scenario struct {
	*hub
	one, two, three *wireActor
	sensor          *wireActor
}

func (s *scenario) discovery() {
	for _, path := range []string{"/healthz", "/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource", "/.well-known/jwks.json", "/v1/trust"} {
		s.do(nil, "GET", path, "")
	}
	s.do(nil, "POST", "/v1/time", `{"nonce":"`+strings.Repeat("n", 22)+`"}`)
	res := s.open(s.t.Context(), nil, "GET", "/openapi.json", "")
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close() // read
	s.must(err)
	s.paths(b)
}

// addedPaths are the prefixes of paths that the API had not when the record was made.
var addedPaths = []string{"/v1/operators", "/v1/services", "/v1/logins", "/v1/self/keys/", "/v1/self/link", "/v1/notices", "/v1/self/trust", "/v1/policies/diff", "/v1/address", "/v1/totals", "/v1/labels"}

// addedOperations are the operations on other paths that the API had not when the record was made.
var addedOperations = []string{"GET /v1/self/keys", "PUT /v1/devices/{id}/name", "POST /v1/devices/{id}/forget"}

// paths lists the operations of the API's description that the record has.
func (s *scenario) paths(b []byte) {
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	s.must(json.Unmarshal(b, &doc))
	var all []string
	for path, methods := range doc.Paths {
		if slices.ContainsFunc(addedPaths, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
			continue
		}
		for method := range methods {
			if op := strings.ToUpper(method) + " " + path; !slices.Contains(addedOperations, op) {
				all = append(all, op)
			}
		}
	}
	slices.Sort(all)
	s.printf("%s", strings.Join(all, "\n"))
}

// enroll makes a device with one-time code and keys.
func (s *scenario) enroll(id, labels string) *wireActor {
	code := s.do(s.operator, "POST", "/v1/devices", `{"id":"`+id+`","labels":`+labels+`}`).member("enrollment.code")
	a := s.newActor(id)
	s.do(nil, "POST", "/v1/enroll", s.enrollBody(a, code))
	return a
}

func (s *scenario) enrollBody(a *wireActor, code string) string {
	return fmt.Sprintf(`{"code":%q,"keys":{"sign":%s,"seal":%s},"proof":%q}`, code, a.sign.Public().JWK(), a.seal.Public().JWK(), s.enrollmentProof(a, code))
}

const tracedPolicy = `for = { kind = "lamp" }

[[allow]]
publish = ["sites/+/#"]
subscribe = ["sites/+/#", "devices/+/events/#"]

[[allow]]
call = ["lamp.set"]
on   = { kind = "lamp" }
args = { level = { maximum = 80 } }
`

func (s *scenario) enrollment() {
	s.authenticate(s.operator)
	s.do(s.operator, "PUT", "/v1/policies/lamps", tracedPolicy, "Content-Type", "application/toml", "If-None-Match", "*")
	s.one = s.enroll("lamp-1", `{"kind":"lamp","site":"a"}`)
	s.two = s.enroll("lamp-2", `{"kind":"lamp","site":"b"}`)
	s.three = s.enroll("lamp-3", `{"kind":"lamp"}`)
	s.sensor = s.enroll("sensor-1", `{"kind":"sensor"}`)

	body := `{"id":"lamp-4","labels":{"kind":"lamp"},"ttl":"1h"}`
	s.do(s.operator, "POST", "/v1/devices", body, "Idempotency-Key", "one")
	s.do(s.operator, "POST", "/v1/devices", body, "Idempotency-Key", "one")
	s.do(s.operator, "POST", "/v1/devices", body)
	code := s.do(s.operator, "POST", "/v1/devices/lamp-4/link", `{"ttl":"2h"}`).member("code")
	s.do(s.operator, "POST", "/v1/devices/lamp-1/link", `{}`)
	four := s.newActor("lamp-4")
	s.do(nil, "POST", "/v1/enroll", s.enrollBody(four, strings.Repeat("A", 22)))
	s.do(nil, "POST", "/v1/enroll", strings.Replace(s.enrollBody(four, code), `"code":"`+code, `"code":"`+code[:21]+"-", 1))
	other := s.newActor("lamp-4")
	crossed := *four
	crossed.sign = other.sign
	s.do(nil, "POST", "/v1/enroll", fmt.Sprintf(`{"code":%q,"keys":{"sign":%s,"seal":%s},"proof":%q}`, code, four.sign.Public().JWK(), four.seal.Public().JWK(), s.enrollmentProof(&crossed, code)))
	b := s.enrollBody(four, code)
	s.do(nil, "POST", "/v1/enroll", b)
	s.do(nil, "POST", "/v1/enroll", s.enrollBody(four, code))  // the same keys: the same answer
	s.do(nil, "POST", "/v1/enroll", s.enrollBody(other, code)) // other keys
	s.do(s.operator, "GET", "/v1/devices?page_size=2", "")
	s.do(s.operator, "GET", "/v1/devices?label=kind%3Dsensor&state=active", "")
	s.do(s.operator, "GET", "/v1/devices/lamp-1", "")
	s.do(s.operator, "PUT", "/v1/devices/lamp-4/labels", `{"labels":{"kind":"lamp","site":"c"}}`, "If-Match", `"99"`)
	s.do(s.operator, "PUT", "/v1/devices/lamp-4/labels", `{"labels":{"kind":"lamp","site":"c"}}`)
	s.do(s.operator, "DELETE", "/v1/devices/lamp-4", "")
	s.do(s.operator, "GET", "/v1/devices/lamp-4", "")
	s.do(s.operator, "POST", "/v1/devices", `{"id":"lamp-4"}`)
}

func (s *scenario) tokens() {
	for _, a := range []*wireActor{s.one, s.two, s.three, s.sensor} {
		s.authenticate(a)
	}
	s.do(s.one, "GET", "/v1/self", "")
	narrow := *s.one
	s.authenticate(&narrow, "scope", "pub:topic:devices/lamp-1/events/# get:api:/v1/self")
	s.do(&narrow, "GET", "/v1/self", "")
	s.do(&narrow, "GET", "/v1/self/config", "")
	s.authenticate(&narrow, "scope", "pub:topic:somewhere/#")
	s.authenticate(&narrow, "resource", "https://other.example/api")
	s.do(&narrow, "GET", "/v1/self", "")
	s.authenticate(&narrow, "resource", "not a URI")
	s.authenticate(&narrow, "client_id", "lamp-2")
	s.post(nil, "/oauth/token", nil, "grant_type", "password")
	s.post(nil, "/oauth/token", nil)
	again := s.assertion(s.one)
	form := []string{"grant_type", "client_credentials", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion"}
	s.post(nil, "/oauth/token", nil, append(form, again)...)
	s.post(nil, "/oauth/token", nil, append(form, again)...)
	for _, change := range []func(map[string]any){
		func(c map[string]any) { c["aud"] = "https://other.example" },
		func(c map[string]any) { c["exp"] = c["iat"].(int64) + 3600 },
		func(c map[string]any) { c["iat"], c["exp"] = c["iat"].(int64)-7200, c["exp"].(int64)-7200 },
		func(c map[string]any) { c["sub"] = "ghost" },
	} {
		c := s.claims(60, map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": hubURL})
		change(c)
		s.post(nil, "/oauth/token", nil, append(form, s.signed(s.one.sign, "client-authentication+jwt", c))...)
	}
	s.post(nil, "/oauth/token", nil, append(form, s.signed(s.two.sign, "client-authentication+jwt", s.claims(60, map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": hubURL})))...)

	s.post(s.operator, "/oauth/introspect", nil, "token", s.one.token)
	s.post(s.operator, "/oauth/introspect", nil, "token", "nonsense")
	s.post(s.one, "/oauth/introspect", nil, "token", s.two.token)
	s.post(nil, "/oauth/introspect", nil, "token", s.one.token)
	s.post(s.operator, "/oauth/introspect", nil)
	spent := *s.one
	s.authenticate(&spent)
	s.post(s.two, "/oauth/revoke", nil, "token", spent.token)
	s.do(&spent, "GET", "/v1/self/sessions", "")
	s.post(s.one, "/oauth/revoke", nil, "token", spent.token)
	s.do(&spent, "GET", "/v1/self/sessions", "")
	s.post(s.operator, "/oauth/introspect", nil, "token", spent.token)
	s.authenticate(&spent)
	s.post(nil, "/oauth/revoke", nil, "token", spent.token, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", s.assertion(s.one))
	s.do(&spent, "GET", "/v1/self/sessions", "")
}

func (s *scenario) proofs() {
	grant := func() []string {
		return []string{"grant_type", "client_credentials", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", s.assertion(s.three)}
	}
	s.post(nil, "/oauth/token", []string{"DPoP", s.dpop(s.three.sign, "POST", "/oauth/token", "")}, grant()...)
	proof := s.dpop(s.three.sign, "POST", "/oauth/token", "")
	bound := s.post(nil, "/oauth/token", []string{"DPoP", proof}, grant()...).member("access_token")
	s.post(nil, "/oauth/token", []string{"DPoP", proof}, grant()...) // used before
	get := func(method, path, access string) {
		s.do(nil, "GET", "/v1/self", "", "Authorization", "DPoP "+bound, "DPoP", s.dpop(s.three.sign, method, path, access))
	}
	get("GET", "/v1/self", bound)
	get("PUT", "/v1/self", bound)
	get("GET", "/v1/self", s.three.token)
	s.do(nil, "GET", "/v1/self", "", "Authorization", "DPoP "+bound)
	s.do(nil, "GET", "/v1/self", "", "Authorization", "Bearer "+bound)
	s.do(nil, "GET", "/v1/self", "", "Authorization", "DPoP "+s.three.token, "DPoP", s.dpop(s.three.sign, "GET", "/v1/self", s.three.token))
	s.do(s.operator, "PUT", "/v1/devices/lamp-3/proof", `{"proof":"required"}`)
	s.do(s.three, "GET", "/v1/self", "")
	s.authenticate(s.three)
	s.connect(packet.V5, s.three, "", nil)
	s.do(s.operator, "POST", "/v1/explain", `{"subject":"lamp-3","action":"pub","resource":"topic:sites/a/x"}`)
	s.do(s.operator, "PUT", "/v1/devices/lamp-3/proof", `{"proof":"maybe"}`)
	s.do(s.operator, "PUT", "/v1/devices/lamp-3/proof", `{"proof":""}`)
	s.authenticate(s.three)
}

func (s *scenario) problems() {
	s.do(nil, "GET", "/v1/self", "")
	s.do(nil, "GET", "/v1/self", "", "Authorization", "Bearer nonsense")
	s.do(nil, "GET", "/v1/self", "", "Authorization", "Basic bGFtcDp4")
	s.do(nil, "GET", "/v1/self", "", "Authorization", "Bearer "+s.assertion(s.one))
	s.do(nil, "GET", "/v1/self", "", "Authorization", "Bearer "+s.one.token[:len(s.one.token)-12]+"AAAAAAAAAAAA")
	s.do(s.one, "GET", "/v1/devices", "")
	s.do(s.one, "GET", "/nowhere", "")
	s.do(s.operator, "GET", "/v1/devices/ghost", "")
	s.do(s.operator, "PATCH", "/v1/devices", "")
	s.do(s.operator, "POST", "/v1/devices", `{"id":"a b"}`)
	s.do(s.operator, "POST", "/v1/devices", `{"id":"x","id":"y"}`)
	s.do(s.operator, "POST", "/v1/devices", `{"id":"x","more":1}`)
	s.do(s.operator, "POST", "/v1/devices", `{"id":7}`)
	s.do(s.operator, "POST", "/v1/devices", `{"id":`)
	s.do(s.operator, "POST", "/v1/devices", `{}`, "Content-Type", "text/csv")
	s.do(s.operator, "GET", "/v1/devices?page_size=0", "")
	s.do(s.operator, "GET", "/v1/devices?page_token=nonsense", "")
	s.do(s.operator, "GET", "/v1/devices?unknown=1", "")
	s.do(s.operator, "PUT", "/v1/devices/lamp-1/config", `{"a":"`+strings.Repeat("x", 40_000)+`"}`)
	s.do(s.operator, "GET", "/v1/commands/cmd_00000000000000000000000000", "")
}

// wantEnd reads the end of a connection.
func (c *wireConn) wantEnd() {
	c.h.t.Helper()
	if p := c.get(1); p != nil {
		c.h.t.Fatalf("%s goes on", c.name)
	}
}

func (s *scenario) connecting() {
	c := s.connect(packet.V5, s.one, "", func(p *packet.Connect) {
		p.KeepAlive = 0
		p.Properties.SetNumber(packet.SessionExpiryInterval, 100_000_000)
	})
	c.ping()
	c.bye()
	s.connect(packet.V5, s.one, "/a", nil).bye()
	s.connect(packet.V311, s.one, "/a", nil).bye()
	s.connect(packet.V5, s.one, "", func(p *packet.Connect) { p.ClientID = "" }).bye()
	s.connect(packet.V5, s.one, "/b", func(p *packet.Connect) { p.Password = []byte(s.assertion(s.one)) }).bye()
	s.connect(packet.V311, s.one, "/b", func(p *packet.Connect) { p.Password = []byte(s.assertion(s.one)) }).bye()
	s.aceConnect(s.one, "/ace", false).bye()
	c = s.aceConnect(s.one, "/ace", true)
	p := &packet.Auth{Reason: packet.ReAuthenticate}
	p.Properties.SetText(packet.AuthenticationMethod, "ace")
	p.Properties.SetData(packet.AuthenticationData, append([]byte{byte(len(s.one.token) >> 8), byte(len(s.one.token))}, s.one.token...))
	c.send(p)
	c.answerChallenge(s.one)
	c.get(1)
	c.bye()

	for _, v := range []packet.Version{packet.V5, packet.V311} {
		for _, change := range []func(*packet.Connect){
			func(p *packet.Connect) { p.Password = []byte("nonsense") },
			func(p *packet.Connect) { p.HasPass, p.Password = false, nil },
			func(p *packet.Connect) { p.ClientID = "lamp-2" },
			func(p *packet.Connect) { p.ClientID = "lamp-1/a b" },
			func(p *packet.Connect) { p.Will = &packet.Will{Topic: "devices/lamp-2/events/x"} },
		} {
			s.connect(v, s.one, "", change).wantEnd()
		}
	}
	s.connect(packet.V5, s.one, "", func(p *packet.Connect) { p.Properties.SetText(packet.AuthenticationMethod, "other") }).wantEnd()
	c = s.dial("a CONNECT of version 3", packet.V311)
	c.raw(0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 3, 2, 0, 60, 0, 2, 'a', 'b')
	c.get(2)
	c = s.dial("a packet before CONNECT", packet.V5)
	c.send(&packet.Ping{})
	c.wantEnd()

	first := s.connect(packet.V5, s.one, "/same", nil)
	second := s.connect(packet.V5, s.one, "/same", nil)
	first.get(2)
	second.ping()
	second.send(&packet.Connect{Version: packet.V5, ClientID: "lamp-1/same"})
	second.get(2)
	second = s.connect(packet.V5, s.one, "/same", nil)
	second.raw(0xF0, 0)
	second.get(2)
}

func filters(topics ...string) (out []packet.Filter) {
	for _, t := range topics {
		out = append(out, packet.Filter{Topic: t, QoS: 2})
	}
	return out
}

func publish(topic, payload string, qos byte, id uint16) *packet.Publish {
	return &packet.Publish{Topic: topic, QoS: qos, ID: id, Payload: []byte(payload)}
}

// deliver reads n publishes, acknowledging those with QoS 1, and doing the whole exchange for those with QoS 2.
func (c *wireConn) deliver(n int) {
	c.h.t.Helper()
	for range n {
		p, ok := c.get(1).(*packet.Publish)
		if !ok {
			c.h.t.Fatalf("%s: no PUBLISH; so far:\n%s", c.name, tail(c.h.out.String()))
		}
		switch p.QoS {
		case 1:
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
		case 2:
			c.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
			c.get(1)
			c.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
		}
	}
}

func (s *scenario) messages() {
	one := s.connect(packet.V5, s.one, "", nil)
	two := s.connect(packet.V5, s.two, "", nil)
	old := s.connect(packet.V311, s.two, "/old", nil)
	p := &packet.Subscribe{ID: 1, Filters: append(filters("sites/+/#", "secrets/#", "sites/#/x", "$SYS/#", "$share/g/secrets/#"),
		packet.Filter{Topic: "sites/+/low", QoS: 0}, packet.Filter{Topic: "sites/a/own", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2})}
	p.Properties.SetNumber(packet.SubscriptionIdentifier, 7)
	p.Properties.Subscriptions = []uint32{7}
	two.send(p)
	two.get(1)
	old.subscribe(1, append(filters("sites/a/#"), packet.Filter{Topic: "secrets/#", QoS: 1})...)
	old.get(1)

	// Each quality of service, with properties and without.
	one.send(publish("sites/a/q0", "zero", 0, 0))
	two.deliver(1)
	old.deliver(1)
	rich := publish("sites/a/q1", "one", 1, 11)
	rich.Properties.SetNumber(packet.PayloadFormatIndicator, 1)
	rich.Properties.SetNumber(packet.MessageExpiryInterval, 600)
	rich.Properties.SetText(packet.ContentType, "text/plain")
	rich.Properties.SetText(packet.ResponseTopic, "sites/a/answers")
	rich.Properties.SetData(packet.CorrelationData, []byte("c1"))
	rich.Properties.User = []packet.UserProp{{Name: "k", Value: "v"}, {Name: "k", Value: "w"}}
	one.send(rich)
	one.get(1)
	two.deliver(1)
	old.deliver(1)
	one.send(publish("sites/a/q2", "two", 2, 12))
	one.get(1)
	again := publish("sites/a/q2", "two", 2, 12)
	again.Dup = true
	one.send(again)
	one.get(1)
	one.send(&packet.Ack{Kind: packet.PUBREL, ID: 12})
	one.get(1)
	two.deliver(1)
	old.deliver(1)
	one.send(&packet.Ack{Kind: packet.PUBREL, ID: 99}) // nothing is known of it
	one.get(1)
	alias := publish("sites/a/alias", "first", 0, 0)
	alias.Properties.SetNumber(packet.TopicAlias, 5)
	one.send(alias)
	alias = publish("", "second", 0, 0)
	alias.Properties.SetNumber(packet.TopicAlias, 5)
	one.send(alias)
	two.deliver(2)
	old.deliver(2)
	one.send(publish("sites/a/low", "two filters match", 1, 13))
	one.get(1)
	two.deliver(1)
	old.deliver(1)

	// Refusals.
	one.send(publish("secrets/a", "x", 1, 14))
	one.get(1)
	one.send(publish("secrets/a", "x", 2, 15))
	one.get(1)
	one.send(publish("secrets/a", "x", 0, 0))
	one.send(publish("devices/lamp-2/events/lux", "x", 1, 16))
	one.get(1)
	one.send(publish("devices/lamp-1/receipts", "x", 1, 17))
	one.get(1)
	one.send(publish("devices/lamp-1/state", "no JSON", 1, 18))
	one.get(1)
	one.send(publish("$watchword/nothing", "x", 1, 19))
	one.get(1)
	one.send(publish("nobody/listens", "x", 1, 20))
	one.get(1)
	one.send(publish("sites/a/\x01", "x", 1, 21))
	one.get(1)
	one.ping()
	old.send(publish("secrets/a", "x", 1, 3)) // 3.1.1 has no word for a refusal
	old.wantEnd()

	// Shared subscriptions: one of the group gets each message.
	a := s.connect(packet.V5, s.two, "/s1", nil)
	a.subscribe(1, filters("$share/g/sites/s/#")...)
	a.get(1)
	b := s.connect(packet.V5, s.two, "/s2", nil)
	two.send(&packet.Unsubscribe{ID: 2, Filters: []string{"sites/+/#", "never/there"}})
	two.get(1)
	for i := range 3 {
		one.send(publish("sites/s/n", fmt.Sprint(i), 1, uint16(30+i)))
		one.get(1)
		a.deliver(1)
	}
	a.send(&packet.Unsubscribe{ID: 2, Filters: []string{"$share/g/sites/s/#"}})
	a.get(1)
	b.subscribe(1, filters("$share/g/sites/s/#")...)
	b.get(1)
	one.send(publish("sites/s/n", "3", 1, 40))
	one.get(1)
	b.deliver(1)
	a.ping()
	s.do(s.operator, "GET", "/v1/sessions?device=lamp-1", "")
	for _, c := range []*wireConn{a, b, two, one} {
		c.bye()
	}
	one = s.connect(packet.V5, s.one, "", nil)
	bad := publish("sites/a/alias", "x", 0, 0)
	bad.Properties.SetNumber(packet.TopicAlias, 65)
	one.send(bad)
	one.get(2)
	one = s.connect(packet.V5, s.one, "", nil)
	one.send(publish("sites/+/x", "a wildcard in a topic", 1, 1))
	one.get(2)
}

func (s *scenario) retained() {
	one := s.connect(packet.V5, s.one, "", nil)
	keep := publish("sites/r/scene", "evening", 1, 1)
	keep.Retain = true
	keep.Properties.SetText(packet.ContentType, "text/plain")
	one.send(keep)
	one.get(1)
	keep = publish("sites/r/level", "7", 1, 2)
	keep.Retain = true
	one.send(keep)
	one.get(1)
	two := s.connect(packet.V5, s.two, "", nil)
	two.subscribe(1, packet.Filter{Topic: "sites/r/+", QoS: 1})
	two.get(1)
	two.getSorted(2)
	two.send(&packet.Ack{Kind: packet.PUBACK, ID: 1})
	two.send(&packet.Ack{Kind: packet.PUBACK, ID: 2})
	two.subscribe(2, packet.Filter{Topic: "sites/r/+", QoS: 1, RetainHandling: 1, RetainAsPublished: true})
	two.get(1)
	keep = publish("sites/r/level", "8", 1, 3)
	keep.Retain = true
	one.send(keep)
	one.get(1)
	two.deliver(1)
	s.do(s.operator, "GET", "/v1/retained", "")
	s.do(s.operator, "GET", "/v1/retained?filter=sites%2Fr%2F%23&owner=lamp-1&page_size=1", "")
	s.do(s.operator, "GET", "/v1/retained/sites%2Fr%2Fscene", "")
	s.do(s.operator, "DELETE", "/v1/retained/sites%2Fr%2Fscene", "")
	s.do(s.operator, "GET", "/v1/retained/sites%2Fr%2Fscene", "")
	keep = publish("sites/r/level", "", 1, 4)
	keep.Retain = true
	one.send(keep)
	one.get(1)
	two.deliver(1)
	s.do(s.operator, "GET", "/v1/retained", "")
	one.bye()

	// Wills: published after a lost connection, not after a clean end, and on request.
	will := func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: "sites/r/will", Payload: []byte("gone"), QoS: 1}
		p.Will.Properties.SetText(packet.ContentType, "text/plain")
		p.Will.Properties.User = []packet.UserProp{{Name: "k", Value: "v"}}
	}
	c := s.connect(packet.V5, s.one, "/will", will)
	c.lose()
	two.deliver(1)
	s.connect(packet.V5, s.one, "/will", will).bye()
	c = s.connect(packet.V5, s.one, "/will", will)
	c.send(&packet.Disconnect{Reason: packet.DisconnectWithWill})
	c.wantEnd()
	two.deliver(1)
	c = s.connect(packet.V311, s.one, "/will", will)
	c.lose()
	two.deliver(1)
	two.ping()
	two.bye()
}

func (s *scenario) persistent() {
	lasting := func(clean bool) func(*packet.Connect) {
		return func(p *packet.Connect) {
			p.CleanStart = clean
			if p.Version == packet.V5 {
				p.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
			}
		}
	}
	two := s.connect(packet.V5, s.two, "/p", lasting(true))
	two.subscribe(1, filters("sites/p/#", "$share/pg/sites/pshared/#")...)
	two.get(1)
	two.bye()
	old := s.connect(packet.V311, s.two, "/p3", lasting(false))
	old.subscribe(1, packet.Filter{Topic: "sites/p/#", QoS: 1})
	old.get(1)
	old.bye()
	one := s.connect(packet.V5, s.one, "", nil)
	for i, topic := range []string{"sites/p/1", "sites/pshared/1", "sites/p/2"} {
		one.send(publish(topic, "waits", byte(i%2+1), uint16(1+i)))
		one.get(1)
		if i%2 == 1 {
			one.send(&packet.Ack{Kind: packet.PUBREL, ID: uint16(1 + i)})
			one.get(1)
		}
	}
	one.send(publish("sites/p/0", "QoS 0 does not wait", 0, 0))
	one.ping()
	s.do(s.operator, "GET", "/v1/sessions?device=lamp-2", "")
	s.do(s.two, "GET", "/v1/self/sessions", "")
	two = s.connect(packet.V5, s.two, "/p", lasting(false))
	two.getSorted(3)
	// Nothing was acknowledged: all is sent again.
	two.lose()
	two = s.connect(packet.V5, s.two, "/p", lasting(false))
	two.getSorted(3)
	for id := range uint16(3) {
		two.send(&packet.Ack{Kind: packet.PUBREC, ID: id + 1})
	}
	two.getSorted(3)
	two.bye()
	old = s.connect(packet.V311, s.two, "/p3", lasting(false))
	old.deliver(2)
	old.bye()
	s.connect(packet.V5, s.two, "/p", lasting(true)).bye()
	s.connect(packet.V5, s.two, "/p", func(p *packet.Connect) { p.CleanStart = false }).bye()
	s.connect(packet.V311, s.two, "/p3", nil).bye()
	one.bye()
	s.do(s.operator, "GET", "/v1/sessions?device=lamp-2", "")
}

func (s *scenario) events() {
	watch := s.stream(s.operator, "/v1/events?device=lamp-1&stream=lux")
	watch.event() // the session
	all := s.stream(s.operator, "/v1/events")
	all.event()
	two := s.connect(packet.V5, s.two, "", nil)
	two.subscribe(1, filters("devices/lamp-1/events/#")...)
	two.get(1)
	s.do(s.one, "POST", "/v1/self/events/lux", `{"lux":1}`)
	watch.event()
	all.event()
	two.deliver(1)
	s.do(s.one, "POST", "/v1/self/events/notes/today", "a text", "Content-Type", "text/plain")
	all.event()
	two.deliver(1)
	one := s.connect(packet.V5, s.one, "", nil)
	p := publish("devices/lamp-1/events/lux", `{"lux":2}`, 1, 1)
	p.Properties.SetText(packet.ContentType, "application/json")
	one.send(p)
	one.get(1)
	watch.event()
	all.event()
	two.deliver(1)
	one.send(publish("devices/lamp-1/events/raw", "\x00\xff", 2, 2))
	one.get(1)
	one.send(&packet.Ack{Kind: packet.PUBREL, ID: 2})
	one.get(1)
	all.event()
	two.deliver(1)
	s.do(s.one, "POST", "/v1/self/events/a%20b", `{}`)
	s.do(s.one, "POST", "/v1/self/events/big", strings.Repeat("x", 33_000), "Content-Type", "text/plain")
	s.do(s.sensor, "GET", "/v1/events", "")
	s.do(s.operator, "GET", "/v1/events?device=a%20b", "", "Accept", "text/event-stream")
	s.do(s.operator, "GET", "/v1/sessions?device=operator", "")
	id := s.do(s.one, "POST", "/v1/self/events/lux", `{"lux":3}`).member("id")
	watch.event()
	watch.close()
	s.do(s.one, "POST", "/v1/self/events/lux", `{"lux":4}`)
	watch = s.stream(s.operator, "/v1/events?device=lamp-1&stream=lux", "Last-Event-ID", id)
	watch.event()
	watch.event()
	watch.close()
	two.deliver(2)
	all.close()
	two.bye()
	one.bye()
}

func (s *scenario) twin() {
	one := s.connect(packet.V5, s.one, "", nil)
	one.subscribe(1, filters("devices/lamp-1/config", "devices/lamp-1/state", "devices/+/state")...)
	one.get(1)
	s.do(s.one, "GET", "/v1/self/config", "")
	s.do(s.one, "GET", "/v1/self/state", "")
	s.do(s.operator, "PUT", "/v1/devices/lamp-1/config", `{"every":5}`)
	one.deliver(1)
	etag := s.do(s.one, "GET", "/v1/self/config", "").header.Get("ETag")
	s.do(s.one, "GET", "/v1/self/config", "", "If-None-Match", etag)
	s.do(s.operator, "PUT", "/v1/devices/lamp-1/config", `{"every":6}`, "If-Match", `"9"`)
	s.do(s.operator, "PUT", "/v1/devices/lamp-1/config", `{"every":6}`, "If-Match", `"1"`)
	one.deliver(1)
	s.do(s.operator, "PUT", "/v1/devices/lamp-1/config", `[1]`)
	s.do(s.one, "PUT", "/v1/self/state", `{"lux":1}`)
	one.deliver(1)
	s.do(s.one, "PUT", "/v1/self/state", `[1]`)
	s.do(s.one, "GET", "/v1/self/state", "")
	two := s.connect(packet.V5, s.two, "", nil)
	two.send(publish("devices/lamp-2/state", `{"lux":2}`, 1, 1))
	two.get(1)
	s.do(s.operator, "GET", "/v1/devices/lamp-2/twin", "")
	s.do(s.operator, "GET", "/v1/devices/lamp-1/twin", "")
	two.subscribe(2, filters("devices/lamp-2/state")...)
	two.get(1)
	two.deliver(1)
	one.ping()
	one.bye()
	two.bye()
}

// receipt is a device's signed answer to a command that it opened.
func (s *scenario) receipt(a *wireActor, jwe, status, result string) (receipt string, seq int64) {
	o, err := a.seal.Decrypter()
	s.must(err)
	inner, _, err := o.Decrypt(jwe, 1<<20)
	s.must(err)
	u, err := jose.ParseJWS(string(inner), 1<<20)
	s.must(err)
	var c struct {
		JTI        string
		Epoch, Seq int64
	}
	s.must(json.Unmarshal(u.UnverifiedPayload(), &c))
	claims := s.claims(60, map[string]any{
		"iss": a.id, "aud": hubURL, "epoch": c.Epoch, "seq": c.Seq, "cid": c.JTI, "ch": jose.HashString(string(inner)), "st": status,
	})
	delete(claims, "exp")
	if result != "" {
		claims["result"] = json.RawMessage(result)
	}
	return s.signed(a.sign, "vnd.watchword.receipt+jwt", claims), c.Seq
}

func (s *scenario) order(device, function, args, more string) wireAnswer {
	s.t.Helper()
	return s.do(s.operator, "POST", "/v1/commands", `{"device":"`+device+`","function":"`+function+`","args":`+args+more+`}`)
}

// settled waits until a command is final, and records it.
func (s *scenario) settled(id string) { s.do(s.operator, "GET", "/v1/commands/"+id+"?wait=20s", "") }

func (s *scenario) commandsMQTT() {
	s.do(s.one, "PUT", "/v1/self/functions", `{"functions":[{"name":"lamp.set","schema":{"type":"object","properties":{"level":{"type":"integer"}},"required":["level"]}},{"name":"lamp.fail"}]}`)
	s.do(s.one, "PUT", "/v1/self/functions", `{"functions":[{"name":"lamp.set","schema":{"type":7}}]}`)
	s.do(s.one, "GET", "/v1/self/functions", "")
	s.order("lamp-1", "lamp.set", `{"level":"high"}`, "")
	s.order("lamp-1", "lamp.unknown", `{}`, "")
	s.order("lamp-1", "lamp.set", `{"level":1}`, `,"ttl":"1ms"`)
	s.order("ghost", "lamp.set", `{"level":1}`, "")
	one := s.connect(packet.V5, s.one, "", nil)
	one.subscribe(1, packet.Filter{Topic: "devices/lamp-1/commands", QoS: 1}, packet.Filter{Topic: "$watchword/auth", QoS: 1})
	one.get(1)
	one.send(publish("$watchword/hello", `{"nonce":"`+strings.Repeat("n", 22)+`","epoch":1,"seq":0}`, 1, 1))
	one.get(1)
	one.send(publish("$watchword/hello", `{"nonce":7}`, 1, 2))
	one.get(1)

	next := func() *packet.Publish {
		p, ok := one.get(1).(*packet.Publish)
		if !ok {
			s.t.Fatalf("no command; so far:\n%s", tail(s.out.String()))
		}
		return p
	}
	id := s.order("lamp-1", "lamp.set", `{"level":40}`, "").member("id")
	p := next()
	one.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
	for _, state := range []string{"accepted", "done"} {
		result := map[string]string{"done": `{"level":40}`}[state]
		r, _ := s.receipt(s.one, string(p.Payload), state, result)
		one.send(publish("devices/lamp-1/receipts", r, 1, 3))
		one.get(1)
	}
	s.settled(id)
	bad, _ := s.receipt(s.two, s.reseal(p.Payload), "done", "")
	one.send(publish("devices/lamp-1/receipts", bad, 1, 4))
	one.get(1)
	for i, state := range []string{"failed", "refused", "interrupted"} {
		id = s.order("lamp-1", "lamp.fail", `{}`, "").member("id")
		p = next()
		r, _ := s.receipt(s.one, string(p.Payload), state, `{"code":"exit_1","detail":"words"}`)
		one.send(publish("devices/lamp-1/receipts", r, 1, uint16(10+i))) // before the PUBACK
		one.get(1)
		one.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
		s.settled(id)
	}
	// A signed order by the operator's own key, and one that does not fit.
	for _, args := range []string{`{"level":41}`, `{"level":42}`} {
		order := s.signed(s.operator.sign, "vnd.watchword.order+jwt", s.claims(60, map[string]any{
			"iss": "operator", "aud": "lamp-1", "server": "https://hub.example", "cmd": "lamp.set", "args_hash": jose.Hash([]byte(`{"level":41}`)),
		}))
		got := s.order("lamp-1", "lamp.set", args, `,"ttl":"1m","order":"`+order+`"`)
		if got.status == http.StatusCreated {
			p = next()
			one.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
			r, _ := s.receipt(s.one, string(p.Payload), "done", "null")
			one.send(publish("devices/lamp-1/receipts", r, 1, 20))
			one.get(1)
			s.settled(got.member("id"))
			s.do(s.operator, "GET", "/v1/commands/"+got.member("id")+"/evidence", "")
		}
	}
	// A subject that policy lets call, within its bounds.
	s.do(s.two, "POST", "/v1/commands", `{"device":"lamp-1","function":"lamp.set","args":{"level":90}}`)
	s.do(s.sensor, "POST", "/v1/commands", `{"device":"lamp-1","function":"lamp.set","args":{"level":9}}`)
	id = s.do(s.two, "POST", "/v1/commands", `{"device":"lamp-1","function":"lamp.set","args":{"level":70}}`, "Idempotency-Key", "two").member("id")
	p = next()
	one.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
	r, _ := s.receipt(s.one, string(p.Payload), "done", "")
	one.send(publish("devices/lamp-1/receipts", r, 1, 21))
	one.get(1)
	s.do(s.two, "GET", "/v1/commands/"+id+"?wait=20s", "")
	s.do(s.sensor, "GET", "/v1/commands/"+id, "")
	s.do(s.two, "POST", "/v1/commands", `{"device":"lamp-1","function":"lamp.set","args":{"level":70}}`, "Idempotency-Key", "two")
	one.bye()
}

// reseal seals to lamp-2 what was sealed to lamp-1.
func (s *scenario) reseal(jwe []byte) string {
	o, err := s.one.seal.Decrypter()
	s.must(err)
	inner, cty, err := o.Decrypt(string(jwe), 1<<20)
	s.must(err)
	out, err := jose.Encrypt(s.two.seal.Public(), cty, inner)
	s.must(err)
	return out
}

func (s *scenario) commandsHTTP() {
	poll := func(query string) wireAnswer { return s.do(s.two, "GET", "/v1/self/commands?"+query, "") }
	poll("")
	cancelled := s.order("lamp-2", "lamp.set", `{"level":1}`, "").member("id")
	s.do(s.operator, "POST", "/v1/commands/"+cancelled+"/cancel", "")
	s.do(s.operator, "POST", "/v1/commands/"+cancelled+"/cancel", "")
	expired := s.order("lamp-2", "lamp.set", `{"level":2}`, `,"ttl":"1s"`).member("id")
	s.settled(expired)
	id := s.order("lamp-2", "lamp.set", `{"level":3}`, `,"ttl":"1h"`).member("id")
	got := poll("limit=1&wait=10s&nonce=" + strings.Repeat("m", 22))
	s.do(s.operator, "POST", "/v1/commands/"+id+"/cancel", "")
	r, seq := s.receipt(s.two, got.member("commands.jwe"), "done", `{"n":[1,2.5,null,true]}`)
	poll(fmt.Sprintf("epoch=1&after=%d", seq))
	s.do(s.operator, "GET", "/v1/commands/"+id, "")
	s.do(s.operator, "GET", "/v1/commands/"+id+"/evidence", "")
	s.do(s.one, "POST", "/v1/self/receipts", `{"receipt":"`+r+`"}`)
	s.do(s.two, "POST", "/v1/self/receipts", `{"receipt":"nonsense"}`)
	s.do(s.two, "POST", "/v1/self/receipts", `{"receipt":"`+r+`"}`)
	s.do(s.two, "POST", "/v1/self/receipts", `{"receipt":"`+r+`"}`)
	poll("limit=0")
	poll("wait=2h")

	stream := s.stream(s.two, "/v1/self/commands")
	stream.event()
	id = s.order("lamp-2", "lamp.set", `{"level":4}`, "").member("id")
	stream.event()
	newer := s.stream(s.two, "/v1/self/commands", "Last-Event-ID", fmt.Sprintf("1.%d", seq+1))
	stream.event() // end: a newer one took over
	newer.event()
	s.do(s.operator, "GET", "/v1/commands/"+id, "")
	newer.close()

	// A command that is too large for what its device takes.
	two := s.connect(packet.V5, s.two, "", func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 600) })
	two.subscribe(1, packet.Filter{Topic: "devices/lamp-2/commands", QoS: 1})
	two.get(1)
	id = s.order("lamp-2", "lamp.set", `{"level":5,"more":"`+strings.Repeat("x", 600)+`"}`, "").member("id")
	s.settled(id)
	two.ping()
	two.bye()
	s.do(s.operator, "GET", "/v1/commands?device=lamp-2", "")
	s.do(s.operator, "GET", "/v1/commands?state=done&by=operator&page_size=1", "")
	s.do(s.sensor, "GET", "/v1/commands", "")
}

func (s *scenario) policies() {
	const toml = "application/toml"
	guests := "for = { kind = \"sensor\" }\n[[allow]]\npublish = [\"guests/#\"]\nsubscribe = [\"guests/#\", \"sites/g/#\"]\nget = [\"/v1/events\"]\n"
	s.do(s.operator, "POST", "/v1/policies/check?name=guests", guests, "Content-Type", toml)
	s.do(s.operator, "POST", "/v1/policies/check?name=guests", "for = 7\n[[allow]]\npublsh = [\"x\"]\n", "Content-Type", toml)
	s.do(s.operator, "PUT", "/v1/policies/guests", guests, "Content-Type", toml, "If-None-Match", "*")
	s.do(s.operator, "PUT", "/v1/policies/guests", guests, "Content-Type", toml, "If-None-Match", "*")
	s.do(s.operator, "PUT", "/v1/policies/guests", "for = {}\n[[allow]]\npublish = [\"a/#/b\"]\n", "Content-Type", toml)
	s.do(s.operator, "PUT", "/v1/policies/guests", guests, "Content-Type", "text/plain")
	s.authenticate(s.sensor)
	listener := s.connect(packet.V5, s.sensor, "", nil)
	listener.subscribe(1, filters("guests/#", "sites/g/#", "$watchword/auth")...)
	listener.get(1)
	deaf := s.connect(packet.V5, s.sensor, "/deaf", nil)
	deaf.subscribe(1, filters("guests/#", "sites/g/#")...)
	deaf.get(1)
	three := s.connect(packet.V311, s.sensor, "/three", nil)
	three.subscribe(1, filters("sites/g/#")...)
	three.get(1)
	// The edit removes a right of live sessions: the client that is subscribed is notified, the others are closed.
	s.do(s.operator, "PUT", "/v1/policies/guests", strings.Replace(guests, `, "sites/g/#"`, "", 1), "Content-Type", toml, "If-Match", `"1"`)
	listener.deliver(1)
	deaf.get(2)
	three.wantEnd()
	listener.send(publish("guests/x", "still", 1, 5))
	listener.getSorted(2)
	s.do(s.operator, "GET", "/v1/policies", "")
	s.do(s.operator, "GET", "/v1/policies/guests", "")
	s.do(s.operator, "GET", "/v1/policies/ghost", "")
	for _, q := range []string{
		`{"subject":"lamp-1","action":"call","resource":"fn:lamp-2/lamp.set","args":{"level":80}}`,
		`{"subject":"lamp-1","action":"call","resource":"fn:lamp-2/lamp.set","args":{"level":81}}`,
		`{"subject":"sensor-1","action":"sub","resource":"topic:sites/g/x"}`,
		`{"subject":"ghost","action":"sub","resource":"topic:sites/g/x"}`,
		`{"subject":"lamp-1","action":"fly","resource":"topic:sites/g/x"}`,
	} {
		s.do(s.operator, "POST", "/v1/explain", q)
	}
	s.do(s.sensor, "POST", "/v1/explain", `{"subject":"sensor-1","action":"pub","resource":"topic:guests/x"}`)
	s.do(s.sensor, "POST", "/v1/explain", `{"subject":"lamp-1","action":"pub","resource":"topic:guests/x"}`)
	s.do(s.operator, "DELETE", "/v1/policies/guests", "", "If-Match", `"1"`)
	s.do(s.operator, "DELETE", "/v1/policies/guests", "")
	s.do(s.operator, "DELETE", "/v1/policies/guests", "")
}

func (s *scenario) revocation() {
	spare := *s.one
	s.authenticate(&spare)
	c := s.connect(packet.V5, &spare, "/spare", nil)
	stream := s.stream(&spare, "/v1/self/commands")
	stream.event()
	jti := s.do(&spare, "GET", "/v1/self", "").member("token.jti")
	// A refresh over MQTT and over HTTP, before.
	newer := *s.one
	s.authenticate(&newer)
	c.subscribe(1, filters("$watchword/auth")...)
	c.get(1)
	c.send(publish("$watchword/auth", newer.token, 1, 1))
	c.getSorted(2)
	c.send(publish("$watchword/auth", "nonsense", 1, 2))
	c.getSorted(2)
	c.send(publish("$watchword/auth", spare.token, 1, 3))
	c.getSorted(2)
	s.do(s.operator, "DELETE", "/v1/tokens/"+jti, "")
	c.get(2)
	stream.event()
	s.do(&spare, "GET", "/v1/self", "")
	s.connect(packet.V5, &spare, "/spare", nil).wantEnd()
	s.do(s.operator, "DELETE", "/v1/tokens/"+jti, "")
	s.do(s.operator, "DELETE", "/v1/tokens/"+strings.Repeat("x", 22), "")

	c = s.connect(packet.V5, s.one, "/closed", nil)
	id := s.do(s.one, "GET", "/v1/self/sessions", "").member("sessions.id")
	s.do(s.one, "PUT", "/v1/self/sessions/"+id, "")
	s.do(s.two, "PUT", "/v1/self/sessions/"+id, "")
	s.do(s.operator, "DELETE", "/v1/sessions/"+id, "")
	c.get(2)
	s.do(s.operator, "DELETE", "/v1/sessions/"+id, "")
}

func (s *scenario) suspension() {
	c := s.connect(packet.V5, s.two, "", nil)
	old := s.connect(packet.V311, s.two, "/old", nil)
	stream := s.stream(s.two, "/v1/self/commands")
	stream.event()
	s.do(s.operator, "POST", "/v1/devices/lamp-2/suspend", `{"reason":"on the bench"}`)
	c.get(2)
	old.wantEnd()
	stream.event()
	s.do(s.two, "GET", "/v1/self", "")
	s.authenticate(s.two)
	s.connect(packet.V5, s.two, "", nil).wantEnd()
	s.connect(packet.V311, s.two, "", nil).wantEnd()
	s.do(s.operator, "POST", "/v1/devices/lamp-2/suspend", `{}`)
	s.do(s.operator, "POST", "/v1/devices/lamp-2/resume", `{}`)
	s.do(s.operator, "POST", "/v1/devices/lamp-2/resume", `{}`)
	s.do(s.two, "GET", "/v1/self", "")
	s.connect(packet.V5, s.two, "", nil).bye()
}

func (s *scenario) pairing() {
	begin := func(a *wireActor, wish string) wireAnswer {
		return s.post(nil, "/oauth/device_authorization", nil, "client_id", wish, "sign", string(a.sign.Public().JWK()), "seal", string(a.seal.Public().JWK()),
			"proof", s.enrollmentProof(a, "watchword-pairing"))
	}
	ask := func(a *wireActor, wish, code string) wireAnswer {
		return s.post(nil, "/oauth/token", nil, "grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", code, "client_id", wish, "proof", s.enrollmentProof(a, code))
	}
	a, b := s.newActor("lamp-8"), s.newActor("lamp-9")
	first := begin(a, "lamp-8")
	code, user := first.member("device_code"), first.member("user_code")
	ask(a, "lamp-8", code)
	ask(b, "lamp-8", code)
	ask(a, "lamp-8", strings.Repeat("z", 22))
	begin(s.one, "lamp-8") // keys that a device has
	s.do(s.operator, "GET", "/v1/enrollments", "")
	s.do(s.operator, "GET", "/v1/enrollments/"+user, "")
	s.do(s.operator, "GET", "/v1/enrollments/BBBB-BBBB", "")
	s.do(s.operator, "POST", "/v1/enrollments/"+user+"/approve", `{"sign":"`+string(b.sign.Public().ID())+`"}`)
	s.do(s.operator, "POST", "/v1/enrollments/"+user+"/approve", `{"sign":"`+string(a.sign.Public().ID())+`","id":"lamp-1"}`)
	s.do(s.operator, "POST", "/v1/enrollments/"+user+"/approve", `{"sign":"`+string(a.sign.Public().ID())+`","labels":{"kind":"lamp"}}`)
	s.do(s.operator, "POST", "/v1/enrollments/"+user+"/approve", `{"sign":"`+string(a.sign.Public().ID())+`"}`)
	ask(a, "lamp-8", code)
	ask(a, "lamp-8", code)
	second := begin(b, string(b.sign.Public().ID()))
	user = second.member("user_code")
	s.do(s.operator, "POST", "/v1/enrollments/"+user+"/reject", "")
	s.do(s.operator, "POST", "/v1/enrollments/"+user+"/reject", "")
	ask(b, string(b.sign.Public().ID()), second.member("device_code"))
	s.do(s.operator, "GET", "/v1/enrollments", "")
	s.do(nil, "GET", "/enroll", "")
}

func (s *scenario) rekey() {
	fresh := s.newActor("lamp-1")
	change := func(old, next *wireActor, jti string) string {
		h := s.claims(60, map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": hubURL, "sign_jkt": string(next.sign.Public().ID()), "seal_jkt": string(next.seal.Public().ID())})
		return fmt.Sprintf(`{"keys":{"sign":%s,"seal":%s},"rekey":[%q,%q]}`, next.sign.Public().JWK(), next.seal.Public().JWK(),
			s.signed(old.sign, "vnd.watchword.rekey+jwt", h), s.signed(next.sign, "vnd.watchword.rekey+jwt", h))
	}
	s.authenticate(s.one)
	c := s.connect(packet.V5, s.one, "", nil)
	s.do(s.one, "POST", "/v1/self/keys", change(s.two, fresh, ""))
	s.do(s.one, "POST", "/v1/self/keys", change(s.one, s.two, ""))
	s.do(s.one, "POST", "/v1/self/keys", change(s.one, fresh, ""))
	c.get(2)
	s.do(s.one, "GET", "/v1/self", "")
	s.authenticate(s.one) // the old key does not authenticate
	s.authenticate(fresh)
	s.do(fresh, "POST", "/v1/self/keys", change(fresh, fresh, "")) // the keys that count already
	s.do(s.operator, "GET", "/v1/devices/lamp-1", "")
	s.one = fresh
}

func (s *scenario) serverKeys() {
	s.do(s.operator, "GET", "/v1/keys", "")
	id := s.do(s.operator, "POST", "/v1/keys/time/rotate", `{}`).member("id")
	s.do(s.operator, "POST", "/v1/keys/time/rotate", `{}`)
	s.do(s.operator, "POST", "/v1/keys/nothing/rotate", `{}`)
	s.do(s.operator, "POST", "/v1/keys/"+url.PathEscape(id)+"/revoke", `{"reason":"a trial"}`)
	s.do(s.operator, "POST", "/v1/keys/bundles/plan", `{"count":0}`)
	s.do(s.operator, "POST", "/v1/keys/bundles/plan", `{"count":1}`)
	s.do(s.operator, "POST", "/v1/keys/bundles", `{"bundles":["nonsense"]}`)
}

func (s *scenario) end() {
	c := s.connect(packet.V5, s.one, "", func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: "sites/a/will", Payload: []byte("never published")}
	})
	keep := publish("sites/e/kept", "goes with its owner", 1, 1)
	keep.Retain = true
	c.send(keep)
	c.get(1)
	stream := s.stream(s.one, "/v1/self/commands")
	stream.event()
	queued := s.order("lamp-1", "lamp.set", `{"level":9}`, `,"ttl":"1h"`).member("id")
	stream.event()
	s.do(s.operator, "POST", "/v1/devices/lamp-1/revoke", `{"reason":"stolen"}`)
	c.get(2)
	stream.event()
	s.do(s.one, "GET", "/v1/self", "")
	s.authenticate(s.one)
	s.connect(packet.V5, s.one, "", nil).wantEnd()
	s.do(s.operator, "GET", "/v1/commands/"+queued, "")
	s.do(s.operator, "GET", "/v1/retained?filter=sites%2Fe%2F%23", "")
	s.do(s.operator, "POST", "/v1/devices/lamp-1/resume", `{}`)
	code := s.do(s.operator, "POST", "/v1/devices/lamp-1/link", `{}`).member("code")
	s.do(nil, "POST", "/v1/enroll", s.enrollBody(s.newActor("lamp-1"), code))
	s.do(s.operator, "GET", "/v1/devices/lamp-1", "")
}

// log records every entry: those of acts in their order, those of refusals and sessions, which
// are written behind the act, sorted.
func (s *scenario) log() {
	s.do(s.operator, "GET", "/v1/audit?kind=command.*&limit=3", "")
	s.do(s.operator, "GET", "/v1/audit?object=lamp-2&order=newest&limit=2&subject=operator", "")
	s.do(s.operator, "GET", "/v1/audit/1", "")
	s.do(s.operator, "GET", "/v1/audit/100000", "")
	s.do(s.operator, "GET", "/v1/audit/x", "")
	s.do(s.two, "GET", "/v1/audit", "")
	s.section("every entry of the log")
	var acts, behind []string
	for after, more := int64(0), true; more; { // each page that is read is an entry too
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, fmt.Sprintf("%s/v1/audit?limit=100&after=%d", hubURL, after), nil)
		s.must(err)
		req.Header.Set("Authorization", "Bearer "+s.operator.token)
		res, err := s.client.Do(req)
		s.must(err)
		var page struct{ Entries []json.RawMessage }
		err = json.NewDecoder(res.Body).Decode(&page)
		_ = res.Body.Close() // read
		s.must(err)
		more = len(page.Entries) == 100
		for _, raw := range page.Entries {
			var e struct {
				Seq           int64
				Kind, Outcome string
			}
			s.must(json.Unmarshal(raw, &e))
			after = e.Seq
			raw = bytes.Replace(raw, fmt.Appendf(nil, `"seq":%d,`, e.Seq), nil, 1)
			if e.Outcome != "done" || strings.HasPrefix(e.Kind, "session.") {
				behind = append(behind, string(raw))
			} else {
				acts = append(acts, s.body(raw))
			}
		}
	}
	s.printf("%s", strings.Join(acts, "\n"))
	s.section("refusals and sessions")
	for i := range behind {
		behind[i] = s.unnumbered([]byte(behind[i]))
	}
	slices.Sort(behind)
	s.printf("%s", strings.Join(behind, "\n"))
}
