package attack_test

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
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
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// What an endpoint says that is no code.
const (
	accepted watchword.Code = "taken"
	inactive watchword.Code = "inactive" // of introspection
	nothing  watchword.Code = "nothing"  // of revocation: no error, and nothing happened
)

// observed is what an endpoint said to one credential.
type observed struct {
	code  watchword.Code // taken, or the code of the refusal
	text  string         // the words that came with it
	trace string         // of the refusal; empty where the wire has no room for one
}

// detail is what the answer says beside its code: of a problem document or OAuth error,
// or of a reason string, without the page that it may name. Of a mistake in a form, which is no refusal of a credential and
// names its field beside, it is nothing.
func (s observed) detail() string {
	if s.code == watchword.BadRequest {
		return ""
	}
	var p struct {
		Detail      string `json:"detail"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal([]byte(s.text), &p) == nil {
		return withoutPage(cmp.Or(p.Detail, p.Description))
	}
	return withoutPage(strings.TrimPrefix(strings.TrimPrefix(s.text, string(s.code)), ": "))
}

// withoutPage is a refusal's text without the page that some name at its end: an OAuth error always does.
func withoutPage(text string) string { return strings.TrimSuffix(text, "; see docs/errors.md") }

// endpoint is one place that takes credentials of one kind.
type endpoint struct {
	name        string
	typ         string
	key         *jose.Signer // whose signature counts here
	secondKey   *jose.Signer // and whose beside it, of a pair
	keyInHeader bool         // the key is in the header
	max         int          // bytes; 0 means those of a token
	refusalCode watchword.Code
	unlogged    bool                  // its refusals are not logged: the credential requested nothing
	leeway      time.Duration         // how long after exp it counts
	claims      func() map[string]any // of a fresh good credential
	present     func(raw string) observed
}

// sign signs claims as the endpoint wants them, as another kind if typ is one.
func (d endpoint) sign(t testing.TB, typ string, c map[string]any) string {
	t.Helper()
	b, err := json.Marshal(c)
	must(t, err)
	return d.forge(t, d.header(typ, d.key), string(b))
}

// header is the header of a good credential, but for its typ.
func (d endpoint) header(typ string, s *jose.Signer) string {
	m := map[string]any{"alg": s.Public().Alg()}
	if typ != "" {
		m["typ"] = typ
	}
	if d.keyInHeader {
		m["jwk"] = json.RawMessage(s.Public().JWK())
	} else {
		m["kid"] = s.Public().ID()
	}
	b, _ := json.Marshal(m) // strings alone
	return string(b)
}

// forge signs whatever header and payload, with the endpoint's keys: the signature holds.
func (d endpoint) forge(t testing.TB, head, payload string) string {
	t.Helper()
	first := forge(t, d.key, head, payload)
	if d.secondKey == nil {
		return first
	}
	return pair(first, forge(t, d.secondKey, d.otherHeader(head), payload))
}

func (d endpoint) otherHeader(head string) string {
	return strings.NewReplacer(string(d.key.Public().ID()), string(d.secondKey.Public().ID()), `"`+d.key.Public().Alg()+`"`, `"`+d.secondKey.Public().Alg()+`"`).Replace(head)
}

func forge(t testing.TB, s *jose.Signer, head, payload string) string {
	t.Helper()
	input := b64([]byte(head)) + "." + b64([]byte(payload))
	sig, err := s.SignBytes([]byte(input))
	must(t, err)
	return input + "." + b64(sig)
}

// codeFor is the endpoint's word for a refusal with code.
func (d endpoint) codeFor(code watchword.Code) watchword.Code {
	if d.refusalCode != "" {
		return d.refusalCode
	}
	return code
}

// endpointFixture is a server with all its endpoints, and everything an attacker could steal.
type endpointFixture struct {
	*testServer
	ring           *keyring.Ring
	device         *device.Device
	deviceKey      *jose.Signer // the device's
	operator       *jose.Signer
	token          string // the device's own, a bearer's
	boundToken     string // the same, bound to its key
	nonce          string
	now            func() time.Time
	http           *http.Client
	endpoints      []endpoint
	pendingCommand token.Command // to the device, and not answered
	pendingHash    string        // of its inner JWS
	bundle         string
	pin            string // of the root
	refusals       int    // how many refusals it was seen to make
}

// newEndpoints serves by a clock and collects the credentials. It begins with no refusal on record.
func newEndpoints(t *testing.T, now func() time.Time) *endpointFixture {
	t.Helper()
	return newEndpointsFor(t, now, device.Options{})
}

// newEndpointsFor is newStreet for a device with keys of other curves.
func newEndpointsFor(t *testing.T, now func() time.Time, o device.Options) *endpointFixture {
	t.Helper()
	o.Now = now
	ep := &endpointFixture{testServer: serveAt(t, filepath.Join(t.TempDir(), "data"), now, func(c *server.Config) { c.Limits.PublishRate = 100_000 }), now: now}
	ep.device = ep.enroll("lamp-1", o, nil)
	ep.deviceKey, ep.ring, ep.http = deviceSigner(t, ep.device), ep.stealKeys(), ep.client()
	k, err := jose.ParsePrivateJWK(mustValue(os.ReadFile(filepath.Join(ep.dir, "operator.jwk")))(t), jose.ForSigning)
	must(t, err)
	ep.operator, err = k.Signer()
	must(t, err)
	ep.token = ep.issue(ep.deviceKey, "lamp-1", "")
	ep.newNonce()
	ep.boundToken = ep.issue(ep.deviceKey, "lamp-1", ep.dpop(ep.deviceKey, "POST", "/oauth/token", ""))
	ep.handOver()
	ep.bundle = mustValue(ep.admin.TrustBundle(t.Context()))(t)
	ep.pin = mustValue(token.TrustPinOfBundle(ep.bundle))(t)
	ep.endpoints = append(ep.httpEndpoints(), ep.mqttEndpoints()...)
	ep.endpoints = append(append(ep.endpoints, ep.deviceEndpoints()...), ep.rekeyEndpoint()) // the last one changes the key
	return ep
}

// freshTimes are those of a fresh credential.
func (ep *endpointFixture) freshTimes(c map[string]any, life int64) map[string]any {
	n := ep.now().Unix()
	return with(c, "iat", n, "exp", n+life, "jti", watchword.NewNonce())
}

func (ep *endpointFixture) assertion() map[string]any {
	return ep.freshTimes(map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": ep.ring.Issuer()}, 60)
}

// handOver orders something, and lets the device fetch it.
func (ep *endpointFixture) handOver() {
	ep.t.Helper()
	sent, err := ep.admin.Send(ep.t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", TTL: time.Hour})
	must(ep.t, err)
	a := ep.requestOnce("GET", "/v1/self/commands?wait=10s", "", headers("Authorization", "Bearer "+ep.token))
	var out struct {
		Commands []struct {
			JWE string `json:"jwe"`
		} `json:"commands"`
	}
	must(ep.t, json.Unmarshal([]byte(a.body), &out))
	if len(out.Commands) != 1 {
		ep.t.Fatalf("handed over %s", a.body)
	}
	k, err := jose.ParsePrivateJWK(mustValue(os.ReadFile(filepath.Join(filepath.Dir(ep.device.CAFile()), "seal.jwk")))(ep.t), jose.ForEncryption)
	must(ep.t, err)
	o, err := k.Decrypter()
	must(ep.t, err)
	jws, _, err := o.Decrypt(out.Commands[0].JWE, watchword.MaxDocument)
	must(ep.t, err)
	ep.pendingHash = jose.Hash(jws)
	ep.pendingCommand.ID, ep.pendingCommand.Epoch, ep.pendingCommand.Seq = sent.ID, sent.Epoch, sent.Seq
}

// receipt answers what was handed over.
func (ep *endpointFixture) receipt() map[string]any {
	return ep.freshTimes(map[string]any{
		"iss": "lamp-1", "aud": ep.ring.Issuer(), "epoch": ep.pendingCommand.Epoch, "seq": ep.pendingCommand.Seq, "cid": ep.pendingCommand.ID, "ch": ep.pendingHash, "st": "done",
	}, 60)
}

var form = []string{"application/x-www-form-urlencoded"}

func (ep *endpointFixture) dpop(by *jose.Signer, method, path, access string) string {
	raw, err := token.SignDPoP(by, method, ep.url+path, ep.nonce, access, ep.now())
	must(ep.t, err)
	return raw
}

// issue exchanges an assertion for a token.
func (ep *endpointFixture) issue(by *jose.Signer, id watchword.SubjectID, proof string) string {
	ep.t.Helper()
	raw, err := token.SignAssertion(by, id, ep.ring.Issuer(), ep.now(), time.Minute)
	must(ep.t, err)
	head := http.Header{"Content-Type": form}
	if proof != "" {
		head.Set("DPoP", proof)
	}
	a := ep.requestOnce("POST", "/oauth/token", assertionForm(raw).Encode(), head)
	if a.status != 200 {
		ep.t.Fatalf("no token: %d %s", a.status, a.body)
	}
	return a.member(ep.t, "access_token")
}

func assertionForm(raw string) url.Values {
	return formWith(grant, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", raw)
}

// requestOnce is send over one connection.
func (ep *endpointFixture) requestOnce(method, path, body string, head http.Header) answer {
	ep.t.Helper()
	req, err := http.NewRequestWithContext(ep.t.Context(), method, ep.url+path, strings.NewReader(body))
	must(ep.t, err)
	req.Header = head
	res, err := ep.http.Do(req)
	must(ep.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	must(ep.t, err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	var p struct {
		Code  watchword.Code `json:"code"`
		Error string         `json:"error"`
	}
	if len(b) > 0 && json.Unmarshal(b, &p) == nil {
		a.code, a.oauth = p.Code, p.Error
	}
	if a.status == 500 {
		ep.t.Errorf("%s %s: 500 %s", method, path, b)
	}
	return a
}

// observe turns an answer over HTTP into what was seen.
func (ep *endpointFixture) observe(a answer) observed {
	if a.status < 300 {
		return observed{code: accepted}
	}
	if a.member(ep.t, "trace_id") != a.header.Get("Trace-Id") {
		ep.t.Errorf("two traces of one answer: %v %s", a.header, a.body)
	}
	return observed{code: a.code, text: a.body, trace: a.header.Get("Trace-Id")}
}

func headers(kv ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func (ep *endpointFixture) sealJWK() *jose.PublicKey {
	k, err := jose.GenerateKey("X25519")
	must(ep.t, err)
	return k.Public()
}

func object(kv ...any) string {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i].(string)] = kv[i+1]
	}
	b, _ := json.Marshal(m) // what JSON came from, or strings
	return string(b)
}

func (ep *endpointFixture) httpEndpoints() []endpoint {
	t, issuer := ep.t, ep.ring.Issuer()
	bearer := func(tok string) http.Header {
		return headers("Authorization", "Bearer "+tok, "Content-Type", "application/json")
	}
	_, unknown := newKey(t, "P-256")
	_, stray := newKey(t, "P-256")
	seal, straySeal := ep.sealJWK(), ep.sealJWK()
	link := mustValue(ep.admin.CreateDevice(t.Context(), "lamp-9", nil, 0))(t).Enrollment.Link
	at, err := url.Parse(link)
	must(t, err)
	values, err := url.ParseQuery(at.Fragment)
	must(t, err)
	code := values.Get("code")
	return []endpoint{
		{
			name: "HTTP, Bearer", typ: token.TypAccess, key: ep.ring.IssuerSigner(), claims: func() map[string]any { return claims(t, ep.token) },
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "Bearer "+raw)))
			},
		},
		{
			name: "HTTP, DPoP, the token", typ: token.TypAccess, key: ep.ring.IssuerSigner(), claims: func() map[string]any { return claims(t, ep.boundToken) },
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "DPoP "+raw, "DPoP", ep.dpop(ep.deviceKey, "GET", "/v1/self", raw))))
			},
		},
		{
			name: "HTTP, DPoP, the proof", typ: token.TypDPoP, key: ep.deviceKey, keyInHeader: true, refusalCode: watchword.DPoPInvalid,
			claims: func() map[string]any {
				return map[string]any{"jti": watchword.NewNonce(), "htm": "GET", "htu": ep.url + "/v1/self", "iat": ep.now().Unix(), "nonce": ep.nonce, "ath": jose.HashString(ep.boundToken)}
			},
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "DPoP "+ep.boundToken, "DPoP", raw)))
			},
		},
		{
			name: "/oauth/token, the assertion", typ: token.TypAssertion, key: ep.deviceKey, claims: ep.assertion, leeway: token.Skew,
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("POST", "/oauth/token", assertionForm(raw).Encode(), http.Header{"Content-Type": form}))
			},
		},
		{
			name: "/oauth/introspect, the token", typ: token.TypAccess, key: ep.ring.IssuerSigner(), refusalCode: inactive, unlogged: true, claims: func() map[string]any { return claims(t, ep.token) },
			present: func(raw string) observed {
				by := mustValue(ep.admin.Tokens().Get(t.Context()))(t)
				a := ep.requestOnce("POST", "/oauth/introspect", url.Values{"token": {raw}}.Encode(), http.Header{"Content-Type": form, "Authorization": {"Bearer " + by}})
				switch {
				case a.status != 200:
					return ep.observe(a)
				case strings.TrimSpace(a.body) == `{"active":false}`:
					return observed{code: inactive}
				}
				return observed{code: accepted}
			},
		},
		{
			name: "/oauth/revoke, the token", typ: token.TypAccess, key: ep.ring.IssuerSigner(), refusalCode: nothing, unlogged: true, claims: func() map[string]any { return claims(t, ep.issue(ep.deviceKey, "lamp-1", "")) },
			present: func(raw string) observed {
				a := ep.requestOnce("POST", "/oauth/revoke", url.Values{"token": {raw}}.Encode(), http.Header{"Content-Type": form, "Authorization": {"Bearer " + ep.token}})
				if a.status != 200 {
					return ep.observe(a)
				}
				if b := ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "Bearer "+raw)); b.code == watchword.TokenRevoked {
					return observed{code: accepted}
				}
				return observed{code: nothing}
			},
		},
		{
			name: "/v1/enroll, the proof", typ: token.TypEnrollment, key: unknown, refusalCode: watchword.ProofInvalid, leeway: token.Skew,
			claims: func() map[string]any {
				return ep.freshTimes(map[string]any{"aud": issuer, "code_hash": token.CodeHashClaim(code), "seal_jkt": seal.ID()}, 60)
			},
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("POST", "/v1/enroll", object("code", code, "proof", raw, "keys", map[string]any{
					"sign": json.RawMessage(unknown.Public().JWK()), "seal": json.RawMessage(seal.JWK()),
				}), headers("Content-Type", "application/json")))
			},
		},
		{
			name: "/oauth/device_authorization, the proof", typ: token.TypEnrollment, key: stray, refusalCode: watchword.ProofInvalid, leeway: token.Skew,
			claims: func() map[string]any {
				return ep.freshTimes(map[string]any{"aud": issuer, "code_hash": token.PairingHashClaim(), "seal_jkt": straySeal.ID()}, 60)
			},
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("POST", "/oauth/device_authorization", url.Values{
					"client_id": {"lamp-8"}, "sign": {string(stray.Public().JWK())}, "seal": {string(straySeal.JWK())}, "proof": {raw},
				}.Encode(), http.Header{"Content-Type": form}))
			},
		},
		{
			name: "/v1/logins, the proof", typ: token.TypLogin, key: stray, refusalCode: watchword.ProofInvalid, leeway: token.Skew,
			claims: func() map[string]any {
				return ep.freshTimes(map[string]any{"aud": issuer, "code_hash": token.LoginHashClaim(), "pin": ep.pin}, 60)
			},
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("POST", "/v1/logins", object("key", json.RawMessage(stray.Public().JWK()), "proof", raw), headers("Content-Type", "application/json")))
			},
		},
		{
			name: "/v1/self/receipts", typ: token.TypReceipt, key: ep.deviceKey, refusalCode: watchword.ReceiptInvalid, max: watchword.MaxDocument, claims: ep.receipt,
			present: func(raw string) observed {
				return ep.observe(ep.requestOnce("POST", "/v1/self/receipts", object("receipt", raw), bearer(ep.token)))
			},
		},
		{
			name: "/v1/commands, the order", typ: token.TypOrder, key: ep.operator, refusalCode: watchword.OrderInvalid, leeway: token.Skew,
			claims: func() map[string]any {
				return ep.freshTimes(map[string]any{"iss": "operator", "aud": "lamp-1", "server": issuer, "cmd": "lamp.set", "args_hash": jose.HashString("{}")}, 60)
			},
			present: func(raw string) observed {
				by := mustValue(ep.admin.Tokens().Get(t.Context()))(t)
				return ep.observe(ep.requestOnce("POST", "/v1/commands", object("device", "lamp-1", "function", "lamp.set", "args", json.RawMessage("{}"), "order", raw), bearer(by)))
			},
		},
	}
}

func (ep *endpointFixture) rekeyEndpoint() endpoint {
	t, issuer := ep.t, ep.ring.Issuer()
	_, fresh := newKey(t, "P-256")
	freshSeal := ep.sealJWK()
	return endpoint{
		name: "/v1/self/keys", typ: token.TypRekey, key: ep.deviceKey, secondKey: fresh, refusalCode: watchword.ProofInvalid, leeway: token.Skew,
		claims: func() map[string]any {
			return ep.freshTimes(map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": issuer, "sign_jkt": fresh.Public().ID(), "seal_jkt": freshSeal.ID()}, 60)
		},
		present: func(raw string) observed {
			if !json.Valid([]byte(raw)) {
				raw = object("x", raw)[len(`{"x":`):]
				raw = raw[:len(raw)-1]
			}
			return ep.observe(ep.requestOnce("POST", "/v1/self/keys", rekeyBody(t, fresh.Public(), freshSeal, raw), headers("Authorization", "Bearer "+ep.token, "Content-Type", "application/json")))
		},
	}
}

// connack is the answer to a CONNECT of either version.
func (ep *endpointFixture) connack(version byte, password string) observed {
	nc, err := tls.Dial("tcp", ep.device.MQTT(), anchored(ep.t, ep.device))
	must(ep.t, err)
	defer nc.Close()
	if version == 5 {
		return ep.connect(nc, &paho.Connect{ClientID: "lamp-1/t", CleanStart: true, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(password), PasswordFlag: true}, nil)
	}
	var body bytes.Buffer
	body.WriteString("\x00\x04MQTT\x04\xc2\x00\x1e")
	for _, f := range []string{"lamp-1/t", "jwt", password} {
		body.Write(counted(f))
	}
	out := []byte{0x10}
	for n := body.Len(); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			out = append(out, b|0x80)
			continue
		}
		out = append(out, b)
		break
	}
	_, err = nc.Write(append(out, body.Bytes()...))
	must(ep.t, err)
	var ack [4]byte
	_, err = io.ReadFull(nc, ack[:])
	must(ep.t, err)
	// Version 3.1.1 has five return codes: the log distinguishes what they stand for.
	return observed{code: map[byte]watchword.Code{0: accepted, 4: "bad_user_or_password", 5: "not_authorized"}[ack[3]], text: "CONNACK"}
}

func (ep *endpointFixture) connect(nc *tls.Conn, p *paho.Connect, auth paho.Auther) observed {
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc), AuthHandler: auth})
	ack, err := c.Connect(ep.t.Context(), p)
	switch {
	case ack == nil:
		ep.t.Errorf("no CONNACK: %v", err)
		return observed{}
	case ack.ReasonCode == 0:
		must(ep.t, c.Disconnect(&paho.Disconnect{}))
		return observed{code: accepted}
	}
	return observed{codeIn(ack.Properties.ReasonString), ack.Properties.ReasonString, ack.Properties.User.Get("trace_id")}
}

// codeIn is the code that a reason string begins with.
func codeIn(reason string) watchword.Code {
	code, _, _ := strings.Cut(reason, ":")
	code, _, _ = strings.Cut(code, " ")
	return watchword.Code(code)
}

func (ep *endpointFixture) mqttEndpoints() []endpoint {
	t := ep.t
	access := func() map[string]any { return claims(t, ep.token) }
	issuer := ep.ring.IssuerSigner()
	five := func(raw string) observed { return ep.connack(5, raw) }
	three := func(raw string) observed { return ep.connack(4, raw) }
	ace := func(raw string) observed {
		nc, err := tls.Dial("tcp", ep.device.MQTT(), anchored(t, ep.device))
		must(t, err)
		defer nc.Close()
		return ep.connect(nc, &paho.Connect{ClientID: "lamp-1/a", CleanStart: true, KeepAlive: 30, Properties: &paho.ConnectProperties{AuthMethod: "ace", AuthData: counted(raw)}},
			challenged{func(b []byte) []byte { return mustValue(ep.deviceKey.SignBytes(b))(t) }})
	}
	w := mustValue(dialPaho(t, ep.device, "lamp-1/w", ep.token))(t)
	session := w.ack.Properties.User.Get("session")
	say := func(topic string) func(raw string) observed {
		return func(raw string) observed {
			r, err := w.client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(raw)})
			switch {
			case r == nil:
				must(t, errors.Join(errors.New(topic), err))
			case r.ReasonCode < 0x80:
				return observed{code: accepted}
			}
			return observed{codeIn(r.Properties.ReasonString), r.Properties.ReasonString, session}
		}
	}
	return []endpoint{
		{name: "MQTT 5, the password, a token", typ: token.TypAccess, key: issuer, claims: access, present: five},
		{name: "MQTT 5, the password, an assertion", typ: token.TypAssertion, key: ep.deviceKey, claims: ep.assertion, present: five, leeway: token.Skew},
		{name: "MQTT 3.1.1, the password, a token", typ: token.TypAccess, key: issuer, claims: access, present: three},
		{name: "MQTT 3.1.1, the password, an assertion", typ: token.TypAssertion, key: ep.deviceKey, claims: ep.assertion, present: three, leeway: token.Skew},
		{name: "MQTT 5, ace", typ: token.TypAccess, key: issuer, claims: access, present: ace},
		{name: "$watchword/auth, a token", typ: token.TypAccess, key: issuer, claims: access, present: say("$watchword/auth")},
		{name: "$watchword/auth, an assertion", typ: token.TypAssertion, key: ep.deviceKey, claims: ep.assertion, present: say("$watchword/auth"), leeway: token.Skew},
		{
			name: "devices/{id}/receipts", typ: token.TypReceipt, key: ep.deviceKey, refusalCode: watchword.ReceiptInvalid, max: watchword.MaxDocument,
			claims: ep.receipt, present: say("devices/lamp-1/receipts"),
		},
	}
}

// deviceEndpoints is the device's own checks, against a server whose keys are stolen.
func (ep *endpointFixture) deviceEndpoints() []endpoint {
	t, d, iss := ep.t, ep.device, ep.ring.Issuer()
	v := counting(d)
	saw := func(err error) observed {
		if err == nil {
			return observed{code: accepted}
		}
		return observed{code: watchword.CodeOf(err)}
	}
	commands := token.NewKeySet(d.Trust().Command...)
	seq := int64(1000)
	_, to := d.Keys()
	return []endpoint{
		{
			name: "the device, a command", typ: token.TypCommand, key: ep.ring.CommandSigner(), unlogged: true, max: watchword.MaxDocument, leeway: token.Skew,
			claims: func() map[string]any {
				seq++
				return ep.freshTimes(map[string]any{"iss": iss, "aud": "lamp-1", "epoch": 1, "seq": seq, "cmd": "lamp.set", "args": map[string]any{}, "act": map[string]any{"sub": "operator"}}, 60)
			},
			present: func(raw string) observed {
				jwe, err := jose.Encrypt(to, "JWT", []byte(raw))
				must(t, err)
				_, err = v.Execute(t.Context(), jwe)
				return saw(err)
			},
		},
		{
			name: "the device, a configuration", typ: token.TypConfig, key: ep.ring.CommandSigner(), unlogged: true, max: 2 * watchword.MaxDocument, leeway: token.Skew,
			claims: func() map[string]any {
				return ep.freshTimes(map[string]any{"iss": iss, "aud": "lamp-1", "ver": 1, "config": map[string]any{}}, 60)
			},
			present: func(raw string) observed {
				_, err := token.VerifyConfig(raw, commands, iss, "lamp-1", ep.now())
				return saw(err)
			},
		},
		{
			name: "the device, signed time", typ: token.TypTime, key: ep.ring.Signer(keyring.Time), unlogged: true, leeway: -1,
			claims: func() map[string]any {
				return ep.freshTimes(map[string]any{"iss": iss, "nonce": "a nonce of 22 letters.."}, 60)
			},
			present: func(raw string) observed {
				_, err := token.VerifyTime(raw, token.NewKeySet(d.Trust().Time...), iss, "a nonce of 22 letters..")
				return saw(err)
			},
		},
		{
			name: "the device, a trust bundle", typ: token.TypTrust, key: ep.ring.Signer(keyring.Root), unlogged: true, max: watchword.MaxBundle, leeway: -1,
			claims: func() map[string]any {
				c := claims(t, ep.bundle)
				return with(c, "ver", int64(c["ver"].(float64))+1, "epoch", int64(c["epoch"].(float64)))
			},
			present: func(raw string) observed {
				_, err := token.VerifyNextTrust(raw, *d.Trust(), ep.now())
				return saw(err)
			},
		},
	}
}
