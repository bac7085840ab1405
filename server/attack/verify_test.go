package attack_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

const readers = `for = { kind = "meter" }
[[allow]]
post = ["/readings"]
get = ["/readings/${id}/#"]
publish = ["plant/${site}/lux"]
[[deny]]
get = ["/readings/+/secret"]
`

// A service of the user's own, beside a real server: what it takes from devices, and from burglars.
func TestResourceServerAcceptsTokensIssuedForIt(t *testing.T) {
	srv := serve(t, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "readers", []byte(readers), 0)
	must(t, err)
	meter := srv.enroll("meter-1", device.Options{}, watchword.Labels{"kind": "meter", "site": "plant-1"})
	lamp := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"kind": "lamp"})
	ring := srv.stealKeys()

	ca := verify.CAFile(filepath.Join(srv.dir, "tls", "ca.pem"))
	quiet := verify.Log(slog.New(slog.NewTextHandler(srv.log, nil)))
	cache := verify.Cache(filepath.Join(t.TempDir(), "keys.json"))
	v, err := verify.New(t.Context(), ring.Issuer(), ca, cache, quiet, verify.PublicURL("https://api.example"))
	must(t, err)
	defer v.Close()
	mux := http.NewServeMux()
	who := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tok := verify.FromContext(r.Context())
		fmt.Fprintf(w, "%s %s", tok.Subject, tok.Labels)
	})
	mux.Handle("POST /readings", v.Require("api:/readings", "post")(who))
	mux.Handle("GET /readings/", v.RequirePath()(who))
	mux.Handle("POST /lux/{site}", v.Require("topic:plant/{site}/lux", "pub")(who))
	ask := func(method, path, authorization string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("Authorization", authorization)
		for _, line := range headers {
			k, v, _ := strings.Cut(line, ": ")
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}

	good := srv.token(meter)
	if w := ask("POST", "/readings", "Bearer "+good); w.Code != 200 || w.Body.String() != "meter-1 kind=meter,site=plant-1" {
		t.Fatalf("a device's own token: %d %s", w.Code, w.Body)
	}
	for _, tc := range []struct {
		name, method, path, token string
		status                    int
	}{
		{"its own readings", "GET", "/readings/meter-1/today", good, 200},
		{"another's readings", "GET", "/readings/meter-2/today", good, 403},
		{"what is denied", "GET", "/readings/meter-1/secret", good, 403},
		{"a path with dots", "GET", "/readings/meter-1/%2e%2e/meter-2/today", good, 403},
		{"a topic of its plant", "POST", "/lux/plant-1", good, 200},
		{"a topic of another plant", "POST", "/lux/plant-2", good, 403},
		{"a device that policy gives nothing", "POST", "/readings", srv.token(lamp), 403},
	} {
		if w := ask(tc.method, tc.path, "Bearer "+tc.token); w.Code != tc.status {
			t.Errorf("%s: %d %s", tc.name, w.Code, w.Body)
		}
	}

	// With the issuer's stolen key, and what else an attacker may have.
	issuer, own := ring.Signer(keyring.Issuer), deviceSigner(t, meter)
	c := claims(t, good)
	_, unknown := newKey(t, "P-256")
	assertion, err := meter.Assertion(time.Minute)
	must(t, err)
	bound := with(c, "cnf", map[string]any{"jkt": own.Public().ID()})
	for _, tc := range []struct {
		name, token string
		code        watchword.Code
	}{
		{"for another service, by the issuer's own key", sign(t, issuer, token.TypAccess, with(c, "aud", "https://other.example")), watchword.AudienceMismatch},
		{"of another tenant, by the issuer's own key", sign(t, issuer, token.TypAccess, with(c, "iss", ring.Issuer()+"/t/other")), watchword.IssuerMismatch},
		{"by the device's own key", sign(t, own, token.TypAccess, c), watchword.KeyUnknown},
		{"by a foreign key", sign(t, unknown, token.TypAccess, c), watchword.KeyUnknown},
		{"by the command key", sign(t, ring.Signer(keyring.Command), token.TypAccess, c), watchword.KeyUnknown},
		{"over for more than the skew", sign(t, issuer, token.TypAccess, with(c, "iat", time.Now().Unix()-700, "exp", time.Now().Unix()-61)), watchword.TokenExpired},
		{"the device's assertion", assertion, watchword.TokenKind},
		{"bound, as a bearer", sign(t, issuer, token.TypAccess, bound), watchword.ProofRequired},
	} {
		_, err := v.Check(t.Context(), tc.token)
		wants(t, tc.name, err, tc.code)
		if w := ask("POST", "/readings", "Bearer "+tc.token); w.Code != 401 || !strings.Contains(w.Body.String(), string(tc.code)) {
			t.Errorf("%s: %d %s", tc.name, w.Code, w.Body)
		}
	}

	tied := sign(t, issuer, token.TypAccess, bound)
	proof, err := token.SignDPoP(own, "POST", "https://api.example/readings", "", tied, time.Now())
	must(t, err)
	forged, err := token.SignDPoP(unknown, "POST", "https://api.example/readings", "", tied, time.Now())
	must(t, err)
	for _, tc := range []struct {
		name, proof string
		status      int
	}{
		{"a proof by a foreign key", forged, 401},
		{"the device's proof", proof, 200},
		{"the device's proof again", proof, 401},
	} {
		if w := ask("POST", "/readings", "DPoP "+tied, "DPoP: "+tc.proof); w.Code != tc.status {
			t.Errorf("%s: %d %s", tc.name, w.Code, w.Body)
		}
	}

	srv.stop()
	if w := ask("POST", "/readings", "Bearer "+good); w.Code != 200 {
		t.Errorf("once the server is gone: %d %s", w.Code, w.Body)
	}
	again, err := verify.New(t.Context(), ring.Issuer(), ca, cache, quiet)
	must(t, err)
	defer again.Close()
	if _, err := again.Check(t.Context(), good); err != nil {
		t.Errorf("after a restart of the service beside: %v", err)
	}
}

// The program of docs/resource-servers.md, unchanged.
func TestDocumentedResourceServer(t *testing.T) {
	srv := serve(t, nil)
	text, err := os.ReadFile("../../docs/resource-servers.md")
	must(t, err)
	block := func(language string) string {
		_, rest, ok := strings.Cut(string(text), "```"+language+"\n")
		body, _, closed := strings.Cut(rest, "```")
		if !ok || !closed {
			t.Fatalf("no %s in the manual", language)
		}
		return body
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "service")
	must(t, os.WriteFile(source, []byte(block("go")), 0o600))
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, err = srv.admin.ApplyPolicy(t.Context(), "lamps", []byte(block("toml")), 0)
	must(t, err)
	lamp := srv.enroll("lamp-7", device.Options{}, watchword.Labels{"kind": "lamp", "site": "plant-1"})

	cmd := exec.CommandContext(t.Context(), program, "-issuer", srv.stealKeys().Issuer(), "-ca", filepath.Join(srv.dir, "tls", "ca.pem"), "-cache", filepath.Join(dir, "keys.json"), "-listen", "127.0.0.1:0")
	cmd.Stderr = srv.log
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatal(line)
	}
	ask := func(method, path, token string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, string(b)
	}
	good := srv.token(lamp)
	if status, body := ask("POST", "/readings", good); status != 200 || body != "stored for lamp-7 at plant-1\n" {
		t.Errorf("got %d %s", status, body)
	}
	if status, _ := ask("GET", "/readings/lamp-7/today", good); status != 200 {
		t.Errorf("its own readings: %d", status)
	}
	if status, body := ask("GET", "/readings/lamp-8/today", good); status != 403 {
		t.Errorf("another's readings: %d %s", status, body)
	}
	if status, body := ask("POST", "/readings", good+"A"); status != 401 {
		t.Errorf("a token with a byte more: %d %s", status, body)
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("at its end: %v", err)
	}
}
