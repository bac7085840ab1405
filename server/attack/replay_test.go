package attack_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// clientAt is a client at an address of its own on loopback.
func (srv *testServer) clientAt(address string) *http.Client {
	srv.t.Helper()
	c := srv.client()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	tr := c.Transport.(*http.Transport)
	tr.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", port))
	}
	return c
}

// shot is one request, to be sent at a given moment.
type shot struct {
	method, path, body string
	head               http.Header
}

// sendShot sends one request by a client. It may be called from any goroutine.
func (srv *testServer) sendShot(c *http.Client, s shot) (answer, error) {
	req, err := http.NewRequestWithContext(srv.t.Context(), s.method, srv.url+s.path, strings.NewReader(s.body))
	if err != nil {
		return answer{}, err
	}
	req.Header = s.head.Clone()
	res, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	var p struct{ Code watchword.Code }
	if json.Unmarshal(b, &p) == nil {
		a.code = p.Code
	}
	return a, err
}

// atOnce sends each shot over a connection of its own, at the same instant, and
// counts the codes of the answers.
func (srv *testServer) atOnce(clients []*http.Client, shots ...shot) map[watchword.Code]int {
	srv.t.Helper()
	start := make(chan struct{})
	got := map[watchword.Code]int{}
	var mu sync.Mutex
	var ready, wg sync.WaitGroup
	for i, s := range shots {
		ready.Add(1)
		wg.Go(func() {
			_, err := srv.sendShot(clients[i], shot{"GET", "/healthz", "", nil}) // the connection is open
			ready.Done()
			if err != nil {
				srv.t.Error(err)
				return
			}
			<-start
			a, err := srv.sendShot(clients[i], s)
			if err != nil {
				srv.t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got[a.code]++
		})
	}
	ready.Wait()
	close(start)
	wg.Wait()
	return got
}

func twice(s shot) []shot { return []shot{s, s} }

// One credential on two sockets at the same instant: it counts once, round after round.
func TestOneAssertionOnTwoSockets(t *testing.T) {
	const rounds = 25
	ep := newEndpoints(t, time.Now)
	clients := []*http.Client{ep.client(), ep.client()}
	web := http.Header{"Content-Type": form}
	bearer := func() http.Header {
		return headers("Authorization", "Bearer "+ep.token, "Content-Type", "application/json")
	}
	for _, tc := range []struct {
		name  string
		shots func() []shot
		again watchword.Code
	}{
		{"an assertion", func() []shot {
			return twice(shot{"POST", "/oauth/token", assertionForm(sign(t, ep.deviceKey, token.TypAssertion, ep.assertion())).Encode(), web})
		}, watchword.TokenReplayed},
		{"an assertion, and what is made of it by its other signature", func() []shot {
			raw := sign(t, ep.deviceKey, token.TypAssertion, ep.assertion())
			return []shot{{"POST", "/oauth/token", assertionForm(raw).Encode(), web}, {"POST", "/oauth/token", assertionForm(otherSignature(t, raw)).Encode(), web}}
		}, watchword.TokenReplayed},
		{"an assertion at two endpoints", func() []shot {
			raw := sign(t, ep.deviceKey, token.TypAssertion, ep.assertion())
			return []shot{{"POST", "/oauth/token", assertionForm(raw).Encode(), web}, {"POST", "/oauth/revoke", formWith(assertionForm(raw), "token", "x").Encode(), web}}
		}, watchword.TokenReplayed},
		{"a DPoP proof", func() []shot {
			proof := ep.dpop(ep.deviceKey, "GET", "/v1/self", ep.boundToken)
			return []shot{
				{"GET", "/v1/self", "", headers("Authorization", "DPoP "+ep.boundToken, "DPoP", proof)},
				{"GET", "/v1/self", "", headers("Authorization", "DPoP "+ep.boundToken, "DPoP", otherSignature(t, proof))},
			}
		}, watchword.DPoPInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range rounds {
				if got := ep.atOnce(clients, tc.shots()...); got[""] != 1 || got[tc.again] != 1 {
					t.Fatalf("got %v", got)
				}
			}
		})
	}
	t.Run("a key change", func(t *testing.T) {
		for n := range rounds / 5 {
			_, fresh := newKey(t, "P-256")
			seal := ep.sealJWK()
			proof, err := token.SignRekey(ep.deviceKey, fresh, "lamp-1", ep.ring.Issuer(), seal.ID(), ep.now())
			must(t, err)
			got := ep.atOnce(clients, twice(shot{"POST", "/v1/self/keys", rekeyBody(t, fresh.Public(), seal, proof), bearer()})...)
			if done := ep.entries(audit.DeviceRekey, audit.Done); got[""] < 1 || len(done) != n+1 {
				t.Fatalf("got %v, and %d entries", got, len(done))
			}
			ep.deviceKey = fresh
			ep.token = ep.issue(fresh, "lamp-1", "")
		}
	})
	t.Run("two key changes by one key", func(t *testing.T) {
		for range rounds / 5 {
			var shots []shot
			var fresh [2]*jose.Signer
			for i := range fresh {
				_, fresh[i] = newKey(t, "P-256")
				seal := ep.sealJWK()
				proof, err := token.SignRekey(ep.deviceKey, fresh[i], "lamp-1", ep.ring.Issuer(), seal.ID(), ep.now())
				must(t, err)
				shots = append(shots, shot{"POST", "/v1/self/keys", rekeyBody(t, fresh[i].Public(), seal, proof), bearer()})
			}
			before := len(ep.entries(audit.DeviceRekey, audit.Done))
			got := ep.atOnce(clients, shots...)
			done := ep.entries(audit.DeviceRekey, audit.Done)
			if got[""] != 1 || len(done) != before+1 {
				t.Fatalf("got %v, and %d entries more", got, len(done)-before)
			}
			ep.deviceKey = fresh[0]
			if done[before].Data["sign"] != string(fresh[0].Public().ID()) {
				ep.deviceKey = fresh[1]
			}
			ep.token = ep.issue(ep.deviceKey, "lamp-1", "")
		}
	})
}

// otherSignature is (r, n−s) for (r, s): it holds for the same bytes.
func otherSignature(t testing.TB, raw string) string {
	t.Helper()
	i := strings.LastIndexByte(raw, '.')
	b, err := base64.RawURLEncoding.DecodeString(raw[i+1:])
	must(t, err)
	s := new(big.Int).SetBytes(b[32:])
	new(big.Int).Sub(order256, s).FillBytes(b[32:])
	return raw[:i+1] + b64(b)
}

// One signature of ECDSA is two: both hold, and neither counts twice.
func TestMalleableSignatureIsAReplay(t *testing.T) {
	ep := newEndpoints(t, time.Now)
	other := otherSignature(t, ep.token)
	self := func(tok string) watchword.Code {
		return ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "Bearer "+tok)).code
	}
	if a, b := self(ep.token), self(other); a != "" || b != "" {
		t.Fatalf("both hold: %q %q", a, b)
	}
	jti := claims(t, ep.token)["jti"].(string)
	must(t, ep.admin.RevokeToken(t.Context(), jti))
	if a, b := self(ep.token), self(other); a != watchword.TokenRevoked || b != watchword.TokenRevoked {
		t.Errorf("revoked by one name: %q %q", a, b)
	}
	ep.token = ep.issue(ep.deviceKey, "lamp-1", "")
	raw := sign(t, ep.deviceKey, token.TypAssertion, ep.assertion())
	for i, r := range []string{raw, otherSignature(t, raw)} {
		want := []watchword.Code{accepted, watchword.TokenReplayed}[i]
		if got := ep.connack(5, r); got.code != want {
			t.Errorf("an assertion over MQTT: got %q, want %q", got.code, want)
		}
	}
	receipt := sign(t, ep.deviceKey, token.TypReceipt, ep.receipt())
	for _, r := range []string{receipt, otherSignature(t, receipt)} {
		if a := ep.requestOnce("POST", "/v1/self/receipts", object("receipt", r), headers("Authorization", "Bearer "+ep.token, "Content-Type", "application/json")); a.status != 200 {
			t.Errorf("a receipt: %d %s", a.status, a.body)
		}
	}
	if n := len(ep.entries(audit.CommandSettle, audit.Done)); n != 1 {
		t.Errorf("the command was settled %d times", n)
	}
	sent, err := ep.admin.Command(t.Context(), ep.pendingCommand.ID, 0)
	must(t, err)
	if sent.Receipt.JWS != receipt {
		t.Error("the second receipt took the place of the first")
	}
}

// What was spent stays spent when the server was closed and opened again.
func TestUsedAssertionIsRefusedAfterRestart(t *testing.T) {
	ep := newEndpoints(t, time.Now)
	bearer := func() http.Header {
		return headers("Authorization", "Bearer "+ep.token, "Content-Type", "application/json")
	}
	_, fresh := newKey(t, "P-256")
	seal := ep.sealJWK()
	proof, err := token.SignRekey(ep.deviceKey, fresh, "lamp-1", ep.ring.Issuer(), seal.ID(), ep.now())
	must(t, err)
	if a := ep.requestOnce("POST", "/v1/self/keys", rekeyBody(t, fresh.Public(), seal, proof), bearer()); a.status != 200 {
		t.Fatal(a.body)
	}
	var both []string
	must(t, json.Unmarshal([]byte(proof), &both))
	st := ep.newUnenrolled("lamp-7", time.Now).ask()
	_, err = ep.admin.ApprovePairing(t.Context(), st.user, st.sign.Public().ID(), "", nil)
	must(t, err)
	poll := st.pollForm()
	if a := ep.form("/oauth/token", poll); a.status != 200 {
		t.Fatalf("paired: %+v", a)
	}
	assertion := sign(t, fresh, token.TypAssertion, ep.assertion())
	if got := ep.connack(5, assertion); got.code != accepted {
		t.Fatalf("an assertion over MQTT: %+v", got)
	}
	ep.stop()
	again := serveOn(t, ep.dir, onPort(portOf(t, ep.url)))
	if a := again.form("/oauth/token", poll); a.code != watchword.TokenReplayed {
		t.Errorf("a pairing's proof: %+v", a)
	}
	if a := again.exchangeAssertion(assertion); a.code != watchword.TokenReplayed {
		t.Errorf("an assertion that opened MQTT: %+v", a)
	}
	_, third := newKey(t, "P-256")
	spent := with(claims(t, both[0]), "sign_jkt", third.Public().ID())
	var got struct {
		Token string `json:"access_token"`
	}
	must(t, json.Unmarshal([]byte(again.exchangeAssertion(sign(t, fresh, token.TypAssertion, ep.assertion())).body), &got))
	body := rekeyBody(t, third.Public(), nil, pair(sign(t, fresh, token.TypRekey, spent), sign(t, third, token.TypRekey, spent)))
	if a := again.request("POST", "/v1/self/keys", got.Token, body); a.code != watchword.TokenReplayed {
		t.Errorf("a key change of that name: %+v", a)
	}
	if a := again.request("POST", "/v1/self/keys", ep.token, rekeyBody(t, fresh.Public(), seal, proof)); a.code != watchword.TokenRevoked {
		t.Errorf("the key change by the old token: %+v", a)
	}
}

// enrollment returns the request with which an attacker with two keys redeems a code.
func (srv *testServer) enrollment(code string) shot {
	_, sign := newKey(srv.t, "P-256")
	seal, err := jose.GenerateKey("X25519")
	must(srv.t, err)
	proof, err := token.SignEnrollment(sign, srv.url, token.CodeHashClaim(code), seal.Public().ID(), time.Now())
	must(srv.t, err)
	return shot{"POST", "/v1/enroll", object("code", code, "proof", proof, "keys", map[string]any{
		"sign": json.RawMessage(sign.Public().JWK()), "seal": json.RawMessage(seal.Public().JWK()),
	}), headers("Content-Type", "application/json")}
}

func codeOfLink(t testing.TB, link string) string {
	t.Helper()
	u, err := url.Parse(link)
	must(t, err)
	q, err := url.ParseQuery(u.Fragment)
	must(t, err)
	return q.Get("code")
}

// Many devices with one code, at the same time: one is enrolled.
func TestManyDevicesWithOneCode(t *testing.T) {
	const devices, rounds = 8, 8
	srv := serve(t, nil)
	var clients []*http.Client
	for i := range devices {
		clients = append(clients, srv.clientAt("127.0.1."+strconv.Itoa(i+1))) // a wrong code slows its address
	}
	for n := range rounds {
		id := watchword.SubjectID("lamp-" + strconv.Itoa(n))
		made, err := srv.admin.CreateDevice(t.Context(), id, nil, 0)
		must(t, err)
		var shots []shot
		for range devices {
			shots = append(shots, srv.enrollment(codeOfLink(t, made.Enrollment.Link)))
		}
		if got := srv.atOnce(clients, shots...); got[""] != 1 || got[watchword.CodeInvalid]+got[watchword.RateLimited] != devices-1 {
			t.Fatalf("got %v", got)
		}
	}
	if n := len(srv.entries(audit.DeviceEnroll, audit.Done)); n != rounds {
		t.Errorf("%d enrollments", n)
	}
}

// A thousand wrong codes from one address: a few are checked, the rest cost a lookup and state when to try again. Meanwhile
// a valid code is accepted from every address, also from that one: other clients may be behind the same proxy or NAT.
func TestManyWrongEnrollmentCodes(t *testing.T) {
	c := newClock()
	srv := serveAt(t, filepath.Join(t.TempDir(), "data"), c.now, nil)
	made, err := srv.admin.CreateDevice(t.Context(), "lamp-1", nil, 0)
	must(t, err)
	attacker := srv.clientAt("127.0.0.2")
	guess := srv.enrollment(watchword.NewNonce())
	got := map[watchword.Code]int{}
	for n := range 1000 {
		if n == 500 {
			d := srv.openDevice(filepath.Join(t.TempDir(), "d"), device.Options{})
			must(t, d.Enroll(t.Context(), made.Enrollment.Link))
		}
		a, err := srv.sendShot(attacker, guess)
		must(t, err)
		if got[a.code]++; a.code == watchword.RateLimited && (a.status != 429 || a.header.Get("Retry-After") == "") {
			t.Fatalf("%d %v %s", a.status, a.header, a.body)
		}
	}
	if got[watchword.CodeInvalid] != 6 || got[watchword.RateLimited] != 994 {
		t.Errorf("got %v", got)
	}
	second, err := srv.admin.CreateDevice(t.Context(), "lamp-2", nil, 0)
	must(t, err)
	good := srv.enrollment(codeOfLink(t, second.Enrollment.Link))
	if a, err := srv.sendShot(attacker, good); err != nil || a.status != 200 {
		t.Errorf("a valid code from the same address: %v %d %s", err, a.status, a.body)
	}
	if a, err := srv.sendShot(attacker, guess); err != nil || a.code != watchword.RateLimited {
		t.Errorf("a guess behind it: %v %d %s", err, a.status, a.body)
	}
}
