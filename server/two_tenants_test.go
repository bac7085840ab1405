package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

// Two tenants use the same names for everything: subjects, keys, clients, topics, filters, policies, idempotency keys, ids of tokens.
// What happens in one is neither seen nor counted in the other. That nothing came is shown by a message of the tenant's own behind it.
func TestTheSameNamesInTwoTenantsAreTwoThings(t *testing.T) {
	first, other := twoTenants(t, func(c *server.Config) {
		c.Limits.SubjectRetainedMessages, c.Limits.IssueRate = 2, 1
	})
	for _, x := range []struct {
		name string
		test func(t *testing.T, a, b *tenantSide)
	}{
		{"a connection and its takeover", takeoverInOneTenant},
		{"messages to subscriptions", messagesInOneTenant},
		{"retained messages", retainedInOneTenant},
		{"wills", willsInOneTenant},
		{"shared subscriptions", sharedInOneTenant},
		{"sessions of clients that are offline", offlineInOneTenant},
		{"events", eventsInOneTenant},
		{"wanted and reported state", twinsInOneTenant},
		{"commands", commandsInOneTenant},
		{"idempotency keys", idempotencyInOneTenant},
		{"assertions", assertionsInOneTenant},
		{"DPoP proofs", proofsInOneTenant},
		{"enrollment codes", codesInOneTenant},
		{"tokens", tokensInOneTenant},
		{"tenants that do not exist", noTenantInNoLog},
		{"policies and labels", policiesInOneTenant},
		{"the log", logInOneTenant},
		{"connections of a subject", connectionQuotaInOneTenant},
		{"rates", ratesInOneTenant},
		{"suspension", suspensionInOneTenant},
	} {
		if !t.Run(x.name, func(t *testing.T) { x.test(t, first.in(t), other.in(t)) }) {
			return
		}
	}
}

// absent fails unless something of the other tenant is not found.
func (x *tenantSide) absent(what string, err error) {
	x.Helper()
	if watchword.CodeOf(err) != watchword.NotFound {
		x.Errorf("%s of another tenant: got %v, want not_found", what, err)
	}
}

func takeoverInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	again := a.connect("lamp-1")
	ca.wantEnd(packet.SessionTakenOver)
	for _, c := range []*mqttClient{again, cb} {
		if got := c.publish("plant/alive", "yes"); got >= 0x80 {
			t.Errorf("%s: PUBACK %#x", c.tenant, got)
		}
	}
	sessions, err := b.admin.Sessions(t.Context(), "lamp-1")
	check(t, err)
	if len(sessions) != 1 {
		t.Errorf("%d sessions, want 1", len(sessions))
	}
	sessions, err = a.admin.Sessions(t.Context(), "lamp-1")
	check(t, err)
	b.absent("the session", b.admin.CloseSession(t.Context(), sessions[0].ID))
	check(t, a.admin.CloseSession(t.Context(), sessions[0].ID))
	again.wantEnd(packet.AdministrativeAction)
	if got := cb.publish("plant/alive", "yes"); got >= 0x80 {
		t.Errorf("PUBACK %#x", got)
	}
}

func messagesInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	for _, c := range []*mqttClient{ca, cb} {
		c.subscribe("plant/#", "plant/+")
	}
	ca.publish("plant/x", "of a")
	cb.publish("plant/x", "of b")
	ca.wantMessages("plant/x of a")
	cb.wantMessages("plant/x of b")
	ca.send(&packet.Unsubscribe{ID: 9, Filters: []string{"plant/#", "plant/+"}})
	next[*packet.Unsuback](ca)
	cb.publish("plant/x", "still")
	cb.wantMessages("plant/x still")
}

func retainedInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	ca.publish("plant/kept", "of a", retain)
	cb.subscribe("plant/kept")
	cb.publish("plant/kept", "live")
	cb.wantMessages("plant/kept live")
	_, err := b.admin.RetainedMessage(t.Context(), "plant/kept")
	b.absent("the retained message", err)
	b.absent("the retained message", b.admin.DeleteRetained(t.Context(), "plant/kept"))
	cb.publish("plant/kept", "of b", retain)
	cb.wantMessages("plant/kept of b")
	ca.subscribe("plant/kept")
	ca.wantMessages("plant/kept of a")
	// One has as many as its subject may; the other has room.
	if got := ca.publish("plant/kept/2", "of a", retain); got >= 0x80 {
		t.Errorf("PUBACK %#x", got)
	}
	if got := ca.publish("plant/kept/3", "of a", retain); got != packet.QuotaExceeded {
		t.Errorf("PUBACK %#x, want %#x", got, packet.QuotaExceeded)
	}
	if got := cb.publish("plant/kept/3", "of b", retain); got >= 0x80 {
		t.Errorf("PUBACK %#x where there is room", got)
	}
	check(t, a.admin.DeleteRetained(t.Context(), "plant/kept"))
	m, err := b.admin.RetainedMessage(t.Context(), "plant/kept")
	check(t, err)
	if m.Owner != "lamp-1" {
		t.Errorf("it is %s's", m.Owner)
	}
}

func willsInOneTenant(t *testing.T, a, b *tenantSide) {
	will := func(says string) func(*packet.Connect) {
		return func(p *packet.Connect) { p.Will = &packet.Will{Topic: "plant/will", Payload: []byte(says), QoS: 1} }
	}
	ca := a.connect("lamp-1", will("of a"))
	cb := b.connect("lamp-1", will("of b"))
	wa, wb := a.connect("lamp-1/watch"), b.connect("lamp-1/watch")
	for _, c := range []*mqttClient{wa, wb} {
		c.subscribe("plant/will")
	}
	check(t, ca.nc.Close())
	wa.wantMessages("plant/will of a")
	wb.publish("plant/will", "none yet")
	wb.wantMessages("plant/will none yet")
	check(t, cb.nc.Close())
	wb.wantMessages("plant/will of b")
	// A will that waits for its client waits for that of its tenant.
	delayed := func(says string) func(*packet.Connect) {
		return func(p *packet.Connect) {
			persistent(p)
			will(says)(p)
			p.Will.Properties.SetNumber(packet.WillDelayInterval, 3600)
		}
	}
	ca, cb = a.connect("lamp-1", delayed("late of a")), b.connect("lamp-1", delayed("late of b"))
	for _, c := range []*mqttClient{ca, cb} {
		check(t, c.nc.Close())
	}
	for _, x := range []*tenantSide{a, b} {
		if x.offline("lamp-1").WillAt == nil {
			t.Errorf("%s: no will waits", x.id)
		}
	}
	a.connect("lamp-1", persistent) // takes its own will back
	if b.offline("lamp-1").WillAt == nil {
		t.Error("the will of a client that is offline is gone")
	}
}

// offline waits until a client is offline, and returns its session.
func (x *tenantSide) offline(client string) api.OfflineSession {
	x.Helper()
	for wait := testwait.Within(); ; {
		_, away, err := x.admin.AllSessions(x.Context(), "lamp-1")
		check(x.T, err)
		for _, s := range away {
			if s.MQTT.Client == client {
				return s
			}
		}
		wait.Check(x.T, "the end of the connection of "+client)
	}
}

func sharedInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	for _, c := range []*mqttClient{ca, cb} {
		c.subscribe("$share/group/plant/shared")
	}
	for _, says := range []string{"1", "2", "3", "4"} { // with members of both, each would get every other one
		ca.publish("plant/shared", says)
	}
	cb.publish("plant/shared", "of b")
	ca.wantMessages("plant/shared 1", "plant/shared 2", "plant/shared 3", "plant/shared 4")
	cb.wantMessages("plant/shared of b")
}

func offlineInOneTenant(t *testing.T, a, b *tenantSide) {
	for _, x := range []*tenantSide{a, b} {
		c := x.connect("lamp-1/later", persistent)
		c.subscribe("plant/later")
		c.send(&packet.Disconnect{})
	}
	sa, sb := a.offline("lamp-1/later"), b.offline("lamp-1/later")
	b.absent("the session", b.admin.CloseSession(t.Context(), sa.ID))
	a.absent("the session", a.admin.CloseSession(t.Context(), sb.ID))
	a.connect("lamp-1").publish("plant/later", "of a")
	cb := b.connect("lamp-1/later", persistent)
	if !cb.connack.SessionPresent {
		t.Error("its session is gone")
	}
	cb.publish("plant/later", "of b")
	cb.wantMessages("plant/later of b")
	ca := a.connect("lamp-1/later", persistent)
	ca.wantMessages("plant/later of a")
	cb.send(&packet.Disconnect{})
	b.offline("lamp-1/later")
	a.connect("lamp-1/later") // a clean start ends the session of one tenant
	ca.wantEnd(packet.SessionTakenOver)
	if cb = b.connect("lamp-1/later", persistent); !cb.connack.SessionPresent {
		t.Error("a clean start in another tenant ended it")
	}
}

func eventsInOneTenant(t *testing.T, a, b *tenantSide) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	got := map[*tenantSide]chan string{a: make(chan string, 16), b: make(chan string, 16)}
	for x, events := range got {
		opened := make(chan struct{})
		go func() {
			_ = x.admin.Watch(ctx, "lamp-1", "lux", func() { close(opened) }, func(e api.Event) error { // ends with the test
				events <- string(e.Data)
				return nil
			})
		}()
		testwait.For(t, "the stream of "+string(x.id), opened)
	}
	ca := a.connect("lamp-1")
	ca.publish("devices/lamp-1/events/lux", `"of a over MQTT"`)
	for _, x := range []*tenantSide{a, b} {
		check(t, x.lamp.Publish(t.Context(), "lux", "of "+string(x.id)))
	}
	for _, want := range []string{`"of a over MQTT"`, `"of ` + string(a.id) + `"`} {
		if e := testwait.For(t, "an event", got[a]); e != want {
			t.Errorf("got %s, want %s", e, want)
		}
	}
	if e := testwait.For(t, "an event", got[b]); e != `"of `+string(b.id)+`"` {
		t.Errorf("the first event of %s is %s", b.id, e)
	}
}

func twinsInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	for _, c := range []*mqttClient{ca, cb} {
		c.subscribe("devices/lamp-1/config", "devices/lamp-1/state")
	}
	check(t, a.lamp.ReportState(t.Context(), map[string]string{"of": "a"}))
	ca.wantMessages(`devices/lamp-1/state {"of":"a"}`)
	_, err := a.admin.SetConfig(t.Context(), "lamp-1", []byte(`{"of":"a"}`), -1)
	check(t, err)
	tw, err := b.admin.Twin(t.Context(), "lamp-1")
	check(t, err)
	if tw.ConfigVersion != 0 || string(tw.State) != "null" && len(tw.State) != 0 {
		t.Errorf("it has %s and version %d of a configuration", tw.State, tw.ConfigVersion)
	}
	tw, err = b.admin.SetConfig(t.Context(), "lamp-1", []byte(`{"of":"b"}`), -1)
	check(t, err)
	if tw.ConfigVersion != 1 {
		t.Errorf("its first configuration has version %d", tw.ConfigVersion)
	}
	for c, issuer := range map[*mqttClient]string{ca: a.issuer, cb: b.issuer} {
		m := next[*packet.Publish](c)
		if got := token.UnverifiedIssuer(string(m.Payload)); m.Topic != "devices/lamp-1/config" || got != issuer {
			t.Errorf("%s: %s by %s, want a configuration by %s", c.tenant, m.Topic, got, issuer)
		}
	}
	check(t, b.lamp.ReportState(t.Context(), map[string]string{"of": "b"}))
	cb.wantMessages(`devices/lamp-1/state {"of":"b"}`)
}

func commandsInOneTenant(t *testing.T, a, b *tenantSide) {
	order := func(x *tenantSide) api.Command {
		t.Helper()
		c, err := x.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "blink"})
		check(t, err)
		if c.Seq != 1 {
			t.Errorf("the first command of %s has number %d", x.id, c.Seq)
		}
		return c
	}
	ca := order(a)
	if all, err := b.admin.Commands(t.Context(), admin.Filter{}, 100); err != nil || len(all) != 0 {
		t.Errorf("%d commands: %v", len(all), err)
	}
	cb := order(b)
	_, err := b.admin.Command(t.Context(), ca.ID, 0)
	b.absent("the command", err)
	_, err = b.admin.Command(t.Context(), ca.ID, time.Second)
	b.absent("the command that is waited for", err)
	_, err = b.admin.Cancel(t.Context(), ca.ID)
	b.absent("the command", err)
	_, err = b.admin.Evidence(t.Context(), ca.ID)
	b.absent("the evidence", err)
	run := func(x *tenantSide) (stop func()) {
		x.lamp.Handle("only."+string(x.id), func(context.Context, *device.Command) (any, error) { return nil, nil })
		x.lamp.Handle("blink", func(context.Context, *device.Command) (any, error) { return "by " + string(x.id), nil })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- x.lamp.Run(ctx) }()
		return func() {
			cancel()
			testwait.For(t, "the end of the device", ended)
		}
	}
	settled := func(x *tenantSide, c api.Command) {
		t.Helper()
		c, err := x.admin.Await(t.Context(), c, testwait.Limit)
		check(t, err)
		if c.State != watchword.Done || c.Receipt == nil || string(c.Receipt.Result) != `"by `+string(x.id)+`"` {
			t.Errorf("%s: %s, %+v", x.id, c.State, c.Receipt)
		}
	}
	stop := run(a)
	settled(a, ca)
	stop()
	if c, err := b.admin.Command(t.Context(), cb.ID, 0); err != nil || c.State != watchword.Queued {
		t.Errorf("the device of another tenant took it: %s, %v", c.State, err)
	}
	defer run(b)()
	settled(b, cb)
	if _, err := b.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "only." + string(a.id)}); watchword.CodeOf(err) != watchword.FunctionUnknown {
		t.Errorf("a function that the device of another tenant announced: %v", err)
	}
	for x, id := range map[*tenantSide]watchword.CommandID{a: ca.ID, b: cb.ID} {
		raw, err := x.admin.Evidence(t.Context(), id)
		check(t, err)
		pin, err := x.admin.TrustPin(t.Context())
		check(t, err)
		if v, err := command.VerifyEvidence(raw, pin); err != nil || v.Issuer != x.issuer {
			t.Errorf("the evidence of %s is of %s: %v", x.id, v.Issuer, err)
		}
	}
}

func idempotencyInOneTenant(t *testing.T, a, b *tenantSide) {
	order := func(x *tenantSide, args string) (out api.Command, err error) {
		_, err = x.admin.Rest().JSON(t.Context(), rest.Request{
			Method: http.MethodPost, Path: "/v1/commands", Type: "application/json", Header: map[string]string{"Idempotency-Key": "the-same-key-of-both"},
			Body: []byte(`{"device":"lamp-1","function":"blink","args":` + args + `}`),
		}, nil, &out)
		return out, err
	}
	ca, err := order(a, `{"of":"a"}`)
	check(t, err)
	cb, err := order(b, `{"of":"b"}`)
	check(t, err)
	again, err := order(a, `{"of":"a"}`)
	check(t, err)
	if ca.ID == cb.ID || again.ID != ca.ID {
		t.Errorf("%s in one, %s in the other, then %s", ca.ID, cb.ID, again.ID)
	}
}

// post sends a form to the token endpoint or another one, and returns the code of the refusal and the answer.
func (x *tenantSide) post(path string, form url.Values, header ...string) (code watchword.Code, answer map[string]any, head http.Header) {
	x.Helper()
	r, err := http.NewRequestWithContext(x.Context(), http.MethodPost, x.issuer+path, strings.NewReader(form.Encode()))
	check(x.T, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client, err := x.lamp.HTTPClient()
	check(x.T, err)
	resp, err := client.Do(r)
	check(x.T, err)
	defer func() { check(x.T, resp.Body.Close()) }()
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	check(x.T, err)
	if body.Len() > 0 {
		check(x.T, json.Unmarshal(body.Bytes(), &answer))
	}
	text, _ := answer["code"].(string)
	return watchword.Code(text), answer, resp.Header
}

// assertion signs a client assertion of the operator whose jti is given.
func (x *tenantSide) assertion(jti string) url.Values {
	x.Helper()
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{"iss": "operator", "sub": "operator", "aud": x.issuer, "jti": jti, "iat": now, "exp": now + 60})
	check(x.T, err)
	raw, err := x.operator.Sign(token.TypAssertion, claims)
	check(x.T, err)
	return url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {raw}}
}

func assertionsInOneTenant(t *testing.T, a, b *tenantSide) {
	for _, x := range []*tenantSide{a, b} {
		if code, answer, _ := x.post("/oauth/token", x.assertion("the same jti")); code != "" {
			t.Errorf("%s: %v", x.id, answer)
		}
	}
	for _, x := range []*tenantSide{a, b} {
		if code, answer, _ := x.post("/oauth/token", x.assertion("the same jti")); code != watchword.TokenReplayed {
			t.Errorf("%s, again: %v", x.id, answer)
		}
	}
	// The same key proves the operator of both, but an assertion is for one.
	if code, answer, _ := b.post("/oauth/token", a.assertion("another jti")); code != watchword.AudienceMismatch {
		t.Errorf("an assertion for another tenant: %v", answer)
	}
}

func proofsInOneTenant(t *testing.T, a, b *tenantSide) {
	k, err := jose.GenerateKey(jose.P256)
	check(t, err)
	by, err := k.Signer()
	check(t, err)
	proof := func(x *tenantSide, nonce string) string {
		t.Helper()
		claims, err := json.Marshal(map[string]any{"jti": "the same jti", "htm": "POST", "htu": x.issuer + "/oauth/token", "iat": time.Now().Unix(), "nonce": nonce})
		check(t, err)
		raw, err := by.SignProof(token.TypDPoP, claims)
		check(t, err)
		return raw
	}
	_, _, head := a.post("/oauth/token", a.assertion("without a nonce"), "DPoP", proof(a, "none"))
	nonce := head.Get("DPoP-Nonce")
	for _, x := range []*tenantSide{a, b} {
		if code, answer, _ := x.post("/oauth/token", x.assertion("with a proof"), "DPoP", proof(x, nonce)); code != "" {
			t.Errorf("%s: %v", x.id, answer)
		}
	}
	if code, answer, _ := b.post("/oauth/token", b.assertion("with a used proof"), "DPoP", proof(b, nonce)); code != watchword.DPoPInvalid {
		t.Errorf("a proof that was used: %v", answer)
	}
	if code, answer, _ := b.post("/oauth/token", b.assertion("with another tenant's proof"), "DPoP", proof(a, nonce)); code != watchword.DPoPInvalid {
		t.Errorf("a proof for another tenant's address: %v", answer)
	}
}

func codesInOneTenant(t *testing.T, a, b *tenantSide) {
	made, err := a.admin.CreateDevice(t.Context(), "lamp-2", nil, 0)
	check(t, err)
	_, err = b.admin.CreateDevice(t.Context(), "lamp-2", nil, 0)
	check(t, err)
	enroll := func(link string) error {
		t.Helper()
		d, err := device.OpenWith(filepath.Join(t.TempDir(), "lamp-2"), device.Options{Log: quiet.Log})
		check(t, err)
		defer func() { check(t, d.Close()) }()
		return d.Enroll(t.Context(), link)
	}
	link := made.Enrollment.Link
	if !strings.HasPrefix(link, a.issuer+"/e#") {
		t.Fatalf("the link is %s", link)
	}
	if err := enroll(b.issuer + strings.TrimPrefix(link, a.issuer)); watchword.CodeOf(err) != watchword.CodeInvalid {
		t.Errorf("the code of another tenant: %v", err)
	}
	check(t, enroll(link))
	if d, err := b.admin.Device(t.Context(), "lamp-2"); err != nil || d.State != watchword.New {
		t.Errorf("the device of another tenant is %s: %v", d.State, err)
	}
}

func tokensInOneTenant(t *testing.T, a, b *tenantSide) {
	access, err := a.lamp.NewToken(t.Context())
	check(t, err)
	claims := struct {
		JTI string `json:"jti"`
	}{}
	u, err := jose.ParseJWS(access, watchword.MaxToken)
	check(t, err)
	check(t, json.Unmarshal(u.UnverifiedPayload(), &claims))
	// At the host of another tenant it is refused, over every transport; elsewhere the issuer in it says where it belongs.
	for host, want := range map[string]packet.Reason{"other.example": packet.NotAuthorized, "localhost": packet.Success} {
		nc, err := tls.Dial("tcp", a.info.MQTTS, &tls.Config{ServerName: host, InsecureSkipVerify: true}) // the certificate names no such host
		check(t, err)
		if got := a.connackReason(nc, access); got != want {
			t.Errorf("at %s: CONNACK %#x, want %#x", host, got, want)
		}
	}
	other, err := b.lamp.NewToken(t.Context())
	check(t, err)
	client, err := a.lamp.HTTPClient()
	check(t, err)
	for _, x := range []struct {
		host, path, access string
		want               packet.Reason
	}{
		{"", "/mqtt", access, packet.Success},
		{"", "/mqtt", other, packet.Success}, // nothing but the token names a tenant
		{"", "/t/other/mqtt", other, packet.Success},
		{"", "/t/other/mqtt", access, packet.NotAuthorized},
		{"", "/t/none/mqtt", access, packet.NotAuthorized},
		{"", "/t/none/mqtt", other, packet.NotAuthorized},
		{"other.example", "/mqtt", other, packet.Success},
		{"other.example", "/mqtt", access, packet.NotAuthorized},
		{"other.example", "/t/other/mqtt", other, packet.Success},
		{"other.example", "/t/none/mqtt", other, packet.NotAuthorized},
	} {
		ws, _, err := websocket.Dial(t.Context(), a.info.Issuer+x.path, &websocket.DialOptions{HTTPClient: client, Host: x.host, Subprotocols: []string{"mqtt"}})
		check(t, err)
		if got := a.connackReason(websocket.NetConn(t.Context(), ws, websocket.MessageBinary), x.access); got != x.want {
			t.Errorf("over WebSocket at %s%s: CONNACK %#x, want %#x", x.host, x.path, got, x.want)
		}
	}
	if code, answer, _ := b.post("/oauth/introspect", url.Values{"token": {access}}, "Authorization", "Bearer "+access); code != watchword.IssuerMismatch {
		t.Errorf("as the caller's own: %v", answer)
	}
	form := b.assertion("for introspection")
	form.Set("token", access)
	if code, answer, _ := b.post("/oauth/introspect", form); code != "" || answer["active"] != false {
		t.Errorf("introspection: %v", answer)
	}
	ca := a.connectWith(access, "lamp-1")
	b.absent("the token", b.admin.RevokeToken(t.Context(), claims.JTI))
	form = b.assertion("for revocation")
	form.Set("token", access)
	if code, answer, _ := b.post("/oauth/revoke", form); code != "" {
		t.Errorf("revocation (RFC 7009): %v", answer)
	}
	if got := ca.publish("plant/alive", "yes"); got >= 0x80 {
		t.Errorf("PUBACK %#x", got)
	}
	check(t, a.admin.RevokeToken(t.Context(), claims.JTI))
	ca.wantEnd(packet.NotAuthorized)
	_, err = a.lamp.NewToken(t.Context()) // for the following steps
	check(t, err)
}

// connackReason connects as lamp-1 over a connection, and returns the reason code of CONNACK.
func (x *tenantSide) connackReason(nc net.Conn, access string) packet.Reason {
	x.Helper()
	c := &mqttClient{T: x.T, tenant: x.id, nc: nc, got: make(chan packet.Packet, 16)}
	defer func() { _ = nc.Close() }() // the server may have closed it
	go c.read()
	c.send(&packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "lamp-1", Username: "jwt", HasUser: true, HasPass: true, Password: []byte(access)})
	return next[*packet.Connack](c).Code
}

// A connection for a tenant that does not exist is refused, and is in no tenant's audit log.
func noTenantInNoLog(t *testing.T, a, b *tenantSide) {
	forged := func(issuer string) string {
		t.Helper()
		k, err := jose.GenerateKey(jose.P256)
		check(t, err)
		by, err := k.Signer()
		check(t, err)
		now := time.Now()
		raw, err := token.SignAccess(by, token.Grant{
			Issuer: issuer, Subject: watchword.Subject{ID: "lamp-1", Kind: watchword.Device}, Key: by.Public().ID(), JTI: "tok_1", Issued: now, Expires: now.Add(time.Minute),
		})
		check(t, err)
		return raw
	}
	refused := func(x *tenantSide, issuer string) (remote string) {
		t.Helper()
		c := x.connectWith(forged(issuer), "lamp-1")
		if got := c.connack.Code; got != packet.NotAuthorized {
			t.Errorf("a forged token of %s: CONNACK %#x", issuer, got)
		}
		return c.nc.LocalAddr().String()
	}
	none := []string{refused(a, a.info.Issuer+"/t/none"), refused(a, a.info.Issuer+"/t/nowhere")}
	for _, x := range []*tenantSide{a, b} {
		own := refused(x, x.issuer)
		for wait, found := testwait.Within(), false; !found; { // refusals are written in their order
			es, err := x.admin.FindEntries(t.Context(), admin.LogQuery{Kind: audit.RequestRefuse}, 1000)
			check(t, err)
			for _, e := range es {
				found = found || e.Data["remote"] == own
				if slices.Contains(none, e.Data["remote"]) {
					t.Fatalf("%s has an entry about a tenant that does not exist: %+v", x.id, e)
				}
			}
			wait.Check(t, "the entry of the refusal in "+string(x.id))
		}
	}
}

func policiesInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	for _, c := range []*mqttClient{ca, cb} {
		c.subscribe("plant/policy")
	}
	_, err := a.admin.ApplyPolicy(t.Context(), "lamps", []byte("for = {}\n[[allow]]\npublish = [\"elsewhere\"]\n"), -1)
	check(t, err)
	ca.wantEnd(packet.NotAuthorized)
	if got := a.connect("lamp-1").publish("plant/policy", "of a"); got != packet.NotAuthorized {
		t.Errorf("PUBACK %#x after the edit", got)
	}
	cb.publish("plant/policy", "of b")
	cb.wantMessages("plant/policy of b")
	text, version, err := b.admin.Policy(t.Context(), "lamps")
	check(t, err)
	if string(text) != lampPolicy || version != 1 {
		t.Errorf("version %d: %s", version, text)
	}
	_, err = a.admin.ApplyPolicy(t.Context(), "lamps", []byte(lampPolicy), -1)
	check(t, err)
	_, err = a.admin.SetLabels(t.Context(), "lamp-1", watchword.Labels{"kind": "of-a"}, -1)
	check(t, err)
	if d, err := b.admin.Device(t.Context(), "lamp-1"); err != nil || d.Labels["kind"] != "lamp" {
		t.Errorf("its labels are %v: %v", d.Labels, err)
	}
	n := 0
	check(t, b.admin.Devices(t.Context(), watchword.Labels{"kind": "of-a"}, "", func(api.Device) error { n++; return nil }))
	if n != 0 {
		t.Errorf("%d devices have the label", n)
	}
}

func logInOneTenant(t *testing.T, a, b *tenantSide) {
	_, err := a.admin.CreateDevice(t.Context(), "lamp-9", watchword.Labels{"only": "of-a"}, 0)
	check(t, err)
	for _, q := range []admin.LogQuery{{Object: "lamp-9"}, {Subject: "lamp-9"}, {Kind: "server.*"}, {Kind: "key.*"}} {
		es, err := b.admin.FindEntries(t.Context(), q, 100)
		check(t, err)
		if len(es) != 0 {
			t.Errorf("%+v: %d entries, of %s", q, len(es), es[0].Kind)
		}
	}
	var all bytes.Buffer
	check(t, b.admin.ExportLog(t.Context(), admin.LogQuery{}, &all))
	own := 0
	for line := range bytes.Lines(all.Bytes()) { // entries of others are hashes, which the tree is made of
		var e audit.ExportLine
		check(t, json.Unmarshal(line, &e))
		var body struct {
			Tenant watchword.TenantID `json:"tenant"`
		}
		if len(e.Body) == 0 {
			continue
		}
		check(t, json.Unmarshal([]byte(e.Body), &body))
		if own++; body.Tenant != b.id {
			t.Errorf("an entry of %q: %s", body.Tenant, e.Body)
		}
	}
	if own == 0 {
		t.Error("no entry of its own")
	}
}

func connectionQuotaInOneTenant(t *testing.T, a, b *tenantSide) {
	var open []*mqttClient
	for i := range 9 {
		c := a.connect("lamp-1/" + string(rune('a'+i)))
		if open = append(open, c); c.connack.Code != packet.Success {
			break
		}
	}
	if got := open[len(open)-1].connack.Code; got != packet.QuotaExceeded {
		t.Errorf("connection %d: CONNACK %#x, want %#x", len(open), got, packet.QuotaExceeded)
	}
	if got := b.connect("lamp-1/a").connack.Code; got != packet.Success {
		t.Errorf("CONNACK %#x where there is room", got)
	}
	for _, c := range open {
		check(t, c.nc.Close())
	}
}

func ratesInOneTenant(t *testing.T, a, b *tenantSide) {
	refused := false
	for i := 0; i < 20 && !refused; i++ {
		_, answer, _ := a.post("/oauth/token", a.assertion("rate-"+string(rune('a'+i))))
		refused = answer["error"] == "temporarily_unavailable"
	}
	if !refused {
		t.Error("20 tokens of one subject at once")
	}
	if code, answer, _ := b.post("/oauth/token", b.assertion("rate-a")); code != "" {
		t.Errorf("the rate of the same subject in another tenant: %v", answer)
	}
}

func suspensionInOneTenant(t *testing.T, a, b *tenantSide) {
	ca, cb := a.connect("lamp-1"), b.connect("lamp-1")
	_, err := a.admin.Suspend(t.Context(), "lamp-1", "of a")
	check(t, err)
	ca.wantEnd(packet.AdministrativeAction)
	if got := cb.publish("plant/alive", "yes"); got >= 0x80 {
		t.Errorf("PUBACK %#x", got)
	}
	if d, err := b.admin.Device(t.Context(), "lamp-1"); err != nil || d.State != watchword.Active {
		t.Errorf("it is %s: %v", d.State, err)
	}
	check(t, a.admin.DeleteDevice(t.Context(), "lamp-1"))
	check(t, b.lamp.Publish(t.Context(), "lux", 1))
	check(t, cb.nc.Close())
}
