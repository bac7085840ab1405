package attack_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

func onPort(port string) func(*server.Config) {
	return func(c *server.Config) { c.Server.HTTPS = "localhost:" + port }
}

// countingDevice is a device that counts what it does.
type countingDevice struct {
	*device.Device
	acts atomic.Int64
}

func counting(d *device.Device) *countingDevice {
	v := &countingDevice{Device: d}
	d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) {
		v.acts.Add(1)
		return map[string]bool{"ok": true}, nil
	})
	return v
}

// seal signs a command with s and seals it to the device.
func (v *countingDevice) seal(t testing.TB, s *jose.Signer, c token.Command) string {
	t.Helper()
	_, to := v.Keys()
	jws, err := token.SignCommand(s, c)
	if c.Expires.Sub(c.Issued) > token.CommandLifetime { // none that our own signs
		jws, err = s.Sign(token.TypCommand, fmt.Appendf(nil, `{"iss":%q,"aud":%q,"jti":%q,"iat":%d,"exp":%d,"epoch":%d,"seq":%d,"cmd":%q,"args":%s}`,
			c.Issuer, c.Device, c.ID, c.Issued.Unix(), c.Expires.Unix(), c.Epoch, c.Seq, c.Function, c.Args))
	}
	must(t, err)
	jwe, err := jose.Encrypt(to, "JWT", []byte(jws))
	must(t, err)
	return jwe
}

func status(t testing.TB, receipt string) watchword.ReceiptStatus {
	t.Helper()
	return watchword.ReceiptStatus(claims(t, receipt)["st"].(string))
}

func TestCommandsAtTheDevice(t *testing.T) {
	for _, curves := range []device.Options{{}, {SignCurve: "Ed25519", SealCurve: "X25519"}} {
		t.Run("keys "+curves.SignCurve+curves.SealCurve, func(t *testing.T) { commandsAtTheDevice(t, curves) })
	}
}

func commandsAtTheDevice(t *testing.T, o device.Options) {
	srv := serve(t, nil)
	v := counting(srv.enroll("lamp-1", o, nil))
	foreign := counting(srv.enroll("lamp-2", o, nil))
	ring := srv.stealKeys()
	real := ring.Signer(keyring.Command)
	_, unknown := newKey(t, "P-256")
	now := time.Now()
	order := func(seq int64) token.Command {
		return token.Command{
			Issuer: ring.Issuer(), Device: "lamp-1", ID: watchword.CommandID(watchword.NewID("cmd_", now)), Epoch: 1, Seq: seq,
			Function: "lamp.set", Args: []byte(`{}`), By: "operator", Issued: now, Expires: now.Add(time.Minute),
		}
	}
	edit := func(seq int64, f func(*token.Command)) token.Command {
		c := order(seq)
		f(&c)
		return c
	}
	ten := order(10)
	good := v.seal(t, real, ten)
	first, err := v.Execute(t.Context(), good)
	must(t, err)
	if status(t, first) != watchword.StatusDone || v.acts.Load() != 1 {
		t.Fatal("a good command was not obeyed")
	}
	plain, err := token.SignCommand(real, order(11))
	must(t, err)
	noJWT, err := jose.Encrypt(func() *jose.PublicKey { _, s := v.Keys(); return s }(), "text/plain", []byte(plain))
	must(t, err)
	flipped := []byte(v.seal(t, real, order(11)))
	flipped[len(flipped)-30] ^= 1

	for _, tc := range []struct {
		name, jwe string
		want      watchword.Code
	}{
		{"signed by a foreign key", v.seal(t, unknown, order(11)), watchword.KeyUnknown},
		{"signed by the issuer key", v.seal(t, ring.Signer(keyring.Issuer), order(11)), watchword.KeyUnknown},
		{"in clear", plain, watchword.CommandUnsealed},
		{"sealed as something else", noJWT, watchword.CommandUnsealed},
		{"sealed to another device", foreign.seal(t, real, order(11)), watchword.CommandUnsealed},
		{"a byte flipped under the seal", string(flipped), watchword.CommandUnsealed},
		{"words", "open sesame", watchword.CommandUnsealed},
		{"for another device, sealed to this one", v.seal(t, real, edit(11, func(c *token.Command) { c.Device = "lamp-2" })), watchword.AudienceMismatch},
		{"of another issuer", v.seal(t, real, edit(11, func(c *token.Command) { c.Issuer = "https://evil.example" })), watchword.IssuerMismatch},
		{"late", v.seal(t, real, edit(11, func(c *token.Command) { c.Issued, c.Expires = now.Add(-10*time.Minute), now.Add(-2*time.Minute) })), watchword.CommandExpired},
		{"early", v.seal(t, real, edit(11, func(c *token.Command) { c.Issued, c.Expires = now.Add(10*time.Minute), now.Add(11*time.Minute) })), watchword.TokenEarly},
		{"living for days", v.seal(t, real, edit(11, func(c *token.Command) { c.Expires = now.Add(25 * time.Hour) })), watchword.TokenLifetime},
		{"an older number that was never seen", v.seal(t, real, order(9)), watchword.CommandStale},
		{"of an epoch that the root never told of", v.seal(t, real, edit(1, func(c *token.Command) { c.Epoch = 2 })), watchword.BundleInvalid},
		{"a configuration as a command", sealed(t, v, func() string {
			s, err := token.SignConfig(real, token.Config{Issuer: ring.Issuer(), Device: "lamp-1", Version: 1, Document: json.RawMessage(`{}`), Issued: now})
			must(t, err)
			return s
		}()), watchword.TokenKind},
	} {
		t.Run(tc.name, func(t *testing.T) {
			receipt, err := v.Execute(t.Context(), tc.jwe)
			if receipt != "" {
				t.Errorf("a receipt: %s", receipt)
			}
			wants(t, tc.name, err, tc.want)
		})
	}
	if v.acts.Load() != 1 {
		t.Fatalf("the device acted %d times", v.acts.Load())
	}
	again, err := v.Execute(t.Context(), good)
	must(t, err)
	resealed, err := v.Execute(t.Context(), v.seal(t, real, ten))
	must(t, err)
	if again != first || resealed != first || v.acts.Load() != 1 {
		t.Error("a replay, as it was or sealed anew, must bring the same receipt and no act")
	}
	conflict, err := v.Execute(t.Context(), v.seal(t, real, order(10)))
	must(t, err)
	if status(t, conflict) != watchword.StatusConflict || v.acts.Load() != 1 {
		t.Error("another command with a number that was seen must be a signed conflict")
	}
	if _, err := v.Execute(t.Context(), v.seal(t, real, order(12))); err != nil || v.acts.Load() != 2 {
		t.Errorf("after all this the next good one must be obeyed: %v", err)
	}
	if _, err := v.Execute(t.Context(), v.seal(t, real, order(11))); watchword.CodeOf(err) != watchword.CommandStale {
		t.Errorf("reordered: %v", err)
	}
}

func sealed(t testing.TB, v *countingDevice, jws string) string {
	t.Helper()
	_, to := v.Keys()
	jwe, err := jose.Encrypt(to, "JWT", []byte(jws))
	must(t, err)
	return jwe
}

func TestInterruptedDeviceSignsInterrupted(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	dir := filepath.Dir(d.CAFile())
	ring := srv.stealKeys()
	now := time.Now()
	cmd := token.Command{
		Issuer: ring.Issuer(), Device: "lamp-1", ID: "cmd_cut", Epoch: 1, Seq: 5, Function: "lamp.set", Args: []byte(`{}`),
		By: "operator", Issued: now, Expires: now.Add(time.Minute),
	}
	// The journal as a kill -9 in the middle of the act leaves it: begun, not ended, and a torn line after it.
	journal := filepath.Join(dir, "journal")
	d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) {
		b, err := os.ReadFile(journal)
		must(t, err)
		must(t, os.WriteFile(journal+".cut", append(b, "deadbeef {\"op\":\"en"...), 0o600))
		return nil, nil
	})
	jwe := (&countingDevice{Device: d}).seal(t, ring.Signer(keyring.Command), cmd)
	_, err := d.Execute(t.Context(), jwe)
	must(t, err)
	must(t, d.Close())
	must(t, os.Rename(journal+".cut", journal))
	v := counting(srv.openDevice(dir, device.Options{}))
	receipt, err := v.Execute(t.Context(), jwe)
	must(t, err)
	if got := status(t, receipt); got != watchword.StatusInterrupted || v.acts.Load() != 0 {
		t.Errorf("got %s and %d acts, want interrupted and none", got, v.acts.Load())
	}
	if _, seq := v.Position(); seq != 5 {
		t.Errorf("the number is %d", seq)
	}
}

func TestDeviceWithLostJournalNeedsNonce(t *testing.T) {
	srv := serve(t, nil)
	v := counting(srv.enroll("lamp-1", device.Options{}, nil))
	dir := filepath.Dir(v.CAFile())
	ring := srv.stealKeys()
	now := time.Now()
	// obeys lets the device run until it has done one command of the real server.
	obeys := func() (seq int64) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- v.Run(ctx) }()
		c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 20 * time.Second})
		must(t, err)
		if c.State != watchword.Done || v.acts.Load() != 1 {
			t.Errorf("the command is %s after %d acts", c.State, v.acts.Load())
		}
		cancel()
		must(t, <-ran)
		return c.Seq
	}
	seq := obeys()
	for name, lose := range map[string]func(){
		"a journal that is gone": func() { must(t, os.Remove(filepath.Join(dir, "journal"))) },
		"an empty journal":       func() { must(t, os.WriteFile(filepath.Join(dir, "journal"), nil, 0o600)) },
		"all that is remembered, gone": func() {
			must(t, os.Remove(filepath.Join(dir, "journal")))
			must(t, os.Remove(filepath.Join(dir, "numbers")))
		},
	} {
		captured := v.seal(t, ring.Signer(keyring.Command), token.Command{
			Issuer: ring.Issuer(), Device: "lamp-1", ID: "cmd_old", Epoch: 1, Seq: seq, Function: "lamp.set", Args: []byte(`{}`),
			By: "operator", Issued: now, Expires: now.Add(time.Minute),
		})
		must(t, v.Close())
		lose()
		v = counting(srv.openDevice(dir, device.Options{}))
		if reason := v.MemoryLost(); reason == "" {
			t.Errorf("%s: the memory is not lost", name)
		}
		_, err := v.Execute(t.Context(), captured)
		wants(t, name+": a captured command", err, watchword.NonceMismatch)
		if v.acts.Load() != 0 {
			t.Fatalf("%s: it acted", name)
		}
		seq = obeys() // with its nonce it continues: the real server signs for it
		if reason := v.MemoryLost(); reason != "" {
			t.Errorf("%s: it is lost still: %s", name, reason)
		}
	}
}

func TestPinnedOrders(t *testing.T) {
	srv := serve(t, nil)
	v := counting(srv.enroll("lamp-1", device.Options{}, nil))
	op, err := os.ReadFile(filepath.Join(srv.dir, "operator.jwk"))
	must(t, err)
	key, err := jose.ParsePrivateJWK(op, jose.ForSigning)
	must(t, err)
	v.PinOrderKeys(key.Public())
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- v.Run(ctx) }()
	c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", Args: json.RawMessage(`{"a": 1, "b":[1,2]}`), WaitReceipt: 20 * time.Second})
	must(t, err)
	if c.State != watchword.Done {
		t.Errorf("an order signed by the pinned key: %s %s", c.State, c.Receipt.Result)
	}
	// The server's word alone, even with all its keys, is refused.
	ring := srv.stealKeys()
	now := time.Now()
	receipt, err := v.Execute(t.Context(), v.seal(t, ring.Signer(keyring.Command), token.Command{
		Issuer: ring.Issuer(), Device: "lamp-1", ID: "cmd_server", Epoch: 1, Seq: 50, Function: "lamp.set", Args: []byte(`{}`),
		By: "operator", Issued: now, Expires: now.Add(time.Minute),
	}))
	must(t, err)
	if status(t, receipt) != watchword.StatusRefused || v.acts.Load() != 1 {
		t.Errorf("got %s after %d acts", status(t, receipt), v.acts.Load())
	}
	// An order by the pinned key that was given to another tenant, where the same key is known, is refused too.
	signer, err := key.Signer()
	must(t, err)
	for i, server := range []string{ring.Issuer() + "/t/other", "https://other.example", ring.Issuer()} {
		end := now.Truncate(time.Second).Add(time.Minute)
		signed, err := token.SignOrder(signer, token.Order{By: "operator", Server: server, Device: "lamp-1", Function: "lamp.set", ArgsHash: jose.HashString("{}"), Issued: now, Expires: end})
		must(t, err)
		receipt, err := v.Execute(t.Context(), v.seal(t, ring.Signer(keyring.Command), token.Command{
			Issuer: ring.Issuer(), Device: "lamp-1", ID: watchword.CommandID(fmt.Sprint("cmd_", i)), Epoch: 1, Seq: int64(51 + i), Function: "lamp.set", Args: []byte(`{}`),
			By: "operator", Issued: now, Expires: end, Order: signed,
		}))
		must(t, err)
		want, acts := watchword.StatusRefused, int64(1)
		if server == ring.Issuer() {
			want, acts = watchword.StatusDone, 2
		}
		if got := status(t, receipt); got != want || int64(v.acts.Load()) != acts {
			t.Errorf("an order for %s: got %s after %d acts, want %s", server, got, v.acts.Load(), want)
		}
	}
	cancel()
	must(t, <-ran)
}

func TestReceiptsAtTheServer(t *testing.T) {
	srv := serve(t, nil)
	v := counting(srv.enroll("lamp-1", device.Options{}, nil))
	foreign := srv.enroll("lamp-2", device.Options{}, nil)
	tok, foreignTok := srv.token(v.Device), srv.token(foreign)
	c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set"})
	must(t, err)
	got := srv.request("GET", "/v1/self/commands", tok, "")
	var list struct {
		Commands []struct{ JWE string }
	}
	must(t, json.Unmarshal([]byte(got.body), &list))
	good, err := v.Execute(t.Context(), list.Commands[0].JWE)
	must(t, err)
	own, alien := deviceSigner(t, v.Device), deviceSigner(t, foreign)
	_, unknown := newKey(t, "P-256")
	m := claims(t, good)
	assertion, err := v.Assertion(time.Minute)
	must(t, err)
	post := func(srv *testServer, tok, receipt string) answer {
		b, err := json.Marshal(map[string]string{"receipt": receipt})
		must(srv.t, err)
		return srv.request("POST", "/v1/self/receipts", tok, string(b))
	}
	parts := strings.Split(good, ".")
	for _, tc := range []struct{ name, token, receipt string }{
		{"words", tok, "done, honestly"},
		{"signed by a foreign key", tok, sign(t, unknown, token.TypReceipt, m)},
		{"signed by another device, in this one's name", tok, sign(t, alien, token.TypReceipt, m)},
		{"handed in by another device", foreignTok, good},
		{"another device's own, for this command", foreignTok, sign(t, alien, token.TypReceipt, with(m, "iss", "lamp-2"))},
		{"another hash", tok, sign(t, own, token.TypReceipt, with(m, "ch", jose.Hash([]byte("x"))))},
		{"another number", tok, sign(t, own, token.TypReceipt, with(m, "seq", 77))},
		{"another epoch", tok, sign(t, own, token.TypReceipt, with(m, "epoch", 2))},
		{"another command", tok, sign(t, own, token.TypReceipt, with(m, "cid", "cmd_none"))},
		{"another issuer", tok, sign(t, own, token.TypReceipt, with(m, "aud", "https://evil.example"))},
		{"no status", tok, sign(t, own, token.TypReceipt, with(m, "st", "fine"))},
		{"an assertion", tok, assertion},
		{"another payload under the signature", tok, parts[0] + "." + strings.Split(sign(t, own, token.TypReceipt, with(m, "st", "failed")), ".")[1] + "." + parts[2]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			if a := post(&srv, tc.token, tc.receipt); a.status != 422 || a.code != watchword.ReceiptInvalid {
				t.Errorf("got %d %q: %s", a.status, a.code, a.body)
			}
			now, err := srv.admin.Command(t.Context(), c.ID, 0)
			must(t, err)
			if now.State != watchword.Sent && now.State != watchword.Delivered {
				t.Errorf("the command is %s", now.State)
			}
		})
	}
	if a := post(srv, tok, good); a.status != 200 || !strings.Contains(a.body, `"done"`) {
		t.Errorf("the good one: %d %s", a.status, a.body)
	}
	if a := post(srv, tok, good); a.status != 200 {
		t.Errorf("the same again: %d %s", a.status, a.body)
	}
	if a := post(srv, tok, sign(t, own, token.TypReceipt, with(m, "st", "failed"))); a.code != watchword.Conflict {
		t.Errorf("another end: %d %s", a.status, a.body)
	}
}

func TestEnrollmentEndpoint(t *testing.T) {
	srv := serve(t, nil)
	made, err := srv.admin.CreateDevice(t.Context(), "lamp-1", nil, 0)
	must(t, err)
	link := made.Enrollment.Link

	t.Run("a link of another server sends no code", func(t *testing.T) {
		u, err := url.Parse(link)
		must(t, err)
		d := srv.openDevice(filepath.Join(t.TempDir(), "d"), device.Options{})
		wrong := strings.Replace(link, made.Enrollment.Pin, strings.Repeat("A", 43), 1)
		wants(t, "wrong pin", d.Enroll(t.Context(), wrong), watchword.PinMismatch)
		wants(t, "no link", d.Enroll(t.Context(), "https://"+u.Host+"/e?code=x"), watchword.BadRequest)
		if d.Enrolled() {
			t.Error("enrolled")
		}
	})
	t.Run("two devices with one code: one wins", func(t *testing.T) {
		errs := make(chan error, 2)
		for range 2 {
			d := srv.openDevice(filepath.Join(t.TempDir(), "d"), device.Options{})
			go func() { errs <- d.Enroll(t.Context(), link) }()
		}
		a, b := <-errs, <-errs
		if (a == nil) == (b == nil) {
			t.Fatalf("got %v and %v", a, b)
		}
		if a == nil {
			a = b
		}
		wants(t, "the loser", a, watchword.CodeInvalid)
	})
	t.Run("wrong guesses are slowed by address", func(t *testing.T) {
		_, s := newKey(t, "P-256")
		seal, _ := newKey(t, "P-256")
		var last answer
		for range 12 {
			code := watchword.NewNonce()
			sum := token.CodeDigest(code)
			proof, err := token.SignEnrollment(s, srv.stealKeys().Issuer(), b64(sum[:]), seal.Public().ID(), time.Now())
			must(t, err)
			body, err := json.Marshal(map[string]any{
				"code": code, "proof": proof,
				"keys": map[string]any{"sign": json.RawMessage(s.Public().JWK()), "seal": json.RawMessage(seal.Public().JWK())},
			})
			must(t, err)
			if last = srv.request("POST", "/v1/enroll", "", string(body)); last.code != watchword.CodeInvalid {
				break
			}
		}
		if last.status != 429 || last.header.Get("Retry-After") == "" {
			t.Errorf("after many guesses: %d %s", last.status, last.body)
		}
	})
}

func TestClosedDeviceReturnsErrors(t *testing.T) {
	srv := serve(t, nil)
	v := counting(srv.enroll("lamp-1", device.Options{}, nil))
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- v.Run(ctx) }()
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 20 * time.Second})
	must(t, err)
	if c.State != watchword.Done {
		t.Fatalf("the command is %s", c.State)
	}
	must(t, v.Close())
	_, err = v.Execute(t.Context(), "x")
	wants(t, "after Close", err, watchword.Unavailable)
	cancel()
	<-ran
	if _, seq := v.Position(); seq != 1 {
		t.Errorf("the number is %d", seq)
	}
}

func TestLongFunctionIsAcceptedFirst(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	accepted, goOn := make(chan error, 1), make(chan struct{})
	d.Handle("long", func(ctx context.Context, c *device.Command) (any, error) {
		accepted <- c.Accept(ctx)
		<-goOn
		return nil, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "long"})
	must(t, err)
	must(t, <-accepted)
	now, err := srv.admin.Command(ctx, c.ID, 0)
	must(t, err)
	if now.State != watchword.Accepted || now.SettledAt != nil {
		t.Errorf("under way it is %s", now.State)
	}
	close(goOn)
	done, err := srv.admin.Command(ctx, c.ID, 20*time.Second)
	must(t, err)
	if done.State != watchword.Done {
		t.Errorf("at its end it is %s", done.State)
	}
	cancel()
	must(t, <-ran)
}
