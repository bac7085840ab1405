package attack_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/peers"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// litewitness is a real witness of another's making (litewitness), with its key in an
// agent as its manual has it.
type litewitness struct {
	t    *testing.T
	dir  string
	key  ledger.Key
	line string // of the configuration
	stop func()
}

func startWitness(t *testing.T, name string) *litewitness {
	t.Helper()
	w := &litewitness{t: t, dir: t.TempDir()}
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	fingerprint := peers.Find(t).Agent(t, filepath.Join(w.dir, "agent"), priv)
	address := "127.0.0.1:" + testport.Reserve(t)
	c := exec.Command(outside(t, "litewitness"), "-name", name, "-db", filepath.Join(w.dir, "db"), "-ssh-agent", filepath.Join(w.dir, "agent"), "-key", fingerprint, "-listen", address)
	out, err := c.StderrPipe()
	must(t, err)
	must(t, c.Start())
	w.stop = func() {
		_ = c.Process.Signal(syscall.SIGINT)
		_ = c.Wait() // how it ends is its own affair
	}
	t.Cleanup(w.stop)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, vkey, ok := strings.Cut(lines.Text(), "vkey="); ok {
			w.key, err = ledger.ParseKey(strings.Trim(vkey, `"`))
			must(t, err)
		}
		if strings.Contains(lines.Text(), "listening") {
			break
		}
	}
	go func() {
		for lines.Scan() { // so that it never waits for a reader
		}
	}()
	w.line = w.key.String() + " http://" + address
	return w
}

// watch makes the witness know a log, as its operator does.
func (w *litewitness) watch(origin string, key ledger.Key) {
	w.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(w.dir, "db"))
	must(w.t, err)
	defer db.Close()
	empty, err := tlog.TreeHash(0, nil)
	must(w.t, err)
	_, err = db.Exec(`INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)`, origin, base64.StdEncoding.EncodeToString(empty[:]))
	must(w.t, err)
	_, err = db.Exec(`INSERT INTO key (origin, key) VALUES (?, ?)`, origin, key.String())
	must(w.t, err)
}

// checkpoint waits for one that is good, and returns it.
func (srv *testServer) checkpoint(good func(ledger.VerifiedCheckpoint) bool, keys ...ledger.Key) ledger.VerifiedCheckpoint {
	srv.t.Helper()
	for ctx := srv.t.Context(); ; {
		note, err := srv.admin.LogFile(ctx, "checkpoint")
		if err == nil {
			if o, err := ledger.VerifyCheckpoint(note, keys...); err == nil && good(o) {
				return o
			}
		}
		// The log grows with each question, and a checkpoint follows within a tenth of a second.
		if _, err := srv.admin.Entries(ctx, 0, 1); err != nil {
			srv.t.Fatal(err)
		}
	}
}

func (srv *testServer) logKey() ledger.Key {
	srv.t.Helper()
	keys, err := server.LogKeys(srv.t.Context(), srv.dir)
	must(srv.t, err)
	return keys[0]
}

func TestThirdPartyWitnessesSignTheLog(t *testing.T) {
	ws := []*litewitness{startWitness(t, "w1.example"), startWitness(t, "w2.example"), startWitness(t, "w3.example")}
	dir := filepath.Join(t.TempDir(), "data")
	config := func(c *server.Config) {
		c.Audit.CheckpointEvery.Duration = 100 * time.Millisecond
		for _, w := range ws {
			c.Audit.Witnesses = append(c.Audit.Witnesses, w.line)
		}
	}
	srv := serveOn(t, dir, config)
	key := srv.logKey()
	all := []ledger.Key{key}
	for _, w := range ws {
		w.watch(key.Name(), key)
		all = append(all, w.key)
	}
	srv.checkpoint(func(o ledger.VerifiedCheckpoint) bool { return len(o.Cosignatures) == 3 }, all...)

	// A device that obeys only what is logged and witnessed.
	did := make(chan string, 10)
	lamp := srv.enroll("lamp-1", device.Options{RequireLogProof: true}, nil)
	obey := func(ctx context.Context, c *device.Command) (any, error) {
		did <- string(c.Raw)
		return nil, nil
	}
	lamp.Handle("lamp.set", obey)
	if q := lamp.Trust(); len(q.Witnesses) != 3 || q.Quorum != 2 {
		t.Fatalf("the bundle names %v, quorum %d", q.Witnesses, q.Quorum)
	}
	send := func(level string) api.Command {
		t.Helper()
		c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", Args: json.RawMessage(`{"level":` + level + `}`), WaitReceipt: 30 * time.Second})
		must(t, err)
		return c
	}
	run := func(d *device.Device) func() {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		return func() { cancel(); must(t, <-ended) }
	}
	stop := run(lamp)
	for _, level := range []string{"1", "2", "3"} {
		if c := send(level); c.State != watchword.Done {
			t.Fatalf("%s is %s", level, c.State)
		}
	}
	// One witness away: two are enough.
	ws[0].stop()
	if c := send("4"); c.State != watchword.Done {
		t.Errorf("with two witnesses it is %s", c.State)
	}
	stop()

	// An attacker with the command key alone, and one with the log's key too.
	ring := srv.stealKeys()
	jwe := func(forge func(jws string) (string, []byte)) string {
		epoch, seq := lamp.Position()
		jws, err := token.SignCommand(ring.Signer(keyring.Command), token.Command{
			Issuer: ring.Issuer(), Device: "lamp-1", ID: "cmd_forged", Epoch: max(epoch, 1), Seq: seq + 1, Function: "lamp.set", Args: []byte(`{"level":99}`), By: "operator",
			Issued: time.Now(), Expires: time.Now().Add(time.Minute),
		})
		must(t, err)
		cty, plain := forge(jws)
		_, seal := lamp.Keys()
		out, err := jose.Encrypt(seal, cty, plain)
		must(t, err)
		return out
	}
	proof := func(jws string, extends bool) ledger.LoggedJWS {
		body := `{"v":1,"tenant":"default","at":"2026-11-25T00:00:00Z","kind":"command.handover","object":"cmd_forged","outcome":"done","data":{"ch":"` + jose.HashString(jws) + `","device":"lamp-1"}}`
		salt := ledger.NewSalt()
		tree, _ := ledger.Tree{}.Append(ledger.LeafHash(ledger.Commitment(salt, []byte(body))))
		note, err := ledger.Checkpoint{Origin: key.Name(), Size: 1, Root: tree.Root()}.Sign(ring.LogSigner())
		must(t, err)
		return ledger.NewLoggedJWS(jws, ledger.Proof{Salt: salt, Body: []byte(body), Checkpoint: note}, 0, nil)
	}
	for name, forge := range map[string]func(jws string) (string, []byte){
		"a command alone": func(jws string) (string, []byte) { return "JWT", []byte(jws) },
		"no proof": func(jws string) (string, []byte) {
			return ledger.LoggedType, []byte(`{"jws":"` + jws + `","proof":"x","from":0}`)
		},
		"a log of one's own": func(jws string) (string, []byte) {
			b, err := proof(jws, false).Marshal()
			must(t, err)
			return ledger.LoggedType, b
		},
	} {
		_, err := lamp.Execute(t.Context(), jwe(forge))
		wants(t, name, err, watchword.CommandUnlogged)
	}
	select {
	case got := <-did:
		if got == `{"level":99}` {
			t.Error("a forged command was obeyed")
		}
	default:
	}

	// After a restart the device continues from the last log that it saw, and with one witness alone nothing is handed
	// over.
	must(t, lamp.Close())
	srv.stop()
	ws[1].stop()
	srv = serveOn(t, dir, config)
	lamp = srv.openDevice(filepath.Dir(lamp.CAFile()), device.Options{RequireLogProof: true})
	lamp.Handle("lamp.set", obey)
	stop = run(lamp)
	defer stop()
	c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", TTL: 3 * time.Second, WaitReceipt: 30 * time.Second})
	must(t, err)
	if c.State != watchword.Expired {
		t.Errorf("with one witness it is %s", c.State)
	}
}

// Without witnesses only an attacker with the command key alone is stopped: one with the log's key too is not, as
// documented.
func TestLoggedOnlyWithoutWitnesses(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Server.MQTTS = "" }) // by long poll
	lamp := srv.enroll("lamp-1", device.Options{RequireLogProof: true}, nil)
	lamp.Handle("lamp.set", func(context.Context, *device.Command) (any, error) { return nil, nil })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- lamp.Run(ctx) }()
	for range 2 {
		c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 30 * time.Second})
		must(t, err)
		if c.State != watchword.Done {
			t.Fatalf("it is %s", c.State)
		}
	}
	cancel()
	must(t, <-ended)
	if _, err := ledger.ReadCheckpoint([]byte(read(t, filepath.Join(filepath.Dir(lamp.CAFile()), "log.checkpoint")))); err != nil {
		t.Errorf("what it remembers: %v", err)
	}
}

// A checker of another's making reads the log from the endpoint.
func TestThirdPartyVerifierReadsTheLog(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	for i := range 300 { // over the end of a tile
		if _, err := srv.admin.Entries(ctx, 0, 1+i%2); err != nil {
			t.Fatal(err)
		}
	}
	key := srv.logKey()
	srv.checkpoint(func(o ledger.VerifiedCheckpoint) bool { return o.Size > 300 }, key)
	vkey := filepath.Join(t.TempDir(), "log.vkey")
	write(t, vkey, key.String())
	tok, err := srv.admin.Tokens().Get(ctx)
	must(t, err)
	c := exec.CommandContext(ctx, outside(t, "tlog-fsck"), "--ui=false", "--storage_url", srv.url+"/log/", "--public_key", vkey, "--bearer_token", tok)
	c.Env = append(c.Environ(), "SSL_CERT_FILE="+filepath.Join(srv.dir, "tls", "ca.pem"))
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Successfully fsck'd log") {
		t.Errorf("%v\n%s", err, out)
	}
	// A caller without the permission is refused.
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	for _, path := range []string{"/log/checkpoint", "/log/tile/0/000", "/log/tile/entries/000"} {
		if a := srv.request("GET", path, srv.token(lamp), ""); a.code != watchword.Denied {
			t.Errorf("%s: %d %s", path, a.status, a.code)
		}
		if a := srv.request("GET", path, "", ""); a.status != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, a.status)
		}
	}
	for path, want := range map[string]int{
		"/log/tile/0/000": 200, "/log/tile/entries/000": 200, "/log/tile/0/000.p/256": 404, "/log/tile/0/999": 404, "/log/tile/8/0/000": 404, "/log/tile/0/009.p/255": 404,
		"/log/tile/63/000": 404, "/log/nothing": 404, "/log/tile/1/000.p/1": 200,
	} {
		if a := srv.request("GET", path, tok, ""); a.status != want {
			t.Errorf("%s: %d, want %d", path, a.status, want)
		}
	}
	es, err := srv.admin.FindEntries(ctx, admin.LogQuery{Kind: "log.read", Object: "/log/"}, 100)
	must(t, err)
	if len(es) != 1 {
		t.Errorf("the mirror's reads are %d entries, want 1 for the hour", len(es))
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return string(b)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o600))
}
