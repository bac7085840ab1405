package attack_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// operatorKey is one machine of an operator or a service: a key that enrolled with a link.
type operatorKey struct {
	srv    *testServer
	id     watchword.SubjectID
	signer *jose.Signer
}

// enrollKey redeems a link of id with a new key.
func (srv *testServer) enrollKey(id watchword.SubjectID, link *api.Enrollment, name string) operatorKey {
	srv.t.Helper()
	k, a := srv.tryEnrollKey(id, link, name)
	if a.status != http.StatusOK {
		srv.t.Fatalf("%s did not enroll %q: %d %s", id, name, a.status, a.body)
	}
	return k
}

func (srv *testServer) tryEnrollKey(id watchword.SubjectID, link *api.Enrollment, name string) (operatorKey, answer) {
	srv.t.Helper()
	_, signer := newKey(srv.t, jose.P256)
	proof, err := token.SignEnrollment(signer, srv.info.URL, token.CodeHashClaim(link.Code), "", time.Now())
	must(srv.t, err)
	body, err := json.Marshal(api.EnrollRequest{Code: link.Code, Keys: api.NamedKeys{PublicKeys: api.PublicKeys{Sign: signer.Public().JWK()}, Name: name}, Proof: proof})
	must(srv.t, err)
	return operatorKey{srv, id, signer}, srv.request("POST", "/v1/enroll", "", string(body))
}

func (k operatorKey) kid() watchword.KeyID { return k.signer.Public().ID() }

// exchange asks for a token, which is bound to bind if that is not nil.
func (k operatorKey) exchange(bind *jose.Signer, scope string) answer {
	k.srv.t.Helper()
	assertion, err := token.SignAssertion(k.signer, k.id, k.srv.info.URL, time.Now(), time.Minute)
	must(k.srv.t, err)
	form := formWith(grant, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", assertion)
	if scope != "" {
		form = formWith(form, "scope", scope)
	}
	head := []string{}
	if bind != nil {
		head = append(head, "DPoP: "+prove(k.srv.t, bind, "POST", k.srv.url+"/oauth/token", k.srv.nonce(), ""))
	}
	return k.srv.post("/oauth/token", nil, form, head...)
}

// bearer returns a bearer token.
func (k operatorKey) bearer() string {
	k.srv.t.Helper()
	a := k.exchange(nil, "")
	if a.status != http.StatusOK {
		k.srv.t.Fatalf("no token: %d %s", a.status, a.body)
	}
	return a.member(k.srv.t, "access_token")
}

// proved sends a request with a token that is bound to the key, and with the proof of it.
func (k operatorKey) proved(method, path, body, scope string) answer {
	k.srv.t.Helper()
	return k.provedBy(k.signer, method, path, body, scope)
}

// provedBy sends a request with a token that is bound to the key bind, and with the proof of it.
func (k operatorKey) provedBy(bind *jose.Signer, method, path, body, scope string) answer {
	k.srv.t.Helper()
	a := k.exchange(bind, scope)
	if a.status != http.StatusOK {
		k.srv.t.Fatalf("no bound token: %d %s", a.status, a.body)
	}
	tok := a.member(k.srv.t, "access_token")
	return k.srv.send(method, path, body, http.Header{
		"Authorization": {"DPoP " + tok}, "Dpop": {prove(k.srv.t, bind, method, k.srv.url+path, k.srv.nonce(), tok)}, "Content-Type": {"application/json"},
	})
}

// mqtt connects with a token and subscribes to the events of all devices.
func (k operatorKey) mqtt(tok, client string) *pahoClient {
	t := k.srv.t
	t.Helper()
	pem, err := os.ReadFile(k.srv.info.CAFile)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	nc, err := tls.Dial("tcp", k.srv.info.MQTTS, &tls.Config{RootCAs: pool})
	must(t, err)
	w := &pahoClient{got: make(chan *paho.Publish, 16), ended: make(chan *paho.Disconnect, 1)}
	w.client = paho.NewClient(paho.ClientConfig{
		Conn:               packets.NewThreadSafeConn(nc),
		OnPublishReceived:  []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) { w.got <- r.Packet; return true, nil }},
		OnServerDisconnect: func(p *paho.Disconnect) { w.ended <- p },
	})
	w.ack, err = w.client.Connect(t.Context(), &paho.Connect{ClientID: client, CleanStart: true, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(tok), PasswordFlag: true})
	must(t, err)
	_, err = w.client.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/+/events/#"}}})
	must(t, err)
	return w
}

// ended waits for the DISCONNECT of the server, and returns its reason string.
func (w *pahoClient) disconnected(t testing.TB) string {
	t.Helper()
	select {
	case d := <-w.ended:
		if d.Properties == nil {
			return ""
		}
		return d.Properties.ReasonString
	case <-time.After(20 * time.Second):
		t.Fatal("no DISCONNECT")
		return ""
	}
}

// A colleague loses the laptop: its key is revoked, its sessions and tokens end at once, and the desktop's go on.
func TestOneKeyOfAnOperatorIsRevoked(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	vera, err := srv.admin.CreateOperator(ctx, "vera", "viewer", 0)
	must(t, err)
	desktop := srv.enrollKey("vera", vera.Enrollment, "desktop")
	link, err := srv.admin.Operators().Link(ctx, "vera", 0, 0)
	must(t, err)
	laptop := srv.enrollKey("vera", &link, "laptop")
	if _, a := srv.tryEnrollKey("vera", &link, "another"); a.code != watchword.CodeInvalid {
		t.Errorf("the link was used twice: %d %s", a.status, a.body)
	}
	keys, err := srv.admin.Operators().Keys(ctx, "vera")
	must(t, err)
	if len(keys) != 2 || keys[0].Name != "desktop" || keys[1].Name != "laptop" || keys[1].ID != laptop.kid() || keys[1].EndsAt != nil {
		t.Errorf("keys %+v", keys)
	}

	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	kept, lost := desktop.bearer(), laptop.bearer()
	keptStream, lostStream := srv.stream("/v1/events", kept), srv.stream("/v1/events", lost)
	next(t, keptStream, "session")
	next(t, lostStream, "session")
	keptMQTT, lostMQTT := desktop.mqtt(kept, "vera/desktop"), laptop.mqtt(lost, "vera/laptop")
	must(t, srv.admin.Operators().RevokeKey(ctx, "vera", laptop.kid()))

	must(t, lamp.Publish(ctx, "lux", "after the answer"))
	if got := endCode(t, lostStream); got != watchword.TokenRevoked {
		t.Errorf("the stream of the revoked key ended with %q", got)
	}
	if got := lostMQTT.disconnected(t); !strings.HasPrefix(got, "token_revoked") {
		t.Errorf("the connection of the revoked key ended with %q", got)
	}
	if e := next(t, keptStream, "event"); !strings.Contains(e.Data, "after the answer") {
		t.Errorf("the stream of the other key has %s", e.Data)
	}
	select {
	case m := <-keptMQTT.got:
		if !strings.Contains(string(m.Payload), "after the answer") {
			t.Errorf("the connection of the other key has %s", m.Payload)
		}
	case <-time.After(20 * time.Second):
		t.Error("the connection of the other key has no message")
	}
	select {
	case m := <-lostMQTT.got:
		t.Errorf("the connection of the revoked key got %s", m.Payload)
	default: // its end came behind
	}
	if a := srv.request("GET", "/v1/self", lost, ""); a.code != watchword.TokenRevoked {
		t.Errorf("a token of the revoked key: %d %s", a.status, a.body)
	}
	if a := srv.request("GET", "/v1/self", kept, ""); a.status != http.StatusOK {
		t.Errorf("a token of the other key: %d %s", a.status, a.body)
	}
	if a := laptop.exchange(nil, ""); a.status != http.StatusUnauthorized || a.oauth != "invalid_client" {
		t.Errorf("an assertion by the revoked key: %d %s", a.status, a.body)
	}
	// The other key's token is not bound to the revoked key, whose holder would have it for its life.
	if a := desktop.exchange(laptop.signer, ""); a.status != http.StatusBadRequest || a.oauth != "invalid_dpop_proof" {
		t.Errorf("a token bound to the revoked key: %d %s", a.status, a.body)
	}
	if a := desktop.exchange(nil, ""); a.status != http.StatusOK {
		t.Errorf("an assertion by the other key: %d %s", a.status, a.body)
	}
	revoked := 0
	for _, e := range srv.allEntries() {
		if e.Kind == "operator.key_revoke" && e.Object == "vera" && e.Data["sign"] == string(laptop.kid()) && e.Actor == "operator" {
			revoked++
		}
	}
	if revoked != 1 {
		t.Errorf("%d entries say that the key was revoked", revoked)
	}
	wants(t, "an unknown key", srv.admin.Operators().RevokeKey(ctx, "vera", "no-such"), watchword.NotFound)
	wants(t, "the last key of the last owner", srv.admin.RevokeOwnKey(ctx, mustValue(srv.admin.OwnKeys(ctx))(t)[0].ID), watchword.Conflict) // the client proves its key
	wants(t, "an operator's key as a service's", srv.admin.Services().RevokeKey(ctx, "vera", desktop.kid()), watchword.NotFound)
}

// An operator makes a link for a second machine, with a token that is proved to be its own and that has all its permissions.
func TestOperatorAddsOwnKey(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	vera, err := srv.admin.CreateOperator(ctx, "vera", "viewer", 0)
	must(t, err)
	desktop := srv.enrollKey("vera", vera.Enrollment, "desktop")
	const link, keys = "/v1/self/link", "/v1/self/keys/"
	for _, path := range []string{link, "/v1/self/keys/" + string(desktop.kid())} {
		method := map[bool]string{true: "POST", false: "DELETE"}[path == link]
		if a := srv.request(method, path, desktop.bearer(), ""); a.code != watchword.ProofRequired {
			t.Errorf("%s with a bearer token: %d %s", path, a.status, a.body)
		}
		if a := desktop.proved(method, path, "", "get,post,delete:api:/v1/self/#"); a.code != watchword.Denied {
			t.Errorf("%s with some permissions: %d %s", path, a.status, a.body)
		}
	}
	a := desktop.proved("POST", link, `{"ttl":"1h","key_ttl":"12h"}`, "")
	var made api.Enrollment
	must(t, json.Unmarshal([]byte(a.body), &made))
	if a.status != http.StatusOK || made.KeyEndsAt == nil || made.ExpiresAt.After(*made.KeyEndsAt) || made.KeyEndsAt.Nanosecond() != 0 {
		t.Fatalf("a link for the own second key: %d %s", a.status, a.body)
	}
	console := srv.enrollKey("vera", &made, "console")
	var self api.Self
	must(t, json.Unmarshal([]byte(srv.request("GET", "/v1/self", console.bearer(), "").body), &self))
	if self.Token.KeyEndsAt == nil || !self.Token.KeyEndsAt.Equal(*made.KeyEndsAt) {
		t.Errorf("the new key ends at %v, the link says %v", self.Token.KeyEndsAt, made.KeyEndsAt)
	}
	// A key with an end makes no key that ends later.
	for _, body := range []string{``, `{"key_ttl":"8760h"}`} {
		a = console.proved("POST", link, body, "")
		var later api.Enrollment
		must(t, json.Unmarshal([]byte(a.body), &later))
		if a.status != http.StatusOK || later.KeyEndsAt == nil || later.KeyEndsAt.After(*made.KeyEndsAt) {
			t.Errorf("a link by a key with an end: %d %s", a.status, a.body)
		}
		made.Code, made.Link = later.Code, later.Link
	}
	// The link that the console made goes with the console's key.
	if a := desktop.proved("DELETE", keys+string(console.kid()), "", ""); a.status != http.StatusNoContent {
		t.Errorf("revoking the own second key: %d %s", a.status, a.body)
	}
	if _, a := srv.tryEnrollKey("vera", &made, "thief"); a.code != watchword.CodeInvalid {
		t.Errorf("a link that the revoked key made: %d %s", a.status, a.body)
	}
	// Who may not give what vera has makes no link for her, and revokes none of her keys.
	walt, err := srv.admin.CreateOperator(ctx, "walt", "auditor", 0)
	must(t, err)
	_, err = srv.admin.ApplyPolicy(ctx, "meddlers", []byte("for = {}\nkinds = [\"operator\"]\n[[allow]]\nget = [\"/v1/operators/#\"]\npost = [\"/v1/operators/#\"]\ndelete = [\"/v1/operators/#\"]\n"), -1)
	must(t, err)
	meddler := srv.enrollKey("walt", walt.Enrollment, "")
	for _, op := range []string{"POST /v1/operators/vera/link", "DELETE /v1/operators/vera/keys/" + string(desktop.kid()), "POST /v1/operators/operator/link"} {
		method, path, _ := strings.Cut(op, " ")
		if a := meddler.proved(method, path, "", ""); a.code != watchword.ExceedsOwn {
			t.Errorf("%s by one who has less: %d %s", op, a.status, a.body)
		}
	}
	// The SDK proves its key by itself.
	own, err := srv.admin.OwnLink(ctx, time.Hour, time.Hour)
	must(t, err)
	second := srv.enrollKey("operator", &own, "second")
	must(t, srv.admin.RevokeOwnKey(ctx, second.kid()))
	// At most 8 keys.
	for n := 1; ; n++ {
		a := desktop.proved("POST", link, "", "")
		if a.status != http.StatusOK {
			if a.code != watchword.Conflict || n != watchword.MaxSignKeys {
				t.Errorf("link %d: %d %s", n, a.status, a.body)
			}
			break
		}
		must(t, json.Unmarshal([]byte(a.body), &made))
		srv.enrollKey("vera", &made, "more")
	}
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	if a := srv.send("POST", link, "", http.Header{"Authorization": {"Bearer " + srv.token(lamp)}}); a.code != watchword.ProofRequired {
		t.Errorf("a device with a bearer token: %d %s", a.status, a.body)
	}
	proving := operatorKey{srv, "lamp-1", deviceSigner(t, lamp)}
	if a := proving.proved("POST", link, "", ""); a.code != watchword.Conflict {
		t.Errorf("a device's link for itself: %d %s", a.status, a.body)
	}
}

// What was issued to a key ends at the end of the key: tokens, streams, MQTT connections. Then the key gets nothing any more.
func TestSessionsEndWithTheirKey(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.IssueRate = 1 << 20 })
	ctx := t.Context()
	vera, err := srv.admin.CreateOperator(ctx, "vera", "viewer", 0)
	must(t, err)
	desktop := srv.enrollKey("vera", vera.Enrollment, "desktop")
	kept := srv.stream("/v1/events", desktop.bearer())
	next(t, kept, "session")
	link, err := srv.admin.Operators().Link(ctx, "vera", 0, 4*time.Second)
	must(t, err)
	short := srv.enrollKey("vera", &link, "short")
	end := *link.KeyEndsAt
	a := short.exchange(nil, "")
	var issued struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	must(t, json.Unmarshal([]byte(a.body), &issued))
	if issued.ExpiresIn < 1 || issued.ExpiresIn > 4 {
		t.Errorf("a token of a key that ends in 4 s at most lives for %d s", issued.ExpiresIn)
	}
	stream := srv.stream("/v1/events", issued.AccessToken)
	next(t, stream, "session")
	mqtt := short.mqtt(issued.AccessToken, "vera/short")
	if got := endCode(t, stream); got != watchword.TokenExpired {
		t.Errorf("the stream ended with %q", got)
	}
	if now := time.Now(); now.Before(end) {
		t.Errorf("the stream ended %s before its key", end.Sub(now))
	}
	if got := mqtt.disconnected(t); !strings.HasPrefix(got, "token_expired") {
		t.Errorf("the connection ended with %q", got)
	}
	if a := short.exchange(nil, ""); a.oauth != "invalid_client" {
		t.Errorf("an assertion after the end: %d %s", a.status, a.body)
	}
	if a := srv.request("GET", "/v1/self", issued.AccessToken, ""); a.code != watchword.TokenExpired {
		t.Errorf("a token after the end: %d %s", a.status, a.body)
	}
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	must(t, lamp.Publish(ctx, "lux", 1))
	next(t, kept, "event")
}

// What an operator may give is compared with its policy, so a narrowed token must not give at all: it would give more than it has.
func TestNarrowedTokenMakesNoOperator(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.IssueRate = 1 << 20 })
	ctx := t.Context()
	made, err := srv.admin.CreateOperator(ctx, "olga", "owner", 0)
	must(t, err)
	olga := srv.enrollKey("olga", made.Enrollment, "desktop")
	_, err = srv.admin.CreateOperator(ctx, "vera", "viewer", 0)
	must(t, err)
	_, err = srv.admin.CreateService(ctx, "billing", nil, 0)
	must(t, err)
	for name, operation := range map[string]func() (path, body string){
		"POST operators":             func() (string, string) { return "/v1/operators", object("id", "mallory", "role", "owner") },
		"PUT operators/vera/role":    func() (string, string) { return "/v1/operators/vera/role", object("role", "owner") },
		"POST operators/vera/link":   func() (string, string) { return "/v1/operators/vera/link", "{}" },
		"POST services/billing/link": func() (string, string) { return "/v1/services/billing/link", "{}" },
		"POST logins/CODE/approve new": func() (string, string) {
			l := srv.newLoginClient(time.Now).ask()
			return "/v1/logins/" + l.UserCode + "/approve", object("sign", l.sign.Public().ID(), "pin", l.pin, "id", "eve", "role", "owner")
		},
	} {
		method, _, _ := strings.Cut(name, " ")
		path, body := operation()
		if a := olga.proved(method, path, body, "get,post,put,delete:api:/#"); a.code != watchword.Denied {
			t.Errorf("%s with some permissions: %d %s", name, a.status, a.body)
		}
		if a := olga.proved(method, path, body, ""); a.status/100 != 2 {
			t.Errorf("%s with all permissions: %d %s", name, a.status, a.body)
		}
	}
}

// Every operation that changes which keys a subject has, by the subject itself: a token that is not bound, that is bound to a key
// which is not the subject's, or that has some of its permissions, changes nothing. So neither a stolen token nor a stolen
// assertion becomes a key.
func TestOwnKeysNeedAProofOfAnOwnKey(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.IssueRate = 1 << 20 })
	ctx := t.Context()
	made, err := srv.admin.CreateOperator(ctx, "olga", "owner", 0)
	must(t, err)
	desktop := srv.enrollKey("olga", made.Enrollment, "desktop")
	_, foreign := newKey(t, jose.P256)
	// further gives olga a key to revoke, by another operator.
	further := func() string {
		link, err := srv.admin.Operators().Link(ctx, "olga", 0, 0)
		must(t, err)
		return string(srv.enrollKey("olga", &link, "further").kid())
	}
	for name, operation := range map[string]func() (path, body string){
		"POST self/link":               func() (string, string) { return "/v1/self/link", "{}" },
		"POST operators/olga/link":     func() (string, string) { return "/v1/operators/olga/link", "{}" },
		"DELETE self/keys/K":           func() (string, string) { return "/v1/self/keys/" + further(), "" },
		"DELETE operators/olga/keys/K": func() (string, string) { return "/v1/operators/olga/keys/" + further(), "" },
		"POST logins/CODE/approve": func() (string, string) {
			l := srv.newLoginClient(time.Now).ask()
			return "/v1/logins/" + l.UserCode + "/approve", object("sign", l.sign.Public().ID(), "pin", l.pin, "id", "olga")
		},
	} {
		method, _, _ := strings.Cut(name, " ")
		path, body := operation()
		before := len(mustValue(srv.admin.Operators().Keys(ctx, "olga"))(t))
		if a := srv.send(method, path, body, http.Header{"Authorization": {"Bearer " + desktop.bearer()}, "Content-Type": {"application/json"}}); a.code != watchword.ProofRequired {
			t.Errorf("%s with a bearer token: %d %s", name, a.status, a.body)
		}
		if a := desktop.provedBy(foreign, method, path, body, ""); a.code != watchword.ProofRequired {
			t.Errorf("%s with a token that is bound to another key: %d %s", name, a.status, a.body)
		}
		if a := desktop.proved(method, path, body, "get,post,put,delete:api:/#"); a.code != watchword.Denied {
			t.Errorf("%s with some permissions: %d %s", name, a.status, a.body)
		}
		if after := len(mustValue(srv.admin.Operators().Keys(ctx, "olga"))(t)); after != before {
			t.Errorf("%s: %d keys, then %d", name, before, after)
		}
		if a := desktop.proved(method, path, body, ""); a.status != http.StatusOK && a.status != http.StatusNoContent {
			t.Errorf("%s with a proof of the own key: %d %s", name, a.status, a.body)
		}
	}

	// The key that an operator approves for itself ends with the key that approved it.
	link, err := srv.admin.Operators().Link(ctx, "olga", 0, 12*time.Hour)
	must(t, err)
	short := srv.enrollKey("olga", &link, "short")
	l := srv.newLoginClient(time.Now).ask()
	if a := short.proved("POST", "/v1/logins/"+l.UserCode+"/approve", object("sign", l.sign.Public().ID(), "pin", l.pin, "id", "olga"), ""); a.status != http.StatusOK {
		t.Fatalf("approving an own login: %d %s", a.status, a.body)
	}
	keys, err := srv.admin.Operators().Keys(ctx, "olga")
	must(t, err)
	i := slices.IndexFunc(keys, func(k api.DeviceKey) bool { return k.ID == l.sign.Public().ID() })
	if i < 0 || keys[i].EndsAt == nil || !keys[i].EndsAt.Equal(*link.KeyEndsAt) {
		t.Errorf("the approved key is %d of %+v, the approving one ends at %s", i, keys, link.KeyEndsAt)
	}
	ends := ""
	for _, e := range srv.allEntries() {
		if e.Kind == "operator.enroll" && e.Data["sign"] == string(l.sign.Public().ID()) {
			ends = e.Data["key_ends"]
		}
	}
	if ends != link.KeyEndsAt.UTC().Format(time.RFC3339) { // a restore applies the entry again
		t.Errorf("the entry says that the key ends at %q", ends)
	}
	// Another owner's approval gives the key no end.
	l = srv.newLoginClient(time.Now).ask()
	_, err = srv.admin.ApproveLogin(ctx, l.request(), "olga", "", "", 0)
	must(t, err)
	keys, err = srv.admin.Operators().Keys(ctx, "olga")
	must(t, err)
	if i := slices.IndexFunc(keys, func(k api.DeviceKey) bool { return k.ID == l.sign.Public().ID() }); i < 0 || keys[i].EndsAt != nil {
		t.Errorf("approved by another owner: %d of %+v", i, keys)
	}
}

// A subject that must prove its key is not served for the proof of another key, which needs one stolen assertion and no key of the subject.
func TestAProofOfAnotherKeyIsNoProof(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	d := srv.enroll("lamp-1", device.Options{}, nil)
	gate := srv.enroll("gate-1", device.Options{}, nil)
	_, err := srv.admin.ApplyPolicy(ctx, "inspectors", []byte(inspectors), 0)
	must(t, err)
	_, foreign := newKey(t, jose.P256)
	tok := srv.bound(d, foreign)
	self := func() answer {
		return srv.send("GET", "/v1/self", "", http.Header{"Authorization": {"DPoP " + tok}, "Dpop": {prove(t, foreign, "GET", srv.url+"/v1/self", srv.nonce(), tok)}})
	}
	if a := self(); a.status != http.StatusOK {
		t.Fatalf("while no proof is required: %d %s", a.status, a.body)
	}
	if c, a := srv.introspect(gate, tok); !c.Active {
		t.Fatalf("introspected while no proof is required: %d %s", a.status, a.body)
	}
	_, err = srv.admin.SetProof(ctx, "lamp-1", watchword.RequireProof)
	must(t, err)
	if a := self(); a.code != watchword.ProofRequired {
		t.Errorf("a token that is bound to another key: %d %s", a.status, a.body)
	}
	if c, a := srv.introspect(gate, tok); c.Active {
		t.Errorf("introspected: %s", a.body)
	}
	lamp := operatorKey{srv, "lamp-1", deviceSigner(t, d)}
	if a := lamp.exchange(foreign, ""); a.code != watchword.ProofRequired {
		t.Errorf("a new one: %d %s", a.status, a.body)
	}
	if a := lamp.proved("GET", "/v1/self", "", ""); a.status != http.StatusOK {
		t.Errorf("with a proof of the own key: %d %s", a.status, a.body)
	}
}

// An end that a key gets counts at once: for its tokens, for a stream that is open, and for links that were made with it.
func TestKeyGetsAnEndWhileItIsUsed(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	s, err := srv.admin.CreateOperatorWith(ctx, api.CreateOperatorRequest{ID: "vera", Role: "viewer", KeyTTL: "10h"})
	must(t, err)
	laptop := srv.enrollKey("vera", s.Enrollment, "laptop")
	link, err := srv.admin.Operators().Link(ctx, "vera", 0, 0)
	must(t, err)
	desktop := srv.enrollKey("vera", &link, "desktop")
	tok, other := laptop.bearer(), desktop.bearer()
	events, rest := srv.stream("/v1/events", tok), srv.stream("/v1/events", other)
	self := func(token string, want int) {
		t.Helper()
		if a := srv.request("GET", "/v1/self", token, ""); a.status != want {
			t.Errorf("a request: %d %s, want %d", a.status, a.body, want)
		}
	}
	self(tok, http.StatusOK)
	end := func(of watchword.KeyID, at time.Time, want int, code string) {
		t.Helper()
		body, err := json.Marshal(api.KeyEndRequest{EndsAt: at})
		must(t, err)
		if a := desktop.proved("PUT", "/v1/self/keys/"+string(of)+"/end", string(body), ""); a.status != want || code != "" && !strings.Contains(a.body, code) {
			t.Errorf("the end %s: %d %s, want %d %s", at, a.status, a.body, want, code)
		}
	}
	end(laptop.kid(), time.Now().Add(20*time.Hour), http.StatusConflict, "conflict")
	end("no-such", time.Now().Add(time.Hour), http.StatusNotFound, "not_found")
	if a := srv.request("PUT", "/v1/self/keys/"+string(laptop.kid())+"/end", other, `{"ends_at":"2030-01-01T00:00:00Z"}`, "Content-Type: application/json"); !strings.Contains(a.body, "proof_required") {
		t.Errorf("by a bearer token: %d %s", a.status, a.body)
	}
	if a := desktop.proved("PUT", "/v1/operators/operator/keys/"+string(laptop.kid())+"/end", `{"ends_at":"2030-01-01T00:00:00Z"}`, ""); a.status != http.StatusForbidden {
		t.Errorf("by a viewer, of an owner: %d %s", a.status, a.body)
	}
	at := time.Now().Add(2 * time.Second).Truncate(time.Second)
	keys, err := srv.admin.Operators().SetKeyEnd(ctx, "vera", laptop.kid(), at)
	must(t, err)
	if !slices.ContainsFunc(keys, func(k api.DeviceKey) bool { return k.ID == laptop.kid() && k.EndsAt != nil && k.EndsAt.Equal(at) }) {
		t.Errorf("the keys are %+v", keys)
	}
	deadline := time.After(10 * time.Second)
	for open := true; open; {
		select {
		case _, open = <-events:
		case <-deadline:
			t.Fatal("the stream of the key goes on after its end")
		}
	}
	if time.Now().Before(at) {
		t.Errorf("the stream ended %s before the key", time.Until(at))
	}
	self(tok, http.StatusUnauthorized)
	if a := laptop.exchange(nil, ""); a.status == http.StatusOK {
		t.Errorf("a token after the end: %s", a.body)
	}
	self(other, http.StatusOK)
	select {
	case _, open := <-rest:
		if !open {
			t.Error("the stream of the other key has ended")
		}
	default:
	}
	owner, err := srv.admin.Operators().Keys(ctx, "operator")
	must(t, err)
	_, err = srv.admin.Operators().SetKeyEnd(ctx, "operator", owner[0].ID, time.Now().Add(time.Hour))
	wants(t, "the last key of the last owner", err, watchword.Conflict)
}
