package attack_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/token"
)

const typEvent = "vnd.watchword.event+jwt"

// kinds is every typ that there is, and those that there are not.
var kinds = []string{
	token.TypAssertion, token.TypAccess, token.TypDPoP, token.TypEnrollment, token.TypRekey, token.TypCommand, token.TypConfig,
	token.TypReceipt, typEvent, token.TypOrder, token.TypTrust, token.TypTime, "JWT", "", "at+jwt+jwt", "vnd.watchword.*", "truſt+jwt",
}

// paper is one that stands, somewhere.
type paper struct {
	name string
	typ  string // of a JWS; empty for what is none
	raw  string
}

// papers is one of each kind, as its owner would make it: fresh, signed by the
// right key, and good at its own door.
func (s *street) papers() []paper {
	t, iss, now := s.t, s.ring.Issuer(), s.now()
	ok := func(raw string, err error) string {
		t.Helper()
		must(t, err)
		return raw
	}
	bearer, bound := s.issue(s.own, "lamp-1", ""), s.issue(s.own, "lamp-1", s.dpop(s.own, "POST", "/oauth/token", ""))
	_, to := s.d.Keys()
	_, fresh := newKey(t, "Ed25519")
	command := ok(token.SignCommand(s.ring.CommandSigner(), token.Command{
		Issuer: iss, Device: "lamp-1", ID: "cmd_table", Epoch: 1, Seq: 500, Function: "lamp.set", Args: []byte("{}"), By: "operator", Issued: now, Expires: now.Add(time.Minute),
	}))
	config := ok(token.SignConfig(s.ring.CommandSigner(), token.Config{Issuer: iss, Device: "lamp-1", Version: 1, Document: json.RawMessage("{}"), Issued: now}))
	event := sign(t, s.own, typEvent, s.times(map[string]any{"iss": "lamp-1", "aud": "lamp-1", "stream": "lux", "data": 1}, 60))
	rekey := ok(token.SignRekey(s.own, fresh, "lamp-1", iss, to.ID(), now))
	var both []string
	must(t, json.Unmarshal([]byte(rekey), &both))
	return []paper{
		{"an access token", token.TypAccess, bearer},
		{"a bound access token", token.TypAccess, bound},
		{"a token for another audience", token.TypAccess, sign(t, s.ring.IssuerSigner(), token.TypAccess, with(claims(t, bearer), "aud", "https://api.example"))},
		{"an assertion", token.TypAssertion, sign(t, s.own, token.TypAssertion, s.assertion())},
		{"a DPoP proof", token.TypDPoP, s.dpop(s.own, "GET", "/v1/self", s.bound)},
		{"an enrollment proof", token.TypEnrollment, ok(token.SignEnrollment(s.own, iss, token.CodeHash("a code"), to.ID(), now))},
		{"a pairing proof", token.TypEnrollment, ok(token.SignEnrollment(s.own, iss, token.PairingHash(), to.ID(), now))},
		{"a key change", "", rekey},
		{"half a key change", token.TypRekey, both[0]},
		{"a command in clear", token.TypCommand, command},
		{"a command", "", ok(jose.Seal(to, "JWT", []byte(command)))},
		{"a configuration", token.TypConfig, config},
		{"a sealed configuration", "", ok(jose.Seal(to, "JWT", []byte(config)))},
		{"a receipt", token.TypReceipt, sign(t, s.own, token.TypReceipt, s.receipt())},
		{"a sealed event", "", ok(jose.Seal(to, "JWT", []byte(event)))},
		{"an order", token.TypOrder, sign(t, s.operator, token.TypOrder, s.times(map[string]any{"iss": "operator", "aud": "lamp-1", "cmd": "lamp.set", "args_hash": jose.HashOf("{}")}, 60))},
		{"a trust bundle", token.TypTrust, s.bundle},
		{"signed time", token.TypTime, ok(token.SignTime(s.ring.Signer(keyring.Time), iss, watchword.NewNonce(), now))},
		{"nothing much", "", "..."},
		{"nothing", "", ""},
	}
}

// takes is what doors take beside their own kind, and what they say of a paper of
// their own kind that is no good here.
var takes = map[[2]string]watchword.Code{
	{"HTTP, Bearer", "an access token"}:                                   taken,
	{"HTTP, Bearer", "a bound access token"}:                              watchword.TokenKind,
	{"HTTP, Bearer", "a token for another audience"}:                      watchword.AudienceMismatch,
	{"HTTP, Bearer", "nothing"}:                                           watchword.TokenMalformed,
	{"HTTP, DPoP, the token", "an access token"}:                          watchword.TokenKind,
	{"HTTP, DPoP, the token", "a bound access token"}:                     taken,
	{"HTTP, DPoP, the token", "a token for another audience"}:             watchword.AudienceMismatch,
	{"HTTP, DPoP, the proof", "a DPoP proof"}:                             taken,
	{"/oauth/token, the assertion", "an assertion"}:                       taken,
	{"/oauth/token, the assertion", "nothing"}:                            watchword.ClientInvalid,
	{"/oauth/introspect, the token", "an access token"}:                   taken,
	{"/oauth/introspect, the token", "a bound access token"}:              taken,
	{"/oauth/introspect, the token", "a token for another audience"}:      inactive, // its jti is on record, and not for that audience
	{"/oauth/introspect, the token", "nothing"}:                           watchword.BadRequest,
	{"/oauth/revoke, the token", "an access token"}:                       taken,
	{"/oauth/revoke, the token", "a token for another audience"}:          nothing, // of the same name as the first, which is gone
	{"/oauth/revoke, the token", "a bound access token"}:                  taken,
	{"/oauth/revoke, the token", "nothing"}:                               watchword.BadRequest,
	{"/v1/self/receipts", "a receipt"}:                                    taken,
	{"/v1/commands, the order", "an order"}:                               taken,
	{"/v1/commands, the order", "nothing"}:                                taken, // an order need not be signed
	{"MQTT 5, the password, a token", "an access token"}:                  taken,
	{"MQTT 5, the password, a token", "a bound access token"}:             watchword.TokenKind,
	{"MQTT 5, the password, a token", "a token for another audience"}:     watchword.AudienceMismatch,
	{"MQTT 5, the password, a token", "an assertion"}:                     taken,
	{"MQTT 5, the password, a token", "nothing"}:                          watchword.Unauthenticated,
	{"MQTT 3.1.1, the password, a token", "an access token"}:              taken,
	{"MQTT 3.1.1, the password, a token", "a bound access token"}:         "bad_user_or_password",
	{"MQTT 3.1.1, the password, a token", "a token for another audience"}: "not_authorized",
	{"MQTT 3.1.1, the password, a token", "an assertion"}:                 taken,
	{"MQTT 3.1.1, the password, a token", "nothing"}:                      "not_authorized",
	{"MQTT 5, ace", "an access token"}:                                    taken,
	{"MQTT 5, ace", "a bound access token"}:                               taken,
	{"MQTT 5, ace", "a token for another audience"}:                       watchword.AudienceMismatch,
	{"MQTT 5, ace", "nothing"}:                                            watchword.TokenMalformed,
	{"$watchword/auth, a token", "an access token"}:                       taken,
	{"$watchword/auth, a token", "a bound access token"}:                  watchword.TokenKind,
	{"$watchword/auth, a token", "a token for another audience"}:          watchword.AudienceMismatch,
	{"$watchword/auth, a token", "an assertion"}:                          taken,
	{"$watchword/auth, a token", "nothing"}:                               watchword.Unauthenticated,
	{"devices/{id}/receipts", "a receipt"}:                                taken,
	{"the device, a command", "a command in clear"}:                       taken, // sealed, as everything that is shown there
	{"the device, a configuration", "a configuration"}:                    taken,
	{"the device, signed time", "signed time"}:                            watchword.NonceMismatch,
	{"the device, a trust bundle", "a trust bundle"}:                      taken,
	{"the device, a trust bundle", "a key change"}:                        watchword.TokenKind, // two papers may be a bundle
}

// of says what d answers to p.
func (d door) of(p paper) watchword.Code {
	if code, ok := takes[[2]string{d.name, p.name}]; ok {
		return code
	}
	code := watchword.TokenKind
	if p.typ == "" || p.typ == token.TypDPoP && !d.inHead {
		code = watchword.TokenMalformed
	}
	if most := d.most(); len(p.raw) > most {
		code = watchword.TooLarge
	}
	if strings.HasPrefix(d.name, "MQTT 3.1.1") {
		return "bad_user_or_password"
	}
	return d.says(code)
}

func (d door) most() int {
	if d.max > 0 {
		return d.max
	}
	return watchword.MaxToken
}

// Every paper at every door: what is no paper of this door is refused by its kind,
// whoever signed it. And each refusal can be found again: in the answer, in the
// server's log and in the log of privileged acts, by one trace and one code.
func TestEveryPaperAtEveryDoor(t *testing.T) {
	s := newStreet(t, time.Now)
	for i := range s.doors {
		s = s.roomy(t)
		d := s.doors[i]
		if strings.HasSuffix(d.name, ", an assertion") {
			continue // one door with the token's
		}
		t.Run(d.name, func(t *testing.T) {
			var shown []cell
			for _, p := range s.papers() {
				shown = append(shown, cell{p.name, p.raw, d.of(p), d.show(p.raw)})
			}
			s.judge(t, d, shown)
		})
	}
}

// Kinds × doors: a door's own key signs what the door would take, as every other
// kind. Nothing crosses but what is said here.
func TestNoKindPassesForAnother(t *testing.T) {
	s := newStreet(t, time.Now)
	for i := range s.doors {
		s = s.roomy(t)
		d := s.doors[i]
		t.Run(d.name, func(t *testing.T) {
			var shown []cell
			for _, typ := range kinds {
				if typ == d.typ {
					continue
				}
				raw := d.make(t, typ, d.claims())
				want := d.says(watchword.TokenKind)
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
					want = taken // RFC 7523
				}
				shown = append(shown, cell{"as " + typ, raw, want, d.show(raw)})
			}
			raw := d.make(t, d.typ, d.claims())
			shown = append(shown, cell{"itself", raw, taken, d.show(raw)})
			s.judge(t, d, shown)
		})
	}
}

// cell is one square of the table.
type cell struct {
	name string
	raw  string
	want watchword.Code
	seen seen
}

// judge holds what a door said against what it had to say, and against the logs.
func (s *street) judge(t *testing.T, d door, shown []cell) {
	t.Helper()
	found := map[string]int{}
	traced := 0
	for _, c := range shown {
		if c.seen.code != c.want {
			t.Errorf("%s: got %q, want %q: %s", c.name, c.seen.code, c.want, c.seen.under)
		}
		if c.seen.trace == "" && !d.quiet && !strings.HasPrefix(d.name, "MQTT 3.1.1") && c.seen.code != taken {
			t.Errorf("%s: a refusal with no trace", c.name)
		}
		if c.seen.trace != "" && entered(c.seen.code) {
			found[c.seen.trace+" "+string(c.seen.code)]++
			traced++
		}
	}
	s.logs(t, shown)
	text := s.log.String()
	for _, c := range shown {
		for _, part := range strings.FieldsFunc(c.raw, func(r rune) bool { return strings.ContainsRune(`.",[]`, r) }) {
			if len(part) > 40 && strings.Contains(text, part) {
				t.Errorf("%s: it stands in the log: %.60s…", c.name, part)
			}
		}
	}
	s.recorded(t, found)
	s.refused += traced
}

// roomy is s, or another one where s made nearly as many refusals as are written
// down in one second.
func (s *street) roomy(t *testing.T) *street {
	if s.refused < 150 {
		return s
	}
	s.stop()
	return newStreet(t, s.now)
}

// entered reports whether a refusal with code belongs into the log of privileged acts.
func entered(code watchword.Code) bool {
	return code != watchword.BadRequest && code != watchword.TooLarge
}

func logged(text, trace string, code watchword.Code, detail string) bool {
	said := strconv.Quote(detail) // as the log escapes it
	for line := range strings.Lines(text) {
		if strings.Contains(line, "trace="+trace) && strings.Contains(line, "code="+string(code)+" ") && strings.Contains(line, said[1:len(said)-1]) {
			return true
		}
	}
	return false
}

// recorded waits until as many refusals as were seen of each trace and code are on
// record: they are written behind the answer, and no faster than so many a second.
func (s *street) recorded(t *testing.T, want map[string]int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		got := map[string]int{}
		for _, e := range s.entries(audit.RequestRefuse, audit.Refused) {
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
