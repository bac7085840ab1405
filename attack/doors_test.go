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
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// What a door says that is no code.
const (
	taken    watchword.Code = "taken"
	inactive watchword.Code = "inactive" // of introspection
	nothing  watchword.Code = "nothing"  // of revocation: no error, and nothing happened
)

// seen is what a door said to one paper.
type seen struct {
	code  watchword.Code // taken, or the code of the refusal
	under string         // the words that came with it
	trace string         // of the refusal; empty where the wire has no room for one
}

// detail is what the answer says beside its code: of a problem document or OAuth error,
// or of a reason string. Of a mistake in a form, which is no refusal of a credential and
// names its field beside, it is nothing.
func (s seen) detail() string {
	if s.code == watchword.BadRequest {
		return ""
	}
	var p struct {
		Detail      string `json:"detail"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal([]byte(s.under), &p) == nil {
		return cmp.Or(p.Detail, p.Description)
	}
	return strings.TrimPrefix(strings.TrimPrefix(s.under, string(s.code)), ": ")
}

// door is one place that takes papers of one kind.
type door struct {
	name   string
	typ    string
	key    *jose.Signer // whose signature counts here
	second *jose.Signer // and whose beside it, of a pair
	inHead bool         // the key stands in the header
	max    int          // bytes; 0 means those of a token
	word   watchword.Code
	quiet  bool                  // it refuses without a word in the log: nothing was asked for with the paper
	late   time.Duration         // how long after exp it counts
	claims func() map[string]any // of a fresh good paper
	show   func(raw string) seen
}

// make signs claims as the door wants them, as another kind if typ is one.
func (d door) make(t testing.TB, typ string, c map[string]any) string {
	t.Helper()
	b, err := json.Marshal(c)
	must(t, err)
	return d.forge(t, d.head(typ, d.key), string(b))
}

// head is the header of a good paper, but for its typ.
func (d door) head(typ string, s *jose.Signer) string {
	m := map[string]any{"alg": s.Public().Alg()}
	if typ != "" {
		m["typ"] = typ
	}
	if d.inHead {
		m["jwk"] = json.RawMessage(s.Public().JWK())
	} else {
		m["kid"] = s.Public().ID()
	}
	b, _ := json.Marshal(m) // strings alone
	return string(b)
}

// forge signs whatever header and payload, with the door's keys: the signature holds.
func (d door) forge(t testing.TB, head, payload string) string {
	t.Helper()
	first := forge(t, d.key, head, payload)
	if d.second == nil {
		return first
	}
	return pair(first, forge(t, d.second, d.otherHead(head), payload))
}

func (d door) otherHead(head string) string {
	return strings.NewReplacer(string(d.key.Public().ID()), string(d.second.Public().ID()), `"`+d.key.Public().Alg()+`"`, `"`+d.second.Public().Alg()+`"`).Replace(head)
}

func forge(t testing.TB, s *jose.Signer, head, payload string) string {
	t.Helper()
	input := b64([]byte(head)) + "." + b64([]byte(payload))
	sig, err := s.Prove([]byte(input))
	must(t, err)
	return input + "." + b64(sig)
}

// says is the door's word for a refusal with code.
func (d door) says(code watchword.Code) watchword.Code {
	if d.word != "" {
		return d.word
	}
	return code
}

// street is a house with all its doors, and everything a burglar could steal.
type street struct {
	*house
	ring     *keyring.Ring
	d        *device.Device
	own      *jose.Signer // the device's
	operator *jose.Signer
	token    string // the device's own, a bearer's
	bound    string // the same, bound to its key
	nonce    string
	now      func() time.Time
	web      *http.Client
	doors    []door
	handed   token.Command // to the device, and not answered
	hash     string        // of its inner JWS
	bundle   string
	refused  int // how many refusals it was seen to make
}

// newStreet serves by a clock and collects the papers. It begins with no refusal on record.
func newStreet(t *testing.T, now func() time.Time) *street {
	t.Helper()
	return newStreetOf(t, now, device.Options{})
}

// newStreetOf is newStreet for a device with keys of other curves.
func newStreetOf(t *testing.T, now func() time.Time, o device.Options) *street {
	t.Helper()
	o.Now = now
	s := &street{house: serveAt(t, filepath.Join(t.TempDir(), "data"), now, func(c *server.Config) { c.Limits.PublishRate = 100_000 }), now: now}
	s.d = s.enroll("lamp-1", o, nil)
	s.own, s.ring, s.web = deviceSigner(t, s.d), s.burgle(), s.client()
	k, err := jose.ParsePrivateJWK(must2(os.ReadFile(filepath.Join(s.dir, "operator.jwk")))(t), jose.ForSigning)
	must(t, err)
	s.operator, err = k.Signer()
	must(t, err)
	s.token = s.issue(s.own, "lamp-1", "")
	s.newNonce()
	s.bound = s.issue(s.own, "lamp-1", s.dpop(s.own, "POST", "/oauth/token", ""))
	s.handOver()
	s.bundle = must2(s.admin.TrustBundle(t.Context()))(t)
	s.doors = append(s.httpDoors(), s.mqttDoors()...)
	s.doors = append(append(s.doors, s.deviceDoors()...), s.rekeyDoor()) // who passes the last has another key
	return s
}

// times are those of a fresh paper.
func (s *street) times(c map[string]any, life int64) map[string]any {
	n := s.now().Unix()
	return with(c, "iat", n, "exp", n+life, "jti", watchword.NewNonce())
}

func (s *street) assertion() map[string]any {
	return s.times(map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": s.ring.Issuer()}, 60)
}

// handOver orders something, and lets the device fetch it.
func (s *street) handOver() {
	s.t.Helper()
	sent, err := s.admin.Send(s.t.Context(), admin.Order{Device: "lamp-1", Function: "lamp.set", TTL: time.Hour})
	must(s.t, err)
	a := s.ask1("GET", "/v1/self/commands?wait=10s", "", headers("Authorization", "Bearer "+s.token))
	var out struct {
		Commands []struct {
			JWE string `json:"jwe"`
		} `json:"commands"`
	}
	must(s.t, json.Unmarshal([]byte(a.body), &out))
	if len(out.Commands) != 1 {
		s.t.Fatalf("handed over %s", a.body)
	}
	k, err := jose.ParsePrivateJWK(must2(os.ReadFile(filepath.Join(filepath.Dir(s.d.CAFile()), "seal.jwk")))(s.t), jose.ForSealing)
	must(s.t, err)
	o, err := k.Opener()
	must(s.t, err)
	jws, _, err := o.Open(out.Commands[0].JWE, watchword.MaxDocument)
	must(s.t, err)
	s.hash = jose.Hash(jws)
	s.handed.ID, s.handed.Epoch, s.handed.Seq = sent.ID, sent.Epoch, sent.Seq
}

// receipt answers what was handed over.
func (s *street) receipt() map[string]any {
	return s.times(map[string]any{
		"iss": "lamp-1", "aud": s.ring.Issuer(), "epoch": s.handed.Epoch, "seq": s.handed.Seq, "cid": s.handed.ID, "ch": s.hash, "st": "done",
	}, 60)
}

var form = []string{"application/x-www-form-urlencoded"}

func (s *street) dpop(by *jose.Signer, method, path, access string) string {
	raw, err := token.SignDPoP(by, method, s.url+path, s.nonce, access, s.now())
	must(s.t, err)
	return raw
}

// issue exchanges an assertion for a token.
func (s *street) issue(by *jose.Signer, id watchword.SubjectID, proof string) string {
	s.t.Helper()
	raw, err := token.SignAssertion(by, id, s.ring.Issuer(), s.now(), time.Minute)
	must(s.t, err)
	head := http.Header{"Content-Type": form}
	if proof != "" {
		head.Set("DPoP", proof)
	}
	a := s.ask1("POST", "/oauth/token", assertionForm(raw).Encode(), head)
	if a.status != 200 {
		s.t.Fatalf("no token: %d %s", a.status, a.body)
	}
	return a.member(s.t, "access_token")
}

func assertionForm(raw string) url.Values {
	return formWith(grant, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", raw)
}

// ask1 is send over one connection.
func (s *street) ask1(method, path, body string, head http.Header) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	must(s.t, err)
	req.Header = head
	res, err := s.web.Do(req)
	must(s.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	must(s.t, err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	var p struct {
		Code  watchword.Code `json:"code"`
		Error string         `json:"error"`
	}
	if len(b) > 0 && json.Unmarshal(b, &p) == nil {
		a.code, a.oauth = p.Code, p.Error
	}
	if a.status == 500 {
		s.t.Errorf("%s %s: 500 %s", method, path, b)
	}
	return a
}

// saw turns an answer over HTTP into what was seen.
func (s *street) saw(a answer) seen {
	if a.status < 300 {
		return seen{code: taken}
	}
	if a.member(s.t, "trace_id") != a.header.Get("Trace-Id") {
		s.t.Errorf("two traces of one answer: %v %s", a.header, a.body)
	}
	return seen{code: a.code, under: a.body, trace: a.header.Get("Trace-Id")}
}

func headers(kv ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func (s *street) sealJWK() *jose.PublicKey {
	k, err := jose.GenerateKey("X25519")
	must(s.t, err)
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

func (s *street) httpDoors() []door {
	t, issuer := s.t, s.ring.Issuer()
	bearer := func(tok string) http.Header {
		return headers("Authorization", "Bearer "+tok, "Content-Type", "application/json")
	}
	_, stranger := newKey(t, "P-256")
	_, stray := newKey(t, "P-256")
	seal, straySeal := s.sealJWK(), s.sealJWK()
	link := must2(s.admin.CreateDevice(t.Context(), "lamp-9", nil, 0))(t).Enrollment.Link
	at, err := url.Parse(link)
	must(t, err)
	values, err := url.ParseQuery(at.Fragment)
	must(t, err)
	code := values.Get("code")
	return []door{
		{
			name: "HTTP, Bearer", typ: token.TypAccess, key: s.ring.IssuerSigner(), claims: func() map[string]any { return claims(t, s.token) },
			show: func(raw string) seen {
				return s.saw(s.ask1("GET", "/v1/self", "", headers("Authorization", "Bearer "+raw)))
			},
		},
		{
			name: "HTTP, DPoP, the token", typ: token.TypAccess, key: s.ring.IssuerSigner(), claims: func() map[string]any { return claims(t, s.bound) },
			show: func(raw string) seen {
				return s.saw(s.ask1("GET", "/v1/self", "", headers("Authorization", "DPoP "+raw, "DPoP", s.dpop(s.own, "GET", "/v1/self", raw))))
			},
		},
		{
			name: "HTTP, DPoP, the proof", typ: token.TypDPoP, key: s.own, inHead: true, word: watchword.DPoPInvalid,
			claims: func() map[string]any {
				return map[string]any{"jti": watchword.NewNonce(), "htm": "GET", "htu": s.url + "/v1/self", "iat": s.now().Unix(), "nonce": s.nonce, "ath": jose.HashOf(s.bound)}
			},
			show: func(raw string) seen {
				return s.saw(s.ask1("GET", "/v1/self", "", headers("Authorization", "DPoP "+s.bound, "DPoP", raw)))
			},
		},
		{
			name: "/oauth/token, the assertion", typ: token.TypAssertion, key: s.own, claims: s.assertion, late: token.Skew,
			show: func(raw string) seen {
				return s.saw(s.ask1("POST", "/oauth/token", assertionForm(raw).Encode(), http.Header{"Content-Type": form}))
			},
		},
		{
			name: "/oauth/introspect, the token", typ: token.TypAccess, key: s.ring.IssuerSigner(), word: inactive, quiet: true, claims: func() map[string]any { return claims(t, s.token) },
			show: func(raw string) seen {
				by := must2(s.admin.Tokens().Get(t.Context()))(t)
				a := s.ask1("POST", "/oauth/introspect", url.Values{"token": {raw}}.Encode(), http.Header{"Content-Type": form, "Authorization": {"Bearer " + by}})
				switch {
				case a.status != 200:
					return s.saw(a)
				case strings.TrimSpace(a.body) == `{"active":false}`:
					return seen{code: inactive}
				}
				return seen{code: taken}
			},
		},
		{
			name: "/oauth/revoke, the token", typ: token.TypAccess, key: s.ring.IssuerSigner(), word: nothing, quiet: true, claims: func() map[string]any { return claims(t, s.issue(s.own, "lamp-1", "")) },
			show: func(raw string) seen {
				a := s.ask1("POST", "/oauth/revoke", url.Values{"token": {raw}}.Encode(), http.Header{"Content-Type": form, "Authorization": {"Bearer " + s.token}})
				if a.status != 200 {
					return s.saw(a)
				}
				if b := s.ask1("GET", "/v1/self", "", headers("Authorization", "Bearer "+raw)); b.code == watchword.TokenRevoked {
					return seen{code: taken}
				}
				return seen{code: nothing}
			},
		},
		{
			name: "/v1/enroll, the proof", typ: token.TypEnrollment, key: stranger, word: watchword.ProofInvalid, late: token.Skew,
			claims: func() map[string]any {
				return s.times(map[string]any{"aud": issuer, "code_hash": token.CodeHash(code), "seal_jkt": seal.ID()}, 60)
			},
			show: func(raw string) seen {
				return s.saw(s.ask1("POST", "/v1/enroll", object("code", code, "proof", raw, "keys", map[string]any{
					"sign": json.RawMessage(stranger.Public().JWK()), "seal": json.RawMessage(seal.JWK()),
				}), headers("Content-Type", "application/json")))
			},
		},
		{
			name: "/oauth/device_authorization, the proof", typ: token.TypEnrollment, key: stray, word: watchword.ProofInvalid, late: token.Skew,
			claims: func() map[string]any {
				return s.times(map[string]any{"aud": issuer, "code_hash": token.PairingHash(), "seal_jkt": straySeal.ID()}, 60)
			},
			show: func(raw string) seen {
				return s.saw(s.ask1("POST", "/oauth/device_authorization", url.Values{
					"client_id": {"lamp-8"}, "sign": {string(stray.Public().JWK())}, "seal": {string(straySeal.JWK())}, "proof": {raw},
				}.Encode(), http.Header{"Content-Type": form}))
			},
		},
		{
			name: "/v1/self/receipts", typ: token.TypReceipt, key: s.own, word: watchword.ReceiptInvalid, max: watchword.MaxDocument, claims: s.receipt,
			show: func(raw string) seen {
				return s.saw(s.ask1("POST", "/v1/self/receipts", object("receipt", raw), bearer(s.token)))
			},
		},
		{
			name: "/v1/commands, the order", typ: token.TypOrder, key: s.operator, word: watchword.OrderInvalid, late: token.Skew,
			claims: func() map[string]any {
				return s.times(map[string]any{"iss": "operator", "aud": "lamp-1", "cmd": "lamp.set", "args_hash": jose.HashOf("{}")}, 60)
			},
			show: func(raw string) seen {
				by := must2(s.admin.Tokens().Get(t.Context()))(t)
				return s.saw(s.ask1("POST", "/v1/commands", object("device", "lamp-1", "function", "lamp.set", "args", json.RawMessage("{}"), "order", raw), bearer(by)))
			},
		},
	}
}

func (s *street) rekeyDoor() door {
	t, issuer := s.t, s.ring.Issuer()
	_, fresh := newKey(t, "P-256")
	freshSeal := s.sealJWK()
	return door{
		name: "/v1/self/keys", typ: token.TypRekey, key: s.own, second: fresh, word: watchword.ProofInvalid, late: token.Skew,
		claims: func() map[string]any {
			return s.times(map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": issuer, "sign_jkt": fresh.Public().ID(), "seal_jkt": freshSeal.ID()}, 60)
		},
		show: func(raw string) seen {
			if !json.Valid([]byte(raw)) {
				raw = object("x", raw)[len(`{"x":`):]
				raw = raw[:len(raw)-1]
			}
			return s.saw(s.ask1("POST", "/v1/self/keys", rekeyBody(t, fresh.Public(), freshSeal, raw), headers("Authorization", "Bearer "+s.token, "Content-Type", "application/json")))
		},
	}
}

// connack is the answer to a CONNECT of either version.
func (s *street) connack(version byte, password string) seen {
	nc, err := tls.Dial("tcp", s.d.MQTT(), anchored(s.t, s.d))
	must(s.t, err)
	defer nc.Close()
	if version == 5 {
		return s.connect(nc, &paho.Connect{ClientID: "lamp-1/t", CleanStart: true, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(password), PasswordFlag: true}, nil)
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
	must(s.t, err)
	var ack [4]byte
	_, err = io.ReadFull(nc, ack[:])
	must(s.t, err)
	// Version 3.1.1 has five words: what they stand for is told apart in the log.
	return seen{code: map[byte]watchword.Code{0: taken, 4: "bad_user_or_password", 5: "not_authorized"}[ack[3]], under: "CONNACK"}
}

func (s *street) connect(nc *tls.Conn, p *paho.Connect, auth paho.Auther) seen {
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc), AuthHandler: auth})
	ack, err := c.Connect(s.t.Context(), p)
	switch {
	case ack == nil:
		s.t.Errorf("no CONNACK: %v", err)
		return seen{}
	case ack.ReasonCode == 0:
		must(s.t, c.Disconnect(&paho.Disconnect{}))
		return seen{code: taken}
	}
	return seen{codeIn(ack.Properties.ReasonString), ack.Properties.ReasonString, ack.Properties.User.Get("trace_id")}
}

// codeIn is the code that a reason string begins with.
func codeIn(reason string) watchword.Code {
	code, _, _ := strings.Cut(reason, ":")
	code, _, _ = strings.Cut(code, " ")
	return watchword.Code(code)
}

func (s *street) mqttDoors() []door {
	t := s.t
	access := func() map[string]any { return claims(t, s.token) }
	issuer := s.ring.IssuerSigner()
	five := func(raw string) seen { return s.connack(5, raw) }
	three := func(raw string) seen { return s.connack(4, raw) }
	ace := func(raw string) seen {
		nc, err := tls.Dial("tcp", s.d.MQTT(), anchored(t, s.d))
		must(t, err)
		defer nc.Close()
		return s.connect(nc, &paho.Connect{ClientID: "lamp-1/a", CleanStart: true, KeepAlive: 30, Properties: &paho.ConnectProperties{AuthMethod: "ace", AuthData: counted(raw)}},
			challenged{func(b []byte) []byte { return must2(s.own.Prove(b))(t) }})
	}
	w := must2(dialPaho(t, s.d, "lamp-1/w", s.token))(t)
	session := w.ack.Properties.User.Get("session")
	say := func(topic string) func(raw string) seen {
		return func(raw string) seen {
			r, err := w.client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(raw)})
			switch {
			case r == nil:
				must(t, errors.Join(errors.New(topic), err))
			case r.ReasonCode < 0x80:
				return seen{code: taken}
			}
			return seen{codeIn(r.Properties.ReasonString), r.Properties.ReasonString, session}
		}
	}
	return []door{
		{name: "MQTT 5, the password, a token", typ: token.TypAccess, key: issuer, claims: access, show: five},
		{name: "MQTT 5, the password, an assertion", typ: token.TypAssertion, key: s.own, claims: s.assertion, show: five, late: token.Skew},
		{name: "MQTT 3.1.1, the password, a token", typ: token.TypAccess, key: issuer, claims: access, show: three},
		{name: "MQTT 3.1.1, the password, an assertion", typ: token.TypAssertion, key: s.own, claims: s.assertion, show: three, late: token.Skew},
		{name: "MQTT 5, ace", typ: token.TypAccess, key: issuer, claims: access, show: ace},
		{name: "$watchword/auth, a token", typ: token.TypAccess, key: issuer, claims: access, show: say("$watchword/auth")},
		{name: "$watchword/auth, an assertion", typ: token.TypAssertion, key: s.own, claims: s.assertion, show: say("$watchword/auth"), late: token.Skew},
		{
			name: "devices/{id}/receipts", typ: token.TypReceipt, key: s.own, word: watchword.ReceiptInvalid, max: watchword.MaxDocument,
			claims: s.receipt, show: say("devices/lamp-1/receipts"),
		},
	}
}

// deviceDoors is the device's own checks, against a server whose keys are stolen.
func (s *street) deviceDoors() []door {
	t, d, iss := s.t, s.d, s.ring.Issuer()
	v := counting(d)
	saw := func(err error) seen {
		if err == nil {
			return seen{code: taken}
		}
		return seen{code: watchword.CodeOf(err)}
	}
	commands := token.NewKeySet(d.Trust().Command...)
	seq := int64(1000)
	_, to := d.Keys()
	return []door{
		{
			name: "the device, a command", typ: token.TypCommand, key: s.ring.CommandSigner(), quiet: true, max: watchword.MaxDocument, late: token.Skew,
			claims: func() map[string]any {
				seq++
				return s.times(map[string]any{"iss": iss, "aud": "lamp-1", "epoch": 1, "seq": seq, "cmd": "lamp.set", "args": map[string]any{}, "act": map[string]any{"sub": "operator"}}, 60)
			},
			show: func(raw string) seen {
				jwe, err := jose.Seal(to, "JWT", []byte(raw))
				must(t, err)
				_, err = v.Obey(t.Context(), jwe)
				return saw(err)
			},
		},
		{
			name: "the device, a configuration", typ: token.TypConfig, key: s.ring.CommandSigner(), quiet: true, max: 2 * watchword.MaxDocument, late: token.Skew,
			claims: func() map[string]any {
				return s.times(map[string]any{"iss": iss, "aud": "lamp-1", "ver": 1, "config": map[string]any{}}, 60)
			},
			show: func(raw string) seen {
				_, err := token.VerifyConfig(raw, commands, iss, "lamp-1", s.now())
				return saw(err)
			},
		},
		{
			name: "the device, signed time", typ: token.TypTime, key: s.ring.Signer(keyring.Time), quiet: true, late: -1,
			claims: func() map[string]any {
				return s.times(map[string]any{"iss": iss, "nonce": "a nonce of 22 letters.."}, 60)
			},
			show: func(raw string) seen {
				_, err := token.VerifyTime(raw, token.NewKeySet(d.Trust().Time...), iss, "a nonce of 22 letters..")
				return saw(err)
			},
		},
		{
			name: "the device, a trust bundle", typ: token.TypTrust, key: s.ring.Signer(keyring.Root), quiet: true, max: watchword.MaxBundle, late: -1,
			claims: func() map[string]any {
				c := claims(t, s.bundle)
				return with(c, "ver", int64(c["ver"].(float64))+1, "epoch", int64(c["epoch"].(float64)))
			},
			show: func(raw string) seen {
				_, err := token.VerifyNextTrust(raw, *d.Trust(), s.now())
				return saw(err)
			},
		},
	}
}
