package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/cmd/internal/contexts"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

// newContexts returns the contexts of a user who has none yet, and makes them those of this process.
func newContexts(t *testing.T) *contexts.Store {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("WATCHWORD_DATA", "")
	t.Setenv("WATCHWORD_CONTEXT", "")
	store, err := contexts.Open(func(err error) { t.Errorf("warning: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Of what a server answers to a login, contexts.toml has only what was verified or has a checked form.
func TestHostileServerWritesNothingIntoContexts(t *testing.T) {
	e := newHostileServer(t)
	w := &hostileSetup{e: e}
	for _, attack := range []string{"fields", "refusal", "known", "reason", "garbage", "token"} {
		store := newContexts(t)
		e.set(attack, "token")
		stdout, stderr := &screen{}, &screen{}
		status := run(t.Context(), []string{"login", w.link()}, terminal.New(stdout, false), terminal.New(stderr, false))
		b, err := os.ReadFile(store.Path())
		if attack != "fields" {
			if !os.IsNotExist(err) || status == 0 {
				t.Errorf("%s: status %d, contexts.toml is %q, %v", attack, status, b, err)
			}
			continue
		}
		clean(t, "contexts.toml", string(b), false)
		f, err := store.Read()
		if err != nil || len(f.Contexts) != 1 || strings.Contains(string(b), "INJECTED") {
			t.Fatalf("%s: %q, %v", attack, b, err)
		}
		name := f.Current
		if c := f.Contexts[name]; c.Server != e.url || c.Issuer != e.url || c.Pin != e.pin || c.Subject != "lamp-1" || name != contexts.NameFor(e.url) {
			t.Errorf("%s: got %+v", name, c)
		}
	}
}

// A server that answers forever with an ever longer document ends the login with an error, and leaves no context.
func TestLoginLimitsTheServersAnswers(t *testing.T) {
	e := newHostileServer(t)
	w := &hostileSetup{e: e}
	long := strings.Repeat("A", 1<<20)
	for _, answer := range []struct{ path, body string }{
		{"/v1/trust", long},
		{"/v1/enroll", `{"id":"` + long + `"}`},
		{"/v1/enroll", `{"id":"alice","kind":"operator","issuer":"` + e.url + `","labels":{"a":"` + long + long + `"}}`},
		{"/v1/enroll", `{"id":"../../alice","kind":"operator","issuer":"` + e.url + `"}`},
		{"/v1/enroll", `{"id":"alice","kind":"device","issuer":"` + e.url + `"}`},
	} {
		store := newContexts(t)
		e.set("fields", "token")
		e.answerAt(answer.path, answer.body)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		stdout, stderr := &screen{}, &screen{}
		status := run(ctx, []string{"login", w.link()}, terminal.New(stdout, false), terminal.New(stderr, false))
		cancel()
		if status == 0 || len(stderr.String()) > 10_000 {
			t.Errorf("%s: status %d, %s", answer.path, status, cut(stderr.String()))
		}
		if _, err := os.Stat(store.Path()); !os.IsNotExist(err) {
			t.Errorf("%s: contexts.toml exists: %v", answer.path, err)
		}
	}
}

// The code that an approver sees is the one that they gave, whatever code the server answers with.
func TestApproverSeesTheirOwnCode(t *testing.T) {
	root, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	bundle := token.Trust{Roots: []*jose.PublicKey{root.Public()}}
	for _, key := range []watchword.KeyID{"key", "another"} {
		stderr := &screen{}
		a := &app{err: terminal.New(stderr, false)}
		_, err := a.compareLogin(token.LoginRequest{UserCode: "BCDF-GHJK", Key: "key", Pin: token.TrustPin(root.Public())}, api.Login{UserCode: "XXXX-XXXX", Sign: key}, bundle, time.Now())
		said := stderr.String()
		if err != nil {
			said += err.Error()
		}
		if (err == nil) != (key == "key") || !strings.Contains(said, "BCDF-GHJK") || strings.Contains(said, "XXXX") {
			t.Errorf("key %s: %q, %v", key, said, err)
		}
	}
}

// Commands warn of the end of a context's key from a week before.
func TestEndOfAKeyIsWarnedOf(t *testing.T) {
	store := newContexts(t)
	_, file, _, err := store.EnsureKey("home", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Add(t.Context(), "home", admin.Options{URL: "https://a", Issuer: "https://a", Subject: "alice", Pin: "p", Bundle: "b"}, file, ""); err != nil {
		t.Fatal(err)
	}
	end := time.Date(2027, 1, 8, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		ends *time.Time
		now  time.Time
		want string
	}{
		{nil, end, ""},
		{&end, end.Add(-keyEndWarning - 1), ""},
		{&end, end.Add(-keyEndWarning), "ends at"},
		{&end, end.Add(-1), "ends at"},
		{&end, end, "has ended at"},
	} {
		if err := store.SetKeyEnds(t.Context(), "home", c.ends); err != nil {
			t.Fatal(err)
		}
		stderr := &screen{}
		a := &app{err: terminal.New(stderr, false)}
		for range 2 {
			if err := a.warnOfKeyEnd(store, "home", c.now); err != nil {
				t.Fatal(err)
			}
		}
		if got := stderr.String(); (c.want == "") != (got == "") || strings.Count(got, "warning:") > 1 || !strings.Contains(got, c.want) || c.want != "" && !strings.Contains(got, "operator link alice, or service link") {
			t.Errorf("end %v, now %v: %q, want %q", c.ends, c.now, got, c.want)
		}
	}
}

// An approver refuses a link with the address of another server, where the certificate of any host would have been enough for the
// client of the person.
func TestApproveComparesTheAddressOfTheLink(t *testing.T) {
	root, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	bundle := token.Trust{Issuer: "https://hub.example:8443", Roots: []*jose.PublicKey{root.Public()}, WebPKI: true, History: []token.IssuerPeriod{
		{Issuer: "https://ended.example", Until: now.Add(-time.Second)}, {Issuer: "https://former.example", Until: now.Add(time.Hour)}, {Issuer: "https://hub.example:8443"},
	}}
	own := bundle
	own.WebPKI = false
	for _, c := range []struct {
		server string
		bundle token.Trust
		want   watchword.Code
	}{
		{"https://hub.example:8443", bundle, ""},
		{"https://HUB.example.", bundle, ""},
		{"https://hub.example/t/plant", bundle, ""},
		{"https://former.example", bundle, ""},
		{"", bundle, ""}, // a code alone
		{"https://ended.example", bundle, watchword.Conflict},
		{"https://hub-example.evil", bundle, watchword.Conflict},
		{"https://192.0.2.1:8443", bundle, watchword.Conflict},
		{"https://192.0.2.1:8443", own, ""},
	} {
		stderr := &screen{}
		a := &app{err: terminal.New(stderr, false)}
		r := token.LoginRequest{Server: c.server, UserCode: "BCDF-GHJK", Key: root.Public().ID(), Pin: token.TrustPin(root.Public())}
		_, err := a.compareLogin(r, api.Login{UserCode: r.UserCode, Sign: r.Key}, c.bundle, now)
		if watchword.CodeOf(err) != c.want || c.want != "" && !strings.Contains(err.Error(), bundle.Issuer) {
			t.Errorf("%q, public Web PKI %v: %v", c.server, c.bundle.WebPKI, err)
		}
	}
}
