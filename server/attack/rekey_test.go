package attack_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// rekeyBody is what a device posts that changes its keys; nil keys stay.
func rekeyBody(t testing.TB, sign, seal *jose.PublicKey, proof string) string {
	t.Helper()
	keys := map[string]json.RawMessage{}
	if sign != nil {
		keys["sign"] = sign.JWK()
	}
	if seal != nil {
		keys["seal"] = seal.JWK()
	}
	b, err := json.Marshal(map[string]any{"keys": keys, "rekey": json.RawMessage(proof)})
	must(t, err)
	return string(b)
}

func pair(first, second string) string { return `["` + first + `","` + second + `"]` }

// entries returns the log's entries of one kind and outcome. Refusals are written
// behind the answer: they are all there once the server is stopped.
func (srv *testServer) entries(kind string, outcome audit.Outcome) []audit.Entry {
	srv.t.Helper()
	st, err := sqlite.Open(srv.t.Context(), filepath.Join(srv.dir, "watchword.db"), sqlite.Options{})
	must(srv.t, err)
	defer st.Close()
	all, err := audit.Entries(srv.t.Context(), st, 0, 100_000)
	must(srv.t, err)
	return slices.DeleteFunc(all, func(e audit.Entry) bool { return e.Kind != kind || e.Outcome != outcome })
}

func TestKeyChangeEndpoint(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	other := srv.enroll("lamp-2", device.Options{}, nil)
	issuer := srv.stealKeys().Issuer()
	old, foreign := deviceSigner(t, d), deviceSigner(t, other)
	_, oldSeal := d.Keys()
	foreignSign, foreignSeal := other.Keys()
	_, fresh := newKey(t, jose.Ed)
	_, another := newKey(t, jose.P256)
	sealKey, err := jose.GenerateKey(jose.X25519)
	must(t, err)
	seal := sealKey.Public()
	now := time.Now()
	good, err := token.SignRekey(old, fresh, "lamp-1", issuer, seal.ID(), now)
	must(t, err)
	make := func(from, to *jose.Signer, sub watchword.SubjectID, aud string, seal watchword.KeyID, at time.Time) string {
		raw, err := token.SignRekey(from, to, sub, aud, seal, at)
		must(t, err)
		return raw
	}
	var both []string
	must(t, json.Unmarshal([]byte(good), &both))
	said := claims(t, both[0])
	by := func(s *jose.Signer, kv ...any) string { return sign(t, s, token.TypRekey, with(said, kv...)) }
	assertion, err := d.Assertion(time.Minute)
	must(t, err)
	tok := srv.token(d)

	for _, tc := range []struct {
		name  string
		sign  *jose.PublicKey
		seal  *jose.PublicKey
		proof string
		want  watchword.Code
		in    string // the detail
	}{
		{"signed by the old key alone", fresh.Public(), seal, `["` + both[0] + `"]`, watchword.ProofInvalid, "token_malformed"},
		{"signed by the new key alone", fresh.Public(), seal, `["` + both[1] + `"]`, watchword.ProofInvalid, "token_malformed"},
		{"by the old key twice", fresh.Public(), seal, pair(both[0], both[0]), watchword.ProofInvalid, "algorithm_invalid"},
		{"by the new key twice", fresh.Public(), seal, pair(both[1], both[1]), watchword.ProofInvalid, "algorithm_invalid"},
		{"in the other order", fresh.Public(), seal, pair(both[1], both[0]), watchword.ProofInvalid, "algorithm_invalid"},
		{"by three", fresh.Public(), seal, `["` + both[0] + `","` + both[1] + `","` + both[1] + `"]`, watchword.ProofInvalid, "token_malformed"},
		{"one token, not an array", fresh.Public(), seal, `"` + both[0] + `"`, watchword.ProofInvalid, "token_malformed"},
		{"nothing", fresh.Public(), seal, `null`, watchword.ProofInvalid, "token_malformed"},
		{"two payloads", fresh.Public(), seal, pair(both[0], by(fresh, "jti", "another")), watchword.ProofInvalid, "token_malformed"},
		{"another's old key", fresh.Public(), seal, make(foreign, fresh, "lamp-1", issuer, seal.ID(), now), watchword.ProofInvalid, "key_unknown"},
		{"an unknown old key", fresh.Public(), seal, make(another, fresh, "lamp-1", issuer, seal.ID(), now), watchword.ProofInvalid, "key_unknown"},
		{"for another device", fresh.Public(), seal, make(old, fresh, "lamp-2", issuer, seal.ID(), now), watchword.ProofInvalid, "issuer_mismatch"},
		{"for another server", fresh.Public(), seal, make(old, fresh, "lamp-1", "https://evil.example", seal.ID(), now), watchword.ProofInvalid, "audience_mismatch"},
		{"expired", fresh.Public(), seal, make(old, fresh, "lamp-1", issuer, seal.ID(), now.Add(-10*time.Minute)), watchword.ProofInvalid, "token_expired"},
		{"early", fresh.Public(), seal, make(old, fresh, "lamp-1", issuer, seal.ID(), now.Add(5*time.Minute)), watchword.ProofInvalid, "token_early"},
		{"living for an hour", fresh.Public(), seal, pair(by(old, "exp", now.Unix()+3600), by(fresh, "exp", now.Unix()+3600)), watchword.ProofInvalid, "token_lifetime"},
		{"without jti", fresh.Public(), seal, pair(by(old, "jti", nil), by(fresh, "jti", nil)), watchword.ProofInvalid, "token_malformed"},
		{"another signing key beside it", another.Public(), seal, good, watchword.ProofInvalid, "algorithm_invalid"},
		{"another sealing key beside it", fresh.Public(), oldSeal, good, watchword.ProofInvalid, "key_unknown"},
		{"a signing key that is not in the proof", fresh.Public(), seal, pair(by(old, "sign_jkt", "x"), by(fresh, "sign_jkt", "x")), watchword.ProofInvalid, "key_unknown"},
		{"an assertion as the proof", fresh.Public(), seal, pair(assertion, sign(t, fresh, token.TypAssertion, claims(t, assertion))), watchword.ProofInvalid, "token_kind"},
		{"another's signing key", foreignSign, nil, make(old, foreign, "lamp-1", issuer, oldSeal.ID(), now), watchword.Conflict, "used before"},
		{"another's sealing key", fresh.Public(), foreignSeal, make(old, fresh, "lamp-1", issuer, foreignSeal.ID(), now), watchword.Conflict, "used before"},
		{"one key for both", another.Public(), another.Public(), make(old, another, "lamp-1", issuer, another.Public().ID(), now), watchword.BadRequest, ""},
		{"its own sealing key to sign", oldSeal, nil, good, watchword.BadRequest, ""},
		{"a sealing key to sign", seal, nil, good, watchword.BadRequest, ""},
		{"a signing key to seal", nil, fresh.Public(), good, watchword.BadRequest, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			a := srv.request("POST", "/v1/self/keys", tok, rekeyBody(t, tc.sign, tc.seal, tc.proof))
			if a.code != tc.want || !strings.Contains(a.body, tc.in) {
				t.Errorf("got %d %q, want %q: %s", a.status, a.code, tc.want, a.body)
			}
		})
	}
	if a := srv.request("POST", "/v1/self/keys", "", rekeyBody(t, fresh.Public(), seal, good)); a.code != watchword.Unauthenticated {
		t.Errorf("without a token: %q", a.code)
	}
	if a := srv.request("POST", "/v1/self/keys", srv.token(other), rekeyBody(t, fresh.Public(), seal, good)); a.code != watchword.ProofInvalid {
		t.Errorf("with another's token: %q", a.code)
	}
	if a := srv.request("POST", "/v1/self/keys", tok, `{"keys":{"sign":{},"x":1}}`); a.code != watchword.BadRequest || a.field != "keys/x" {
		t.Errorf("an unknown member: %q %q", a.code, a.field)
	}
	operator, err := srv.admin.Tokens().Get(t.Context())
	must(t, err)
	if a := srv.request("POST", "/v1/self/keys", operator, rekeyBody(t, fresh.Public(), seal, good)); a.code != watchword.Denied {
		t.Errorf("an operator: %q", a.code)
	}
	if n := len(srv.entries(audit.DeviceRekey, audit.Done)); n != 0 {
		t.Fatalf("%d key changes passed", n)
	}

	// The valid one, once; then the same again, with the device's new key.
	first := srv.request("POST", "/v1/self/keys", tok, rekeyBody(t, fresh.Public(), seal, good))
	if first.status != 200 || !strings.Contains(first.body, string(fresh.Public().ID())) || !strings.Contains(first.body, string(seal.ID())) {
		t.Fatalf("a good one: %d %s", first.status, first.body)
	}
	if a := srv.request("POST", "/v1/self/keys", tok, rekeyBody(t, fresh.Public(), seal, good)); a.code != watchword.TokenRevoked {
		t.Errorf("the old token: %q", a.code)
	}
	if a := srv.exchangeAssertion(assertion); a.code != watchword.ClientInvalid {
		t.Errorf("an assertion by the retired key: %q", a.code)
	}
	a2, err := token.SignAssertion(fresh, "lamp-1", issuer, now, time.Minute)
	must(t, err)
	var got struct {
		Token string `json:"access_token"`
	}
	must(t, json.Unmarshal([]byte(srv.exchangeAssertion(a2).body), &got))
	tok = got.Token
	if a := srv.request("POST", "/v1/self/keys", tok, rekeyBody(t, fresh.Public(), seal, good)); a.status != 200 || a.body != first.body {
		t.Errorf("the same again: %d %s", a.status, a.body)
	}
	for _, tc := range []struct {
		name, body string
		want       watchword.Code
	}{
		{"from the retired key", rekeyBody(t, another.Public(), nil, make(old, another, "lamp-1", issuer, seal.ID(), now)), watchword.ProofInvalid},
		{"back to the retired key", rekeyBody(t, old.Public(), nil, make(fresh, old, "lamp-1", issuer, seal.ID(), now)), watchword.Conflict},
		{"a jti that was spent", rekeyBody(t, another.Public(), nil, pair(by(fresh, "sign_jkt", another.Public().ID()), by(another, "sign_jkt", another.Public().ID()))), watchword.TokenReplayed},
		{"the jti of an assertion", rekeyBody(t, another.Public(), nil, func() string {
			jti := claims(t, a2)["jti"]
			kv := []any{"sign_jkt", another.Public().ID(), "jti", jti}
			return pair(by(fresh, kv...), by(another, kv...))
		}()), watchword.TokenReplayed},
	} {
		if a := srv.request("POST", "/v1/self/keys", tok, tc.body); a.code != tc.want {
			t.Errorf("%s: %d %q, want %q: %s", tc.name, a.status, a.code, tc.want, a.body)
		}
	}
	// The sealing key alone: one signature.
	next, err := jose.GenerateKey(jose.P256)
	must(t, err)
	if a := srv.request("POST", "/v1/self/keys", tok, rekeyBody(t, nil, next.Public(), make(fresh, fresh, "lamp-1", issuer, next.Public().ID(), now))); a.status != 200 {
		t.Errorf("the sealing key alone: %d %s", a.status, a.body)
	}
	if a := srv.request("GET", "/v1/self", tok, ""); a.status != 200 {
		t.Errorf("the signing key stayed, its token does not: %s", a.body)
	}
	done := srv.entries(audit.DeviceRekey, audit.Done)
	if len(done) != 2 || done[0].Actor != "lamp-1" || done[0].Object != "lamp-1" || done[0].Key != old.Public().ID() || done[0].Data["sign"] != string(fresh.Public().ID()) ||
		done[0].Data["sign_before"] != string(old.Public().ID()) || done[0].Data["seal"] != string(seal.ID()) || done[0].Data["seal_before"] != string(oldSeal.ID()) ||
		done[1].Data["sign_before"] != string(fresh.Public().ID()) {
		t.Errorf("the log says %+v", done)
	}
	srv.stop()
	proofs := 0
	for _, e := range srv.entries(audit.RequestRefuse, audit.Refused) {
		if e.Object == "POST /v1/self/keys" && e.Code == watchword.ProofInvalid && e.Actor == "lamp-1" && e.Key == old.Public().ID() {
			proofs++
		}
	}
	if used := srv.entries(audit.DeviceRekey, audit.Refused); proofs != 21 || len(used) != 3 || used[0].Code != watchword.Conflict || used[0].Actor != "lamp-1" {
		t.Errorf("%d refused proofs are in the log, and of used keys %+v", proofs, used)
	}
}

// A device changes its keys while it runs: its session ends, it reconnects, and commands ordered before and after arrive.
func TestADeviceChangesItsKeysWhileItRuns(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	over := make(chan string, 64)
	v := counting(srv.enroll("lamp-1", device.Options{Connected: func(o string) { over <- o }}, nil))
	run, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- v.Run(run) }()
	connected := func() {
		t.Helper()
		select {
		case o := <-over:
			if o != "mqtt" {
				t.Errorf("over %s", o)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the device does not come back")
		}
	}
	connected()
	order := func() api.Command {
		t.Helper()
		c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 30 * time.Second})
		must(t, err)
		if c.State != watchword.Done {
			t.Errorf("the command is %s", c.State)
		}
		return c
	}
	order()
	sign, seal := v.Keys()
	session, err := srv.admin.Sessions(ctx, "lamp-1")
	must(t, err)
	must(t, v.Rekey(ctx, device.RekeyOptions{Sign: jose.Ed, Seal: jose.X25519}))
	connected()
	now, err := srv.admin.Sessions(ctx, "lamp-1")
	must(t, err)
	for _, s := range now {
		if len(session) != 1 || s.ID == session[0].ID {
			t.Error("the session of the old key lives on")
		}
	}
	newSign, newSeal := v.Keys()
	if newSign.ID() == sign.ID() || newSeal.ID() == seal.ID() || newSign.Curve() != jose.Ed || newSeal.Curve() != jose.X25519 {
		t.Error("the keys did not change")
	}
	c := order()
	if c.Receipt == nil || c.Receipt.Key != newSign.ID() {
		t.Errorf("the receipt is %+v", c.Receipt)
	}
	must(t, v.Rekey(ctx, device.RekeyOptions{}))
	connected()
	order()
	if v.acts.Load() != 3 {
		t.Errorf("%d acts for three commands", v.acts.Load())
	}
	stop()
	must(t, <-ran)
	for _, tc := range []struct {
		name string
		o    device.RekeyOptions
	}{{"X25519 to sign", device.RekeyOptions{Sign: jose.X25519}}, {"Ed25519 to seal", device.RekeyOptions{Seal: jose.Ed}}, {"RSA", device.RekeyOptions{Sign: "RSA"}}} {
		wants(t, tc.name, v.Rekey(ctx, tc.o), watchword.BadRequest)
	}
}

// Receipts that were signed before the change count; a thief's of the old key do not.
func TestReceiptsByARetiredKey(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	v := counting(srv.enroll("lamp-1", device.Options{}, nil))
	old := deviceSigner(t, v.Device)
	hand := func() (api.Command, string) {
		t.Helper()
		c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set"})
		must(t, err)
		a := srv.request("GET", "/v1/self/commands?limit=16", srv.token(v.Device), "")
		var list struct {
			Commands []struct {
				ID  watchword.CommandID
				JWE string
			}
		}
		must(t, json.Unmarshal([]byte(a.body), &list))
		for _, got := range list.Commands {
			if got.ID == c.ID {
				return c, got.JWE
			}
		}
		t.Fatalf("not handed over: %s", a.body)
		return c, ""
	}
	before, jwe := hand()
	receipt, err := v.Execute(ctx, jwe) // signed, and not handed in yet
	must(t, err)
	must(t, v.Rekey(ctx, device.RekeyOptions{}))
	_, err = v.Execute(ctx, jwe)
	wants(t, "what was sealed to the old key, after it", err, watchword.CommandUnsealed)

	after, jwe := hand()
	mine, err := v.Execute(ctx, jwe)
	must(t, err)
	forged := sign(t, old, token.TypReceipt, with(claims(t, mine), "st", "failed"))
	post := func(r string) answer {
		b, err := json.Marshal(map[string]string{"receipt": r})
		must(t, err)
		return srv.request("POST", "/v1/self/receipts", srv.token(v.Device), string(b))
	}
	if a := post(forged); a.code != watchword.ReceiptInvalid {
		t.Errorf("a receipt by the old key for a new command: %d %s", a.status, a.body)
	}
	if a := post(receipt); a.status != 200 {
		t.Errorf("a receipt of before: %d %s", a.status, a.body)
	}
	must(t, v.SendReceipt(ctx, mine))
	for _, id := range []watchword.CommandID{before.ID, after.ID} {
		c, err := srv.admin.Command(ctx, id, 0)
		must(t, err)
		if c.State != watchword.Done {
			t.Errorf("%s is %s", id, c.State)
		}
	}
}

// Whenever power is lost during a key change, the device finds out which keys are valid.
func TestInterruptedKeyChangeIsFinished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	srv := serveOn(t, dir, nil)
	port := srv.url[strings.LastIndexByte(srv.url, ':')+1:]
	d := srv.enroll("lamp-1", device.Options{}, nil)
	folder := filepath.Dir(d.CAFile())
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(folder, name))
		must(t, err)
		return b
	}
	write := func(name string, b []byte) { t.Helper(); must(t, os.WriteFile(filepath.Join(folder, name), b, 0o600)) }
	oldSign, oldSeal := read("sign.jwk"), read("seal.jwk")
	srv.stop()
	wants(t, "no server answers", d.Rekey(t.Context(), device.RekeyOptions{}), watchword.Unavailable)
	next := read("keys.next")
	if info, err := os.Stat(filepath.Join(folder, "keys.next")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("keys.next: %v, %v", info, err)
	}
	if string(read("sign.jwk")) != string(oldSign) || string(read("seal.jwk")) != string(oldSeal) {
		t.Fatal("the keys changed, though the server took none")
	}
	must(t, d.Close())
	srv = serveOn(t, dir, func(c *server.Config) { c.Server.HTTPS, c.Server.MQTTS = "localhost:"+port, d.MQTT() })

	var newSign, newSeal []byte
	for _, tc := range []struct {
		name       string
		sign, seal *[]byte
	}{
		{"before the server was asked", &oldSign, &oldSeal},
		{"after the server took them", &oldSign, &oldSeal},
		{"after the signing key was written", &newSign, &oldSeal},
		{"after both were written", &newSign, &newSeal},
	} {
		write("sign.jwk", *tc.sign)
		write("seal.jwk", *tc.seal)
		write("keys.next", next)
		v := counting(srv.openDevice(folder, device.Options{}))
		run, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- v.Run(run) }()
		c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 30 * time.Second})
		must(t, err)
		if c.State != watchword.Done {
			t.Errorf("%s: a command is %s", tc.name, c.State)
		}
		stop()
		must(t, <-ran)
		must(t, v.Close())
		if _, err := os.Stat(filepath.Join(folder, "keys.next")); !os.IsNotExist(err) {
			t.Errorf("%s: keys.next: %v", tc.name, err)
		}
		if newSign == nil {
			newSign, newSeal = read("sign.jwk"), read("seal.jwk")
		}
		if string(newSign) == string(oldSign) || string(read("sign.jwk")) != string(newSign) || string(read("seal.jwk")) != string(newSeal) {
			t.Errorf("%s: the folder holds other keys than the server", tc.name)
		}
	}
	if n := len(srv.entries(audit.DeviceRekey, audit.Done)); n != 1 {
		t.Errorf("%d key changes", n)
	}

	// Beside a process that holds the folder: it looks which key counts, and changes nothing.
	write("sign.jwk", oldSign)
	write("keys.next", next)
	shared, err := device.OpenShared(folder, device.Options{})
	must(t, err)
	defer shared.Close()
	if _, err := shared.NewToken(t.Context()); err != nil {
		t.Error(err)
	}
	wants(t, "a change by who looks", shared.Rekey(t.Context(), device.RekeyOptions{}), watchword.FolderInUse)
	if string(read("sign.jwk")) != string(oldSign) || string(read("keys.next")) != string(next) {
		t.Error("who looks wrote")
	}

	// A folder from a backup, whose next keys were replaced long ago: it is lost, and says so.
	write("keys.next", []byte("{"))
	write("keys.next.copy", []byte("{"))
	if _, err := device.OpenWith(folder, device.Options{}); watchword.CodeOf(err) != watchword.KeyDamaged {
		t.Errorf("damaged next keys: %v", err)
	}
}

// Policy may forbid it: then the old keys go on.
func TestKeyChangeDeniedByPolicy(t *testing.T) {
	srv := serve(t, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "frozen", []byte("subjects = [\"lamp-1\"]\n[[deny]]\npost = [\"/v1/self/keys\"]\n"), 0)
	must(t, err)
	v := counting(srv.enroll("lamp-1", device.Options{}, nil))
	sign, _ := v.Keys()
	wants(t, "a denied change", v.Rekey(t.Context(), device.RekeyOptions{}), watchword.Denied)
	if now, _ := v.Keys(); now.ID() != sign.ID() {
		t.Error("the key changed")
	}
	if _, err := v.NewToken(t.Context()); err != nil {
		t.Errorf("the old key: %v", err)
	}
	must(t, srv.admin.DeletePolicy(t.Context(), "frozen"))
	must(t, v.Rekey(t.Context(), device.RekeyOptions{}))
	if now, _ := v.Keys(); now.ID() == sign.ID() {
		t.Error("the key did not change")
	}
}

// An agent that changes its keys by itself does so when they are old, and no sooner.
func TestOldKeysAreRotated(t *testing.T) {
	srv := serve(t, nil)
	v := srv.enroll("lamp-1", device.Options{}, nil)
	first, _ := v.Keys()
	old := time.Now().Add(-60 * 24 * time.Hour)
	must(t, os.Chtimes(filepath.Join(filepath.Dir(v.CAFile()), "seal.jwk"), old, old))
	run, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- v.RekeyEvery(run, 10*time.Second) }() // at once, give or take half a second
	for now := first; now.ID() == first.ID(); now, _ = v.Keys() {
		if _, err := srv.admin.Device(t.Context(), "lamp-1"); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	must(t, <-ran)
	if n := len(srv.entries(audit.DeviceRekey, audit.Done)); n != 1 {
		t.Errorf("%d key changes", n)
	}
}
