package attack_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

const typEvent = "vnd.watchword.event+jwt"

// kinds is every typ that there is, and those that there are not.
var kinds = []string{
	token.TypAssertion, token.TypAccess, token.TypDPoP, token.TypEnrollment, token.TypLogin, token.TypRekey, token.TypCommand, token.TypConfig,
	token.TypReceipt, typEvent, token.TypOrder, token.TypTrust, token.TypTime, "JWT", "", "at+jwt+jwt", "vnd.watchword.*", "truſt+jwt",
}

// credential is a credential of some endpoint.
type credential struct {
	name string
	typ  string // of a JWS; empty for others
	raw  string
}

// credentials is one of each kind, as its owner would make it: fresh, signed by the
// right key, and good at its own endpoint.
func (ep *endpointFixture) credentials() []credential {
	t, iss, now := ep.t, ep.ring.Issuer(), ep.now()
	ok := func(raw string, err error) string {
		t.Helper()
		must(t, err)
		return raw
	}
	bearer, bound := ep.issue(ep.deviceKey, "lamp-1", ""), ep.issue(ep.deviceKey, "lamp-1", ep.dpop(ep.deviceKey, "POST", "/oauth/token", ""))
	_, to := ep.device.Keys()
	_, fresh := newKey(t, "Ed25519")
	command := ok(token.SignCommand(ep.ring.CommandSigner(), token.Command{
		Issuer: iss, Device: "lamp-1", ID: "cmd_table", Epoch: 1, Seq: 500, Function: "lamp.set", Args: []byte("{}"), By: "operator", Issued: now, Expires: now.Add(time.Minute),
	}))
	config := ok(token.SignConfig(ep.ring.CommandSigner(), token.Config{Issuer: iss, Device: "lamp-1", Version: 1, Document: json.RawMessage("{}"), Issued: now}))
	event := sign(t, ep.deviceKey, typEvent, ep.freshTimes(map[string]any{"iss": "lamp-1", "aud": "lamp-1", "stream": "lux", "data": 1}, 60))
	rekey := ok(token.SignRekey(ep.deviceKey, fresh, "lamp-1", iss, to.ID(), now))
	var both []string
	must(t, json.Unmarshal([]byte(rekey), &both))
	return []credential{
		{"an access token", token.TypAccess, bearer},
		{"a bound access token", token.TypAccess, bound},
		{"a token for another audience", token.TypAccess, sign(t, ep.ring.IssuerSigner(), token.TypAccess, with(claims(t, bearer), "aud", "https://api.example"))},
		{"an assertion", token.TypAssertion, sign(t, ep.deviceKey, token.TypAssertion, ep.assertion())},
		{"a DPoP proof", token.TypDPoP, ep.dpop(ep.deviceKey, "GET", "/v1/self", ep.boundToken)},
		{"an enrollment proof", token.TypEnrollment, ok(token.SignEnrollment(ep.deviceKey, iss, token.CodeHashClaim("a code"), to.ID(), now))},
		{"a pairing proof", token.TypEnrollment, ok(token.SignEnrollment(ep.deviceKey, iss, token.PairingHashClaim(), to.ID(), now))},
		{"a login proof", token.TypLogin, ok(token.SignLogin(ep.deviceKey, iss, token.LoginHashClaim(), ep.pin, now))},
		{"a key change", "", rekey},
		{"half a key change", token.TypRekey, both[0]},
		{"a command in clear", token.TypCommand, command},
		{"a command", "", ok(jose.Encrypt(to, "JWT", []byte(command)))},
		{"a configuration", token.TypConfig, config},
		{"a sealed configuration", "", ok(jose.Encrypt(to, "JWT", []byte(config)))},
		{"a receipt", token.TypReceipt, sign(t, ep.deviceKey, token.TypReceipt, ep.receipt())},
		{"a sealed event", "", ok(jose.Encrypt(to, "JWT", []byte(event)))},
		{"an order", token.TypOrder, sign(t, ep.operator, token.TypOrder, ep.freshTimes(map[string]any{"iss": "operator", "aud": "lamp-1", "server": iss, "cmd": "lamp.set", "args_hash": jose.HashString("{}")}, 60))},
		{"a trust bundle", token.TypTrust, ep.bundle},
		{"signed time", token.TypTime, ok(token.SignTime(ep.ring.Signer(keyring.Time), iss, watchword.NewNonce(), now))},
		{"nothing much", "", "..."},
		{"nothing", "", ""},
	}
}

// acceptedAt is what endpoints take beside their own kind, and what they say of a credential of
// their own kind that is no good here.
var acceptedAt = map[[2]string]watchword.Code{
	{"HTTP, Bearer", "an access token"}:                                   accepted,
	{"HTTP, Bearer", "a bound access token"}:                              watchword.TokenKind,
	{"HTTP, Bearer", "a token for another audience"}:                      watchword.AudienceMismatch,
	{"HTTP, Bearer", "nothing"}:                                           watchword.TokenMalformed,
	{"HTTP, DPoP, the token", "an access token"}:                          watchword.TokenKind,
	{"HTTP, DPoP, the token", "a bound access token"}:                     accepted,
	{"HTTP, DPoP, the token", "a token for another audience"}:             watchword.AudienceMismatch,
	{"HTTP, DPoP, the proof", "a DPoP proof"}:                             accepted,
	{"/oauth/token, the assertion", "an assertion"}:                       accepted,
	{"/oauth/token, the assertion", "nothing"}:                            watchword.ClientInvalid,
	{"/oauth/introspect, the token", "an access token"}:                   accepted,
	{"/oauth/introspect, the token", "a bound access token"}:              accepted,
	{"/oauth/introspect, the token", "a token for another audience"}:      inactive, // its jti is on record, and not for that audience
	{"/oauth/introspect, the token", "nothing"}:                           watchword.BadRequest,
	{"/oauth/revoke, the token", "an access token"}:                       accepted,
	{"/oauth/revoke, the token", "a token for another audience"}:          nothing, // of the same name as the first, which is gone
	{"/oauth/revoke, the token", "a bound access token"}:                  accepted,
	{"/oauth/revoke, the token", "nothing"}:                               watchword.BadRequest,
	{"/v1/self/receipts", "a receipt"}:                                    accepted,
	{"/v1/commands, the order", "an order"}:                               accepted,
	{"/v1/commands, the order", "nothing"}:                                accepted, // an order need not be signed
	{"MQTT 5, the password, a token", "an access token"}:                  accepted,
	{"MQTT 5, the password, a token", "a bound access token"}:             watchword.TokenKind,
	{"MQTT 5, the password, a token", "a token for another audience"}:     watchword.AudienceMismatch,
	{"MQTT 5, the password, a token", "an assertion"}:                     accepted,
	{"MQTT 5, the password, a token", "nothing"}:                          watchword.Unauthenticated,
	{"MQTT 3.1.1, the password, a token", "an access token"}:              accepted,
	{"MQTT 3.1.1, the password, a token", "a bound access token"}:         "bad_user_or_password",
	{"MQTT 3.1.1, the password, a token", "a token for another audience"}: "not_authorized",
	{"MQTT 3.1.1, the password, a token", "an assertion"}:                 accepted,
	{"MQTT 3.1.1, the password, a token", "nothing"}:                      "not_authorized",
	{"MQTT 5, ace", "an access token"}:                                    accepted,
	{"MQTT 5, ace", "a bound access token"}:                               accepted,
	{"MQTT 5, ace", "a token for another audience"}:                       watchword.AudienceMismatch,
	{"MQTT 5, ace", "nothing"}:                                            watchword.TokenMalformed,
	{"$watchword/auth, a token", "an access token"}:                       accepted,
	{"$watchword/auth, a token", "a bound access token"}:                  watchword.TokenKind,
	{"$watchword/auth, a token", "a token for another audience"}:          watchword.AudienceMismatch,
	{"$watchword/auth, a token", "an assertion"}:                          accepted,
	{"$watchword/auth, a token", "nothing"}:                               watchword.Unauthenticated,
	{"devices/{id}/receipts", "a receipt"}:                                accepted,
	{"the device, a command", "a command in clear"}:                       accepted, // sealed, as everything that is shown there
	{"the device, a configuration", "a configuration"}:                    accepted,
	{"the device, signed time", "signed time"}:                            watchword.NonceMismatch,
	{"the device, a trust bundle", "a trust bundle"}:                      accepted,
	{"the device, a trust bundle", "a key change"}:                        watchword.TokenKind, // two credentials may be a bundle
}

// expected says what d answers to p.
func (d endpoint) expected(p credential) watchword.Code {
	if code, ok := acceptedAt[[2]string{d.name, p.name}]; ok {
		return code
	}
	code := watchword.TokenKind
	if p.typ == "" || p.typ == token.TypDPoP && !d.keyInHeader {
		code = watchword.TokenMalformed
	}
	if limit := d.maxBytes(); len(p.raw) > limit {
		code = watchword.TooLarge
	}
	if strings.HasPrefix(d.name, "MQTT 3.1.1") {
		return "bad_user_or_password"
	}
	return d.codeFor(code)
}

func (d endpoint) maxBytes() int {
	if d.max > 0 {
		return d.max
	}
	return watchword.MaxToken
}

// Every credential at every endpoint: a credential of another endpoint is refused because of its kind, whatever its signer.
// And each refusal can be found in the answer, in the server's log and in the audit log, by one trace and one code.
func TestEveryCredentialAtEveryEndpoint(t *testing.T) {
	ep := newEndpoints(t, time.Now)
	for i := range ep.endpoints {
		ep = ep.withinLimits(t)
		d := ep.endpoints[i]
		if strings.HasSuffix(d.name, ", an assertion") {
			continue // one endpoint with the token's
		}
		t.Run(d.name, func(t *testing.T) {
			var shown []matrixCell
			for _, p := range ep.credentials() {
				shown = append(shown, matrixCell{p.name, p.raw, d.expected(p), d.present(p.raw)})
			}
			ep.compare(t, d, shown)
		})
	}
}

// Kinds × endpoints: an endpoint's own key signs what the endpoint would take, as every other
// kind. Nothing crosses but what is said here.
func TestNoTokenTypeConfusion(t *testing.T) {
	ep := newEndpoints(t, time.Now)
	for i := range ep.endpoints {
		ep = ep.withinLimits(t)
		d := ep.endpoints[i]
		t.Run(d.name, func(t *testing.T) {
			var shown []matrixCell
			for _, typ := range kinds {
				if typ == d.typ {
					continue
				}
				raw := d.sign(t, typ, d.claims())
				want := d.codeFor(watchword.TokenKind)
				switch {
				case strings.HasPrefix(d.name, "MQTT 3.1.1") && typ == token.TypAssertion: // the claims are a token's
					want = "not_authorized"
				case strings.HasPrefix(d.name, "MQTT 3.1.1") && typ == token.TypAccess: // the key is the device's
					want = "not_authorized"
				case strings.HasPrefix(d.name, "MQTT 3.1.1"):
					want = "bad_user_or_password"
				case d.typ == token.TypAssertion && typ == token.TypAccess && d.name[0] != '/':
					want = watchword.KeyUnknown
				case strings.HasSuffix(d.name, ", a token") && typ == token.TypAssertion:
					want = watchword.AudienceMismatch // in which it names its subject as the client
					if claims(t, raw)["iss"] != claims(t, raw)["sub"] {
						want = watchword.IssuerMismatch
					}
				case d.name == "/oauth/token, the assertion" && (typ == "JWT" || typ == ""):
					want = accepted // RFC 7523
				}
				shown = append(shown, matrixCell{"as " + typ, raw, want, d.present(raw)})
			}
			raw := d.sign(t, d.typ, d.claims())
			shown = append(shown, matrixCell{"itself", raw, accepted, d.present(raw)})
			ep.compare(t, d, shown)
		})
	}
}

// matrixCell is one square of the table.
type matrixCell struct {
	name string
	raw  string
	want watchword.Code
	seen observed
}

// compare holds what an endpoint said against what it had to say, and against the logs.
func (ep *endpointFixture) compare(t *testing.T, d endpoint, shown []matrixCell) {
	t.Helper()
	found := map[string]int{}
	traced := 0
	for _, c := range shown {
		if c.seen.code != c.want {
			t.Errorf("%s: got %q, want %q: %s", c.name, c.seen.code, c.want, c.seen.text)
		}
		if c.seen.trace == "" && !d.unlogged && !strings.HasPrefix(d.name, "MQTT 3.1.1") && c.seen.code != accepted {
			t.Errorf("%s: a refusal with no trace", c.name)
		}
		if c.seen.trace != "" && isLogged(c.seen.code) {
			found[c.seen.trace+" "+string(c.seen.code)]++
			traced++
		}
	}
	ep.logs(t, shown)
	text := ep.log.String()
	for _, c := range shown {
		for _, part := range strings.FieldsFunc(c.raw, func(r rune) bool { return strings.ContainsRune(`.",[]`, r) }) {
			if len(part) > 40 && strings.Contains(text, part) {
				t.Errorf("%s: it is in the log: %.60s…", c.name, part)
			}
		}
	}
	ep.recorded(t, found)
	ep.refusals += traced
}

// withinLimits is s, or another one where s made nearly as many refusals as are written
// down in one second.
func (ep *endpointFixture) withinLimits(t *testing.T) *endpointFixture {
	if ep.refusals < 150 {
		return ep
	}
	ep.stop()
	return newEndpoints(t, ep.now)
}

// isLogged reports whether a refusal with code belongs into the log of privileged acts.
func isLogged(code watchword.Code) bool {
	return code != watchword.BadRequest && code != watchword.TooLarge
}

func hasLogLine(text, trace string, code watchword.Code, detail string) bool {
	said := strconv.Quote(oauthText(detail)) // as the log escapes it
	for line := range strings.Lines(text) {
		if !strings.Contains(line, trace) {
			continue
		}
		line = oauthText(strings.ReplaceAll(line, `\"`, "'"))
		if strings.Contains(line, "trace_id="+trace) && strings.Contains(line, "code="+string(code)+" ") && strings.Contains(line, said[1:len(said)-1]) {
			return true
		}
	}
	return false
}

// oauthText replaces double quotation marks and what is not printable ASCII, which error_description cannot contain
// (RFC 6749 §5.2), as the token endpoint does.
func oauthText(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r < 0x20 || r > 0x7e:
			return '?'
		}
		return r
	}, text)
}

// recorded waits until as many refusals as were seen of each trace and code are on
// record: they are written behind the answer, and no faster than so many a second.
func (ep *endpointFixture) recorded(t *testing.T, want map[string]int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		got := map[string]int{}
		for _, e := range ep.entries(audit.RequestRefuse, audit.Refused) {
			got[e.Trace+" "+string(e.Code)]++
		}
		missing := ""
		for k, n := range want {
			if got[k] < n {
				missing += fmt.Sprintf("\n%s: %d of %d", k, got[k], n)
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("not on record: %s", missing)
			return
		}
	}
}
