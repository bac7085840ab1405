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
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// loginClient is the client of a person without a link, and no CLI.
type loginClient struct {
	srv  *testServer
	now  func() time.Time
	pin  string
	sign *jose.Signer
	api.RequestLoginResponse
}

func (srv *testServer) newLoginClient(now func() time.Time) *loginClient {
	srv.t.Helper()
	_, sign := newKey(srv.t, "P-256")
	pin, err := srv.admin.TrustPin(srv.t.Context())
	must(srv.t, err)
	return &loginClient{srv: srv, now: now, pin: pin, sign: sign}
}

func (c *loginClient) proof(codeHash string) string {
	c.srv.t.Helper()
	p, err := token.SignLogin(c.sign, c.srv.url, codeHash, c.pin, c.now())
	must(c.srv.t, err)
	return p
}

// body is the request of a login, with more members.
func (c *loginClient) body(more ...any) string {
	return object(append([]any{"key", json.RawMessage(c.sign.Public().JWK()), "proof", c.proof(token.LoginHashClaim())}, more...)...)
}

func (c *loginClient) ask() *loginClient {
	c.srv.t.Helper()
	a := c.srv.request("POST", "/v1/logins", "", c.body())
	if a.status != http.StatusOK {
		c.srv.t.Fatalf("asking: %+v", a)
	}
	must(c.srv.t, json.Unmarshal([]byte(a.body), &c.RequestLoginResponse))
	return c
}

func (c *loginClient) poll() answer {
	c.srv.t.Helper()
	return c.srv.request("POST", "/v1/logins/poll", "", object("login_code", c.LoginCode, "proof", c.proof(token.CodeHashClaim(c.LoginCode))))
}

// request is what the person's screen shows.
func (c *loginClient) request() token.LoginRequest {
	return token.LoginRequest{Server: c.srv.url, UserCode: c.UserCode, Key: c.sign.Public().ID(), Pin: c.pin}
}

// approve is the request of an approver with that token.
func (c *loginClient) approve(tok, id, role string) answer {
	c.srv.t.Helper()
	body := object("sign", c.sign.Public().ID(), "pin", c.pin, "id", id)
	if role != "" {
		body = object("sign", c.sign.Public().ID(), "pin", c.pin, "id", id, "role", role)
	}
	return c.srv.request("POST", "/v1/logins/"+c.UserCode+"/approve", tok, body)
}

// self is the status of a request by the client's key.
func (c *loginClient) self(id watchword.SubjectID) int {
	c.srv.t.Helper()
	assertion, err := token.SignAssertion(c.sign, id, c.srv.url, c.now(), token.AssertionLifetime)
	must(c.srv.t, err)
	a := c.srv.exchangeAssertion(assertion)
	if a.status != http.StatusOK {
		return a.status
	}
	return c.srv.request("GET", "/v1/self", a.member(c.srv.t, "access_token"), "").status
}

func TestLoginWithoutALink(t *testing.T) {
	srv, c := servePairing(t)
	ctx := t.Context()
	laptop := srv.newLoginClient(c.now).ask()
	if len(laptop.UserCode) != 9 || laptop.ExpiresIn != 600 || laptop.Interval != 5 || !token.WellFormedCode(laptop.LoginCode) || strings.Contains(srv.log.String(), laptop.LoginCode) {
		t.Errorf("asked: %+v", laptop.RequestLoginResponse)
	}
	if a := laptop.poll(); a.status != http.StatusBadRequest || a.code != watchword.PairingPending {
		t.Errorf("pending: %+v", a)
	}
	if a := laptop.poll(); a.code != watchword.PairingSlow || a.header.Get("Retry-After") != "10" {
		t.Errorf("at once again: %+v", a)
	}
	if strings.Contains(srv.log.String(), string(watchword.PairingPending)) {
		t.Error("waiting is in the log")
	}
	shown, err := srv.admin.Login(ctx, strings.ToLower(laptop.UserCode))
	must(t, err)
	if shown.Sign != laptop.sign.Public().ID() || shown.State != "pending" || shown.Remote != "127.0.0.1" || shown.Operator != "" {
		t.Errorf("shown: %+v", shown)
	}

	// Nothing but all of it approves: the code alone, another key, another pin.
	other := laptop.request()
	for name, edit := range map[string]func(r *token.LoginRequest){
		"another key": func(r *token.LoginRequest) { r.Key = srv.newLoginClient(c.now).sign.Public().ID() },
		"another pin": func(r *token.LoginRequest) { r.Pin = strings.Repeat("p", 43) },
	} {
		r := other
		edit(&r)
		_, err := srv.admin.ApproveLogin(ctx, r, "vera", "viewer", "", 0)
		wants(t, name, err, watchword.Conflict)
	}
	for name, body := range map[string]string{
		"the code alone": object("id", "vera", "role", "viewer"),
		"no pin":         object("id", "vera", "role", "viewer", "sign", laptop.sign.Public().ID()),
		"no key":         object("id", "vera", "role", "viewer", "pin", laptop.pin),
	} {
		if a := srv.request("POST", "/v1/logins/"+laptop.UserCode+"/approve", mustValue(srv.admin.Tokens().Get(ctx))(t), body); a.code != watchword.BadRequest {
			t.Errorf("%s: %+v", name, a)
		}
	}
	_, err = srv.admin.ApproveLogin(ctx, other, "vera", "no-such-role", "", 0)
	wants(t, "an unknown role", err, watchword.BadRequest)
	_, err = srv.admin.ApproveLogin(ctx, other, "vera", "", "", 0)
	wants(t, "no role for a new operator", err, watchword.BadRequest)
	if got := laptop.self("vera"); got != http.StatusUnauthorized {
		t.Errorf("before the approval: %d", got)
	}
	_, err = srv.admin.ApproveLogin(ctx, other, "vera", "viewer", "laptop", 100*365*24*time.Hour)
	wants(t, "a key for a hundred years", err, watchword.BadRequest)
	s, err := srv.admin.ApproveLogin(ctx, other, "vera", "viewer", "laptop", time.Hour)
	must(t, err)
	if ends := s.Keys[0].EndsAt; ends == nil || time.Until(*ends) > time.Hour || time.Until(*ends) < 55*time.Minute || ends.Nanosecond() != 0 {
		t.Errorf("the key of an hour ends at %v", ends)
	}
	if s.ID != "vera" || s.Role != "viewer" || s.Kind != watchword.Operator || s.State != watchword.Active || s.Keys[0].Name != "laptop" {
		t.Errorf("approved: %+v", s)
	}
	if got := laptop.self("vera"); got != http.StatusOK {
		t.Errorf("after the approval: %d", got)
	}
	var answered api.EnrollResponse
	must(t, json.Unmarshal([]byte(laptop.poll().body), &answered))
	if answered.ID != "vera" || answered.Kind != watchword.Operator || answered.HTTPS != srv.url {
		t.Errorf("answered: %+v", answered)
	}
	_, err = srv.admin.ApproveLogin(ctx, other, "eve", "viewer", "", 0)
	wants(t, "a second approval", err, watchword.Conflict)
	_, err = srv.admin.RejectLogin(ctx, laptop.UserCode)
	wants(t, "rejecting what is approved", err, watchword.Conflict)
	srv.waitForRefusals(audit.KindFor(watchword.Operator, audit.DeviceEnroll), watchword.Conflict, 3)

	// A further key of the same operator: both count.
	desktop := srv.newLoginClient(c.now).ask()
	_, err = srv.admin.ApproveLogin(ctx, desktop.request(), "vera", "owner", "", 0)
	wants(t, "another role with a further key", err, watchword.BadRequest)
	_, err = srv.admin.ApproveLogin(ctx, desktop.request(), "vera", "", "", 0)
	must(t, err)
	if a, b := laptop.self("vera"), desktop.self("vera"); a != http.StatusOK || b != http.StatusOK {
		t.Errorf("two keys: %d and %d", a, b)
	}
	if s, err := srv.admin.Operators().Get(ctx, "vera"); err != nil || s.Role != "viewer" || len(s.Keys) != 2 {
		t.Errorf("got %+v, %v", s, err)
	}
	c.forward(5 * time.Minute)
	if a := desktop.poll(); a.code != watchword.PairingExpired {
		t.Errorf("minutes after the approval: %+v", a)
	}

	// Rejected, and expired.
	tablet := srv.newLoginClient(c.now).ask()
	_, err = srv.admin.RejectLogin(ctx, tablet.UserCode)
	must(t, err)
	if a := tablet.poll(); a.code != watchword.PairingRejected {
		t.Errorf("rejected: %+v", a)
	}
	late := srv.newLoginClient(c.now).ask()
	c.forward(10 * time.Minute)
	if a := late.poll(); a.code != watchword.PairingExpired {
		t.Errorf("expired: %+v", a)
	}
}

// What a request for a login must not say or be: it proposes nothing, and its proof is for this purpose, this server and this key.
func TestLoginRequestsAreRefused(t *testing.T) {
	srv, c := servePairing(t)
	l, other := srv.newLoginClient(c.now), srv.newLoginClient(c.now)
	device := srv.newUnenrolled("lamp-1", c.now)
	device.sign = l.sign
	key := json.RawMessage(l.sign.Public().JWK())
	elsewhere := *l
	elsewhere.pin = strings.Repeat("p", 43) // the root of a server between the person and this one, which passes the request on
	for _, tc := range []struct {
		name, body string
		code       watchword.Code
	}{
		{"an id", l.body("id", "eve"), watchword.BadRequest},
		{"a role", l.body("role", "owner"), watchword.BadRequest},
		{"a client_id", l.body("client_id", "eve"), watchword.BadRequest},
		{"a label", l.body("labels", map[string]string{"a": "b"}), watchword.BadRequest},
		{"a sealing key", l.body("seal", json.RawMessage(device.seal.JWK())), watchword.BadRequest},
		{"no key", object("proof", l.proof(token.LoginHashClaim())), watchword.BadRequest},
		{"a key that is for encryption", object("key", json.RawMessage(device.seal.JWK()), "proof", l.proof(token.LoginHashClaim())), watchword.BadRequest},
		{"no proof", object("key", key), watchword.ProofInvalid},
		{"the proof of another key", object("key", key, "proof", other.proof(token.LoginHashClaim())), watchword.ProofInvalid},
		{"the proof of a device's pairing", object("key", key, "proof", device.proof(token.PairingHashClaim())), watchword.ProofInvalid},
		{"a device's proof for a login", object("key", key, "proof", device.proof(token.LoginHashClaim())), watchword.ProofInvalid},
		{"a login's proof for a pairing", object("key", key, "proof", l.proof(token.PairingHashClaim())), watchword.ProofInvalid},
		{"a proof that names another root", elsewhere.body(), watchword.ProofInvalid},
		{"oversize", object("key", strings.Repeat("x", 17<<10)), watchword.TooLarge},
	} {
		if a := srv.request("POST", "/v1/logins", "", tc.body); a.code != tc.code {
			t.Errorf("%s: %d %s, want %s", tc.name, a.status, a.body, tc.code)
		}
	}
	// The reverse: the proof of a login at the endpoints of devices.
	f := device.askForm()
	f.Set("proof", l.proof(token.LoginHashClaim()))
	srv.form("/oauth/device_authorization", f).says(t, "a login's proof for a device", 401, "invalid_client", watchword.ProofInvalid)
	must(t, srv.admin.Logins(t.Context(), func(l api.Login) error { return fmt.Errorf("a login waits: %+v", l) }))

	// The codes of one kind are nothing at the endpoints of the other.
	l.ask()
	device = srv.newUnenrolled("lamp-2", c.now).ask()
	swapped := *l
	swapped.sign, swapped.LoginCode = device.sign, device.code
	if a := swapped.poll(); a.code != watchword.PairingExpired {
		t.Errorf("polling a device's pairing as a login: %+v", a)
	}
	back := *device
	back.sign, back.code, back.requestedID = l.sign, l.LoginCode, string(l.sign.Public().ID())
	back.poll().says(t, "polling a login as a device", 400, "expired_token", watchword.PairingExpired)
	_, err := srv.admin.ApprovePairing(t.Context(), l.UserCode, l.sign.Public().ID(), "lamp-3", nil)
	wants(t, "a login approved as a device", err, watchword.NotFound)
	_, err = srv.admin.RejectPairing(t.Context(), l.UserCode)
	wants(t, "a login rejected as a device", err, watchword.NotFound)
	r := token.LoginRequest{UserCode: device.user, Key: device.sign.Public().ID(), Pin: l.pin}
	_, err = srv.admin.ApproveLogin(t.Context(), r, "eve", "viewer", "", 0)
	wants(t, "a device approved as an operator", err, watchword.NotFound)
	_, err = srv.admin.RejectLogin(t.Context(), device.user)
	wants(t, "a device rejected as an operator", err, watchword.NotFound)

	// A request that is sent again by an eavesdropper replaces the codes, and tells it nothing.
	again := l.body()
	for range 2 {
		if a := srv.request("POST", "/v1/logins", "", again); a.status != http.StatusOK {
			t.Errorf("sent again: %+v", a)
		}
	}
	stolen := *other
	must(t, json.Unmarshal([]byte(srv.request("POST", "/v1/logins", "", again).body), &stolen.RequestLoginResponse))
	if a := stolen.poll(); a.code != watchword.ProofInvalid {
		t.Errorf("polling without the key: %+v", a)
	}
}

// The right to approve one kind of pairing is not the right to approve the other, and an approver does not make an operator who may do more than the approver.
func TestRightsToApproveLogins(t *testing.T) {
	srv, c := servePairing(t)
	ctx := t.Context()
	for name, doc := range map[string]string{
		"installers": "role = \"installer\"\nmay_give = [\"topic:#\", \"fn:*/*\", \"api:/#\"]\n[[allow]]\nget = [\"/v1/enrollments/#\"]\npost = [\"/v1/enrollments/+/approve\", \"/v1/enrollments/+/reject\"]\n",
		"personnel":  "role = \"personnel\"\nmay_give = [\"api:/v1/audit/#\"]\n[[allow]]\nget = [\"/v1/logins/#\", \"/v1/audit/#\"]\npost = [\"/v1/logins/+/approve\", \"/v1/logins/+/reject\"]\n",
	} {
		_, err := srv.admin.ApplyPolicy(ctx, name, []byte(doc), -1)
		must(t, err)
	}
	tokens := map[string]string{}
	for _, role := range []string{"admin", "installer", "personnel"} {
		s, err := srv.admin.CreateOperator(ctx, watchword.SubjectID("the-"+role), role, 0)
		must(t, err)
		tokens[role] = srv.enrollSubject(s)
	}
	l, d := srv.newLoginClient(c.now).ask(), srv.newUnenrolled("lamp-1", c.now).ask()
	for _, tc := range []struct {
		by, id, role string
		code         watchword.Code
	}{
		{"admin", "eve", "viewer", watchword.Denied},
		{"installer", "eve", "viewer", watchword.Denied},
		{"personnel", "eve", "owner", watchword.ExceedsOwn},
		{"personnel", "eve", "viewer", watchword.ExceedsOwn},
		{"personnel", "operator", "", watchword.ExceedsOwn},      // a further key of the owner
		{"personnel", "the-installer", "", watchword.ExceedsOwn}, // or of one who has other rights
	} {
		if a := l.approve(tokens[tc.by], tc.id, tc.role); a.code != tc.code {
			t.Errorf("%s approves a login as %s %s: %d %s, want %s", tc.by, tc.id, tc.role, a.status, a.body, tc.code)
		}
	}
	for by, code := range map[string]watchword.Code{"admin": watchword.Denied, "installer": watchword.Denied, "personnel": ""} {
		if a := srv.request("GET", "/v1/logins", tokens[by], ""); a.code != code {
			t.Errorf("%s lists logins: %d %s", by, a.status, a.body)
		}
	}
	for _, by := range []string{"admin", "installer"} {
		if a := srv.request("POST", "/v1/logins/"+l.UserCode+"/reject", tokens[by], ""); a.code != watchword.Denied {
			t.Errorf("%s rejects a login: %d %s", by, a.status, a.body)
		}
	}
	if a := srv.request("POST", "/v1/enrollments/"+d.user+"/approve", tokens["personnel"], object("sign", d.sign.Public().ID(), "id", "lamp-1")); a.code != watchword.Denied {
		t.Errorf("personnel approve a device: %d %s", a.status, a.body)
	}
	var operators []watchword.SubjectID
	must(t, srv.admin.Operators().List(ctx, nil, "", func(s api.Subject) error {
		operators = append(operators, s.ID)
		return nil
	}))
	if len(operators) != 4 {
		t.Errorf("operators: %v", operators)
	}
	if a := l.approve(tokens["personnel"], "aud", "auditor"); a.status != http.StatusOK {
		t.Errorf("what they may give: %d %s", a.status, a.body)
	}
	if a := srv.request("POST", "/v1/enrollments/"+d.user+"/approve", tokens["installer"], object("sign", d.sign.Public().ID(), "id", "lamp-1")); a.status != http.StatusOK {
		t.Errorf("an installer approves a device: %d %s", a.status, a.body)
	}
}

// A flood of logins from one network is bounded, and stops neither the pairings of devices nor the reverse.
func TestAFloodOfLoginsIsBounded(t *testing.T) {
	srv, c := servePairing(t)
	first := srv.newLoginClient(c.now).ask()
	for range 7 {
		srv.newLoginClient(c.now).ask()
	}
	a := srv.request("POST", "/v1/logins", "", srv.newLoginClient(c.now).body())
	if a.status != http.StatusTooManyRequests || a.code != watchword.RateLimited || a.header.Get("Retry-After") != "600" {
		t.Errorf("one more from this network: %+v", a)
	}
	for i := range 16 {
		srv.newUnenrolled(fmt.Sprint("lamp-", i), c.now).ask()
	}
	srv.form("/oauth/device_authorization", srv.newUnenrolled("lamp-16", c.now).askForm()).says(t, "a device too many", 429, "temporarily_unavailable", watchword.RateLimited)
	_, err := srv.admin.RejectLogin(t.Context(), first.UserCode)
	must(t, err)
	srv.newLoginClient(c.now).ask()
}
