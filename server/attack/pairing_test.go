package attack_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// clock is the server's clock, which only a test advances.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// unenrolledDevice is a device with two keys, no link, and no SDK.
type unenrolledDevice struct {
	h           *testServer
	now         func() time.Time
	issuer      string
	requestedID string
	sign        *jose.Signer
	seal        *jose.PublicKey
	code        string // the device code
	user        string // the user code
}

func (srv *testServer) newUnenrolled(wish string, now func() time.Time) *unenrolledDevice {
	srv.t.Helper()
	_, sign := newKey(srv.t, "P-256")
	k, err := jose.GenerateKey("X25519")
	must(srv.t, err)
	return &unenrolledDevice{h: srv, now: now, issuer: srv.url, requestedID: wish, sign: sign, seal: k.Public()}
}

// proof is the stray's, about a code's hash.
func (s *unenrolledDevice) proof(codeHash string) string {
	s.h.t.Helper()
	p, err := token.SignEnrollment(s.sign, s.issuer, codeHash, s.seal.ID(), s.now())
	must(s.h.t, err)
	return p
}

func (s *unenrolledDevice) askForm() url.Values {
	return url.Values{
		"client_id": {s.requestedID}, "sign": {string(s.sign.Public().JWK())}, "seal": {string(s.seal.JWK())}, "proof": {s.proof(token.PairingHashClaim())},
	}
}

func (s *unenrolledDevice) pollForm() url.Values {
	return url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {s.code}, "client_id": {s.requestedID}, "proof": {s.proof(token.CodeHashClaim(s.code))},
	}
}

func (srv *testServer) form(path string, form url.Values) answer {
	srv.t.Helper()
	return srv.request("POST", path, "", form.Encode(), "Content-Type: application/x-www-form-urlencoded")
}

func (s *unenrolledDevice) ask() *unenrolledDevice {
	s.h.t.Helper()
	a := s.h.form("/oauth/device_authorization", s.askForm())
	if a.status != 200 {
		s.h.t.Fatalf("asking: %+v", a)
	}
	var out struct {
		DeviceCode string `json:"device_code"`
		UserCode   string `json:"user_code"`
	}
	must(s.h.t, json.Unmarshal([]byte(a.body), &out))
	s.code, s.user = out.DeviceCode, out.UserCode
	return s
}

func (s *unenrolledDevice) poll() answer {
	s.h.t.Helper()
	return s.h.form("/oauth/token", s.pollForm())
}

// says fails unless an OAuth answer is this refusal.
func (a answer) says(t testing.TB, what string, status int, oauth string, code watchword.Code) {
	t.Helper()
	if a.status != status || a.oauth != oauth || a.code != code {
		t.Errorf("%s: got %d %s %s, want %d %s %s: %s", what, a.status, a.oauth, a.code, status, oauth, code, a.body)
	}
}

// waitForRefusals waits until n refusals of a kind with a code are on record, and returns
// their objects.
func (srv *testServer) waitForRefusals(kind string, code watchword.Code, n int) []string {
	srv.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		es, err := srv.admin.Entries(srv.t.Context(), 0, 10_000)
		must(srv.t, err)
		var out []string
		for _, e := range es {
			if e.Kind == kind && e.Outcome == string(audit.Refused) && e.Code == code {
				out = append(out, e.Object)
			}
		}
		if len(out) >= n || time.Now().After(end) {
			if len(out) != n {
				srv.t.Errorf("%d refusals %s %s on record, want %d", len(out), kind, code, n)
			}
			return out
		}
	}
}

func servePairing(t *testing.T) (*testServer, *clock) {
	c := newClock()
	return serveAt(t, filepath.Join(t.TempDir(), "data"), c.now, func(cfg *server.Config) { cfg.Pairing.Lifetime.Duration = time.Minute }), c
}

func TestPairingRequest(t *testing.T) {
	srv, c := servePairing(t)
	known := srv.enroll("lamp-1", device.Options{}, nil)
	s := srv.newUnenrolled("lamp-2", c.now)
	other := srv.newUnenrolled("lamp-3", c.now)
	with := func(edit func(url.Values)) string {
		f := s.askForm()
		edit(f)
		return f.Encode()
	}
	set := func(name, value string) string { return with(func(f url.Values) { f.Set(name, value) }) }
	proof := func(edit func(*unenrolledDevice), hash string) string {
		e := *s
		edit(&e)
		return set("proof", e.proof(hash))
	}
	private, _ := newKey(t, "P-256")
	assertion, err := token.SignAssertion(s.sign, "lamp-2", srv.url, c.now(), time.Minute)
	must(t, err)
	reused := *s
	reused.sign = deviceSigner(t, known)
	for _, tc := range []struct {
		name, body string
		status     int
		oauth      string
		code       watchword.Code
	}{
		{"no proof", set("proof", ""), 401, "invalid_client", watchword.ProofInvalid},
		{"a proof by another key", proof(func(e *unenrolledDevice) { e.sign = other.sign }, token.PairingHashClaim()), 401, "invalid_client", watchword.ProofInvalid},
		{"a proof that means another sealing key", proof(func(e *unenrolledDevice) { e.seal = other.seal }, token.PairingHashClaim()), 401, "invalid_client", watchword.ProofInvalid},
		{"the sealing key swapped under the proof", set("seal", string(other.seal.JWK())), 401, "invalid_client", watchword.ProofInvalid},
		{"the signing key swapped under the proof", set("sign", string(other.sign.Public().JWK())), 401, "invalid_client", watchword.ProofInvalid},
		{"a proof for another issuer", proof(func(e *unenrolledDevice) { e.issuer = "https://evil.example" }, token.PairingHashClaim()), 401, "invalid_client", watchword.ProofInvalid},
		{"a proof about a link's code", proof(func(*unenrolledDevice) {}, token.CodeHashClaim(watchword.NewNonce())), 401, "invalid_client", watchword.ProofInvalid},
		{"an old proof", proof(func(e *unenrolledDevice) { e.now = func() time.Time { return c.now().Add(-time.Hour) } }, token.PairingHashClaim()), 401, "invalid_client", watchword.ProofInvalid},
		{"an assertion as the proof", set("proof", assertion), 401, "invalid_client", watchword.ProofInvalid},
		{"an access token as the proof", set("proof", srv.token(known)), 401, "invalid_client", watchword.ProofInvalid},
		{"no client_id", set("client_id", ""), 400, "invalid_request", watchword.BadRequest},
		{"HTML in the wish", set("client_id", "<script>alert(1)</script>"), 400, "invalid_request", watchword.BadRequest},
		{"ANSI in the wish", set("client_id", "lamp\x1b[2Jowner"), 400, "invalid_request", watchword.BadRequest},
		{"a wish that tries to escape into a path", set("client_id", "../operator"), 400, "invalid_request", watchword.BadRequest},
		{"a wish that tries to escape into a topic", set("client_id", "a/#"), 400, "invalid_request", watchword.BadRequest},
		{"a wish that is too long", set("client_id", strings.Repeat("x", 65)), 400, "invalid_request", watchword.BadRequest},
		{"an invalid signing key", set("sign", "{}"), 400, "invalid_request", watchword.BadRequest},
		{"a private key", set("sign", string(private.JWK())), 400, "invalid_request", watchword.BadRequest},
		{"a signing key that says that it is for sealing", set("sign", put(`"use":"enc"`)(string(s.sign.Public().JWK()))), 400, "invalid_request", watchword.BadRequest},
		{"a sealing key that says that it is for signing", set("seal", put(`"key_ops":["verify"]`)(string(s.seal.JWK()))), 400, "invalid_request", watchword.BadRequest},
		{"a sealing key that is to sign", set("sign", string(s.seal.JWK())), 400, "invalid_request", watchword.BadRequest},
		{"no sealing key", set("seal", ""), 400, "invalid_request", watchword.BadRequest},
		{"one key for both", set("seal", string(s.sign.Public().JWK())), 400, "invalid_request", watchword.BadRequest},
		{"a scope", set("scope", "owner"), 400, "invalid_request", watchword.BadRequest},
		{"a parameter twice", with(func(f url.Values) { f.Add("client_id", "operator") }), 400, "invalid_request", watchword.BadRequest},
		{"oversize", set("sign", strings.Repeat("x", 17<<10)), 413, "invalid_request", watchword.TooLarge},
		{"keys of a device that is there", reused.askForm().Encode(), 409, "invalid_request", watchword.Conflict},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv.request("POST", "/oauth/device_authorization", "", tc.body, "Content-Type: application/x-www-form-urlencoded").
				says(t, tc.name, tc.status, tc.oauth, tc.code)
		})
	}
	srv.request("POST", "/oauth/device_authorization", "", `{}`).says(t, "JSON", 415, "invalid_request", watchword.UnsupportedMediaType)
	srv.form("/oauth/device_authorization?client_id=x", s.askForm()).says(t, "in the URL", 400, "invalid_request", watchword.BadRequest)
	if a := srv.request("GET", "/oauth/device_authorization", "", ""); a.status != 405 {
		t.Errorf("GET: got %d", a.status)
	}
	srv.waitForRefusals(audit.RequestRefuse, watchword.ProofInvalid, 10)
	must(t, srv.admin.Pairings(t.Context(), func(p api.Pairing) error { return fmt.Errorf("a device waits: %+v", p) }))

	a := srv.form("/oauth/device_authorization", s.askForm())
	var out map[string]any
	must(t, json.Unmarshal([]byte(a.body), &out))
	user, _ := out["user_code"].(string)
	if a.status != 200 || a.header.Get("Cache-Control") != "no-store" || len(user) != 9 || strings.Trim(user, "BCDFGHJKLMNPQRSTVWXZ-") != "" ||
		out["verification_uri"] != srv.url+"/enroll" || out["verification_uri_complete"] != srv.url+"/enroll?user_code="+user || out["expires_in"] != 60.0 || out["interval"] != 5.0 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if code, _ := out["device_code"].(string); !token.WellFormedCode(code) || strings.Contains(srv.log.String(), code) {
		t.Error("the device code is not 128 bits, or is in the log")
	}
}

func TestDeviceCodeAloneIsUseless(t *testing.T) {
	srv, c := servePairing(t)
	s, other := srv.newUnenrolled("lamp-1", c.now).ask(), srv.newUnenrolled("thief", c.now).ask()
	with := func(edit func(url.Values)) answer {
		f := s.pollForm()
		edit(f)
		return srv.form("/oauth/token", f)
	}
	set := func(name, value string) answer { return with(func(f url.Values) { f.Set(name, value) }) }
	stolen := *other
	stolen.code, stolen.requestedID = s.code, s.requestedID
	swapped := *s
	swapped.seal = other.seal
	tell := func(t *testing.T, state string) {
		set("proof", "").says(t, state+", no proof", 400, "invalid_request", watchword.BadRequest)
		stolen.poll().says(t, state+", a stolen device code", 401, "invalid_client", watchword.ProofInvalid)
		swapped.poll().says(t, state+", another sealing key", 401, "invalid_client", watchword.ProofInvalid)
		set("proof", s.proof(token.PairingHashClaim())).says(t, state+", the proof that asked", 401, "invalid_client", watchword.ProofInvalid)
		set("proof", s.proof(token.CodeHashClaim(other.code))).says(t, state+", a proof about another device code", 401, "invalid_client", watchword.ProofInvalid)
		set("client_id", "operator").says(t, state+", another client_id", 401, "invalid_client", watchword.ClientInvalid)
		set("client_id", "").says(t, state+", no client_id", 400, "invalid_request", watchword.BadRequest)
		set("scope", "owner").says(t, state+", a scope", 400, "invalid_request", watchword.BadRequest)
		set("device_code", watchword.NewNonce()).says(t, state+", an unknown device code", 400, "expired_token", watchword.PairingExpired)
		set("device_code", s.user).says(t, state+", the user code", 400, "expired_token", watchword.PairingExpired)
		set("device_code", "").says(t, state+", no device code", 400, "invalid_request", watchword.BadRequest)
	}
	tell(t, "pending") // none of these makes the device slow
	s.poll().says(t, "the first poll", 400, "authorization_pending", watchword.PairingPending)
	slow := s.poll()
	slow.says(t, "at once again", 400, "slow_down", watchword.PairingSlow)
	if got := slow.header.Get("Retry-After"); got != "10" {
		t.Errorf("Retry-After %q, want 10", got)
	}
	c.forward(9 * time.Second) // 5 s were enough before
	s.poll().says(t, "too early for the slower pace", 400, "slow_down", watchword.PairingSlow)
	c.forward(15 * time.Second)
	s.poll().says(t, "in time for the slowest", 400, "authorization_pending", watchword.PairingPending)
	if strings.Contains(srv.log.String(), string(watchword.PairingPending)) {
		t.Error("waiting is no refusal, and does not belong in the log")
	}

	_, err := srv.admin.ApprovePairing(t.Context(), s.user, s.sign.Public().ID(), "", nil)
	must(t, err)
	tell(t, "approved")
	if a := s.poll(); a.status != 200 {
		t.Errorf("the device itself: %+v", a)
	}
	_, err = srv.admin.RejectPairing(t.Context(), other.user)
	must(t, err)
	other.poll().says(t, "turned down", 400, "access_denied", watchword.PairingRejected)
	other.poll().says(t, "turned down, at once again", 400, "access_denied", watchword.PairingRejected)

	late := srv.newUnenrolled("lamp-9", c.now).ask()
	c.forward(time.Minute)
	late.poll().says(t, "over", 400, "expired_token", watchword.PairingExpired)
	_, err = srv.admin.ApprovePairing(t.Context(), late.user, late.sign.Public().ID(), "", nil)
	wants(t, "approving what is over", err, watchword.NotFound)
	other.poll().says(t, "turned down, and over", 400, "expired_token", watchword.PairingExpired)
	if a := s.poll(); a.status != 200 {
		t.Errorf("an approved one answers for a day: %+v", a)
	}
}

func TestApprovedPairingAnswersUntilExpiry(t *testing.T) {
	srv, c := servePairing(t)
	s := srv.newUnenrolled("lamp-1", c.now).ask()
	_, err := srv.admin.ApprovePairing(t.Context(), s.user, s.sign.Public().ID(), "", watchword.Labels{"site": "a"})
	must(t, err)
	form := s.pollForm()
	first := srv.form("/oauth/token", form)
	var got, again struct {
		ID     watchword.SubjectID
		Labels watchword.Labels
		Issuer string
		HTTPS  string
		CA     string
		Token  string `json:"access_token"`
		Type   string `json:"token_type"`
		In     int    `json:"expires_in"`
	}
	must(t, json.Unmarshal([]byte(first.body), &got))
	if first.status != 200 || got.ID != "lamp-1" || got.Labels["site"] != "a" || got.Issuer != srv.url || got.HTTPS != srv.url || got.CA == "" || got.Type != "Bearer" || got.In < 599 {
		t.Fatalf("got %d %s", first.status, first.body)
	}
	if first.header.Get("Cache-Control") != "no-store" {
		t.Error("a token may be stored")
	}
	if c := claims(t, got.Token); c["sub"] != "lamp-1" || c["key"] != string(s.sign.Public().ID()) {
		t.Errorf("claims %v", c)
	}
	if a := srv.request("GET", "/v1/self", got.Token, ""); a.status != 200 {
		t.Errorf("the token opens nothing: %+v", a)
	}
	srv.form("/oauth/token", form).says(t, "the same proof again", 401, "invalid_client", watchword.TokenReplayed)
	must(t, json.Unmarshal([]byte(s.poll().body), &again))
	if again.ID != got.ID || again.CA != got.CA || again.Token == got.Token || again.Token == "" {
		t.Error("a new proof does not get the same answer with a new token")
	}

	// The device lost its device code: its keys are approved all the same.
	lost := s.user
	s.ask()
	if a := s.poll(); a.status != 200 || s.user == lost {
		t.Errorf("the same keys with a new device code: %+v", a)
	}
	_, err = srv.admin.Suspend(t.Context(), "lamp-1", "")
	must(t, err)
	s.poll().says(t, "suspended", 401, "invalid_client", watchword.SubjectSuspended)
	_, err = srv.admin.Revoke(t.Context(), "lamp-1", "test")
	must(t, err)
	s.poll().says(t, "revoked", 400, "expired_token", watchword.PairingExpired)
	srv.form("/oauth/device_authorization", s.askForm()).says(t, "revoked, asking again", 409, "invalid_request", watchword.Conflict)
}

func TestPairingApprovalIsForTheShownKeys(t *testing.T) {
	srv, c := servePairing(t)
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	_, err := srv.admin.CreateDevice(t.Context(), "lamp-new", nil, 0)
	must(t, err)
	s, attacker := srv.newUnenrolled("lamp-2", c.now).ask(), srv.newUnenrolled("lamp-2", c.now).ask()
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	sign := func(s *unenrolledDevice) string { return `{"sign":"` + string(s.sign.Public().ID()) + `"}` }
	say := func(s *unenrolledDevice, rest string) string {
		return `{"sign":"` + string(s.sign.Public().ID()) + `",` + rest + `}`
	}
	wished := srv.newUnenrolled("lamp-1", c.now).ask()
	unwished := srv.newUnenrolled("", c.now)
	unwished.requestedID = string(unwished.sign.Public().ID())
	unwished.ask()
	for _, tc := range []struct {
		name, token, path, body string
		status                  int
		code                    watchword.Code
		field                   string
	}{
		{"an id that is not listed", "", "GET /v1/enrollments", "", 401, watchword.Unauthenticated, ""},
		{"a device lists", srv.token(lamp), "GET /v1/enrollments", "", 403, watchword.Denied, ""},
		{"a device looks", srv.token(lamp), "GET /v1/enrollments/" + s.user, "", 403, watchword.Denied, ""},
		{"a device approves", srv.token(lamp), "POST /v1/enrollments/" + s.user + "/approve", sign(s), 403, watchword.Denied, ""},
		{"a device rejects", srv.token(lamp), "POST /v1/enrollments/" + s.user + "/reject", "", 403, watchword.Denied, ""},
		{"no thumbprint", op, "POST /v1/enrollments/" + s.user + "/approve", `{}`, 400, watchword.BadRequest, "body"},
		{"a part of the thumbprint", op, "POST /v1/enrollments/" + s.user + "/approve", `{"sign":"` + string(s.sign.Public().ID())[:8] + `"}`, 400, watchword.BadRequest, "sign"},
		{"another device's thumbprint", op, "POST /v1/enrollments/" + s.user + "/approve", sign(attacker), 409, watchword.Conflict, "sign"},
		{"the sealing key's thumbprint", op, "POST /v1/enrollments/" + s.user + "/approve", `{"sign":"` + string(s.seal.ID()) + `"}`, 409, watchword.Conflict, "sign"},
		{"an unknown code", op, "POST /v1/enrollments/BBBB-BBBB/approve", sign(s), 404, watchword.NotFound, ""},
		{"an invalid code", op, "POST /v1/enrollments/AEIO-UAEI/approve", sign(s), 400, watchword.BadRequest, "user_code"},
		{"looking at an unknown code", op, "GET /v1/enrollments/BBBB-BBBB", "", 404, watchword.NotFound, ""},
		{"rejecting an unknown code", op, "POST /v1/enrollments/BBBB-BBBB/reject", "", 404, watchword.NotFound, ""},
		{"a requested id that another device has", op, "POST /v1/enrollments/" + wished.user + "/approve", sign(wished), 409, watchword.Conflict, ""},
		{"no wish, and no id", op, "POST /v1/enrollments/" + unwished.user + "/approve", sign(unwished), 400, watchword.BadRequest, "id"},
		{"an id that tries to escape", op, "POST /v1/enrollments/" + s.user + "/approve", say(s, `"id":"../x"`), 400, watchword.BadRequest, "id"},
		{"a label that tries to widen", op, "POST /v1/enrollments/" + s.user + "/approve", say(s, `"labels":{"site":"#"}`), 400, watchword.BadRequest, "labels.site"},
		{"the id of an active device", op, "POST /v1/enrollments/" + s.user + "/approve", say(s, `"id":"lamp-1"`), 409, watchword.Conflict, ""},
		{"the id of an operator", op, "POST /v1/enrollments/" + s.user + "/approve", say(s, `"id":"operator"`), 409, watchword.Conflict, ""},
		{"labels for a device that is there", op, "POST /v1/enrollments/" + s.user + "/approve", say(s, `"id":"lamp-new","labels":{"site":"a"}`), 400, watchword.BadRequest, "labels"},
		{"more than is known here", op, "POST /v1/enrollments/" + s.user + "/approve", say(s, `"kind":"operator"`), 400, watchword.BadRequest, "kind"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			method, path, _ := strings.Cut(tc.path, " ")
			if a := srv.request(method, path, tc.token, tc.body); a.status != tc.status || a.code != tc.code || a.field != tc.field {
				t.Errorf("got %d %s %s, want %d %s %s: %s", a.status, a.code, a.field, tc.status, tc.code, tc.field, a.body)
			}
		})
	}
	if got := srv.waitForRefusals(audit.DeviceEnroll, watchword.Conflict, 5); !slices.Contains(got, s.user) || !slices.Contains(got, wished.user) {
		t.Errorf("refused: %v", got)
	}
	if got := srv.waitForRefusals(audit.DeviceEnroll, watchword.NotFound, 1); !slices.Contains(got, "BBBB-BBBB") {
		t.Errorf("refused: %v", got)
	}
	srv.waitForRefusals(audit.PairingReject, watchword.NotFound, 1)
	s.poll().says(t, "after all that", 400, "authorization_pending", watchword.PairingPending)

	// In any case, without the dash. The device that requested first, and the one whose key was compared, are different.
	made, err := srv.admin.ApprovePairing(t.Context(), strings.ToLower(strings.ReplaceAll(s.user, "-", "")), s.sign.Public().ID(), "", nil)
	must(t, err)
	if made.ID != "lamp-2" || made.State != watchword.Active || len(made.Keys) != 2 {
		t.Errorf("got %+v", made)
	}
	_, err = srv.admin.ApprovePairing(t.Context(), s.user, s.sign.Public().ID(), "lamp-3", nil)
	wants(t, "approving twice", err, watchword.Conflict)
	_, err = srv.admin.RejectPairing(t.Context(), s.user)
	wants(t, "rejecting what is approved", err, watchword.Conflict)
	_, err = srv.admin.ApprovePairing(t.Context(), attacker.user, attacker.sign.Public().ID(), "", nil)
	wants(t, "the thief, who had the same wish", err, watchword.Conflict)

	// For a device that is there: new, and revoked.
	for range 2 {
		again := srv.newUnenrolled("whoever", c.now).ask()
		made, err = srv.admin.ApprovePairing(t.Context(), again.user, again.sign.Public().ID(), "lamp-new", nil)
		must(t, err)
		if a := again.poll(); a.status != 200 || made.ID != "lamp-new" || made.State != watchword.Active {
			t.Errorf("%+v, %+v", made, a)
		}
		_, err = srv.admin.Revoke(t.Context(), "lamp-new", "test")
		must(t, err)
	}

	es, err := srv.admin.Entries(t.Context(), 0, 10_000)
	must(t, err)
	var kinds []string
	for _, e := range es {
		if e.Object == "lamp-2" && e.Outcome == string(audit.Done) {
			kinds = append(kinds, e.Kind+" by "+string(e.Actor))
			if e.Kind == audit.DeviceEnroll && (e.Data["sign"] != string(s.sign.Public().ID()) || e.Data["seal"] != string(s.seal.ID())) {
				t.Errorf("entry %+v", e)
			}
		}
	}
	if got, want := strings.Join(kinds, ", "), "device.create by operator, device.enroll by operator"; got != want {
		t.Errorf("on record: %s", got)
	}
}

func TestConcurrentPairingDecisions(t *testing.T) {
	srv, c := servePairing(t)
	s := srv.newUnenrolled("lamp-1", c.now).ask()
	errs := make([]error, 6)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			if i%2 == 0 {
				_, errs[i] = srv.admin.RejectPairing(t.Context(), s.user)
			} else {
				_, errs[i] = srv.admin.ApprovePairing(t.Context(), s.user, s.sign.Public().ID(), watchword.SubjectID(fmt.Sprint("lamp-", i)), nil)
			}
		})
	}
	wg.Wait()
	won, winner := 0, 0
	for i, err := range errs {
		if err == nil {
			won, winner = won+1, i
		} else {
			wants(t, "the loser", err, watchword.Conflict)
		}
	}
	if won != 1 {
		t.Fatalf("%d won", won)
	}
	if a := s.poll(); (a.status == 200) != (winner%2 == 1) {
		t.Errorf("operator %d won, and the device receives %+v", winner, a)
	}
	devices := 0
	must(t, srv.admin.Devices(t.Context(), nil, "", func(api.Device) error { devices++; return nil }))
	if devices != winner%2 {
		t.Errorf("%d devices", devices)
	}
}

func TestAFloodOfPairingsIsBounded(t *testing.T) {
	srv, c := servePairing(t)
	first := srv.newUnenrolled("lamp-0", c.now).ask()
	for i := range 15 {
		srv.newUnenrolled(fmt.Sprint("lamp-", i+1), c.now).ask()
	}
	one := srv.newUnenrolled("lamp-16", c.now)
	a := srv.form("/oauth/device_authorization", one.askForm())
	a.says(t, "one more from this network", 429, "temporarily_unavailable", watchword.RateLimited)
	if got := a.header.Get("Retry-After"); got != "60" {
		t.Errorf("Retry-After %q, want 60", got)
	}
	old := first.code
	first.ask() // in place of its own
	if first.code == old {
		t.Error("the same device code again")
	}
	n, of := 0, map[string]int{}
	must(t, srv.admin.Pairings(t.Context(), func(p api.Pairing) error { n++; of[p.UserCode]++; return nil }))
	if n != 16 || len(of) != 16 {
		t.Errorf("%d wait, under %d codes", n, len(of))
	}
	// A rejected pairing makes room, and so does an expired one.
	_, err := srv.admin.RejectPairing(t.Context(), first.user)
	must(t, err)
	one.ask()
	c.forward(time.Minute)
	for i := range 16 {
		srv.newUnenrolled(fmt.Sprint("lamp-", i+20), c.now).ask()
	}
}

func TestTheMetadataNamesThePairing(t *testing.T) {
	srv, _ := servePairing(t)
	var m struct {
		Endpoint string   `json:"device_authorization_endpoint"`
		Grants   []string `json:"grant_types_supported"`
	}
	must(t, json.Unmarshal([]byte(srv.request("GET", "/.well-known/oauth-authorization-server", "", "").body), &m))
	if m.Endpoint != srv.url+"/oauth/device_authorization" || !slices.Contains(m.Grants, "urn:ietf:params:oauth:grant-type:device_code") {
		t.Errorf("got %+v", m)
	}
	if a := srv.request("GET", "/enroll?user_code=BBBB-BBBB", "", ""); a.status != 200 || strings.Contains(a.body, "BBBB") {
		t.Errorf("the page that people open: %+v", a)
	}
}
