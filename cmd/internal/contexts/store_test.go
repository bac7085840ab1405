package contexts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	return &Store{filepath.Join(dir, "config"), filepath.Join(dir, "cache"), func(err error) { t.Errorf("warning: %v", err) }}
}

// login adds a context, as a login does.
func login(t *testing.T, s *Store, name, link string) (keyFile string) {
	t.Helper()
	_, file, _, err := s.EnsureKey(name, link)
	if err != nil {
		t.Fatal(err)
	}
	o := admin.Options{URL: "https://" + name + ":8443", Issuer: "https://" + name, Subject: "alice", Pin: "pin", Bundle: "bundle of " + name}
	if err := s.Add(t.Context(), name, o, file, link); err != nil {
		t.Fatal(err)
	}
	return file
}

func wantCode(t *testing.T, what string, err error, want watchword.Code) {
	t.Helper()
	if watchword.CodeOf(err) != want {
		t.Errorf("%s: got %v, want code %q", what, err, want)
	}
}

func TestContextsAreStored(t *testing.T) {
	s := newStore(t)
	if f, err := s.Read(); err != nil || f.Current != "" || len(f.Contexts) != 0 {
		t.Errorf("before the first login: %+v, %v", f, err)
	}
	home := login(t, s, "home", "1")
	work := login(t, s, "work", "2")
	f, err := s.Read()
	if err != nil || f.Current != "work" || !slices.Equal(f.Names(), []string{"home", "work"}) {
		t.Fatalf("got %+v, %v", f, err)
	}
	if c := f.Contexts["home"]; c != (Context{"https://home:8443", "https://home", "alice", "pin", home, filepath.Join("trust", "home.jws"), "1", nil}) {
		t.Errorf("got %+v", c)
	}
	for _, path := range []string{s.Path(), s.in(home), s.in(work), s.in("trust/home.jws"), s.in("trust/work.jws")} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	for _, dir := range []string{s.in("keys"), s.in("trust"), s.dir} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}

	o, err := s.Options("home")
	if err != nil || o.URL != "https://home:8443" || o.Issuer != "https://home" || o.Subject != "alice" || o.Pin != "pin" || o.Bundle != "bundle of home" || time.Since(o.BundleAt) > time.Minute {
		t.Errorf("got %+v, %v", o, err)
	}
	o.SaveServer(admin.Server{URL: "https://moved", Issuer: "https://moved", Bundle: "the next bundle", Pin: "the next pin"})
	if o, err = s.Options("home"); err != nil || o.Bundle != "the next bundle" || o.Pin != "the next pin" || o.URL != "https://moved" || o.Issuer != "https://moved" {
		t.Errorf("after a newer bundle: %+v, %v", o, err)
	}

	ends := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	wantCode(t, "the end of the key", s.SetKeyEnds(t.Context(), "home", &ends), "")
	wantCode(t, "the end of the key of an unknown one", s.SetKeyEnds(t.Context(), "nowhere", &ends), watchword.NotFound)
	if f, err = s.Read(); err != nil || f.Contexts["home"].KeyEnds == nil || !f.Contexts["home"].KeyEnds.Equal(ends) || f.Contexts["work"].KeyEnds != nil || len(f.Contexts) != 2 {
		t.Errorf("got %+v, %v", f, err)
	}
	wantCode(t, "use", s.Use(t.Context(), "home"), "")
	wantCode(t, "use of an unknown one", s.Use(t.Context(), "nowhere"), watchword.NotFound)
	wantCode(t, "options of an unknown one", errorOf(s.Options("nowhere")), watchword.NotFound)
	wantCode(t, "delete of an unknown one", s.Delete(t.Context(), "nowhere"), watchword.NotFound)
	s.TokenCache(o).Save(rest.CachedToken{Token: "t"})
	wantCode(t, "delete", s.Delete(t.Context(), "home"), "")
	if s.TokenCache(o).Load().Token != "" {
		t.Error("the token of a deleted context is there")
	}
	if f, err = s.Read(); err != nil || f.Current != "" || !slices.Equal(f.Names(), []string{"work"}) {
		t.Errorf("after delete: %+v, %v", f, err)
	}
	for _, path := range []string{s.in(home), s.in("trust/home.jws")} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
}

func errorOf[T any](_ T, err error) error { return err }

func TestContextNameOfAnotherLoginIsRefused(t *testing.T) {
	s := newStore(t)
	login(t, s, "home", "1")
	for link, want := range map[string]struct {
		same bool
		code watchword.Code
	}{"1": {true, ""}, "2": {false, watchword.Conflict}, "": {false, watchword.Conflict}} {
		same, err := s.CheckFree("home", link)
		wantCode(t, "link "+link, err, want.code)
		if same != want.same {
			t.Errorf("link %q: the same is %v", link, same)
		}
	}
	login(t, s, "without-link", "")
	_, err := s.CheckFree("without-link", "")
	wantCode(t, "two logins without a link", err, watchword.Conflict)
	o := admin.Options{URL: "https://other", Issuer: "https://other", Subject: "mallory", Pin: "pin", Bundle: "b"}
	wantCode(t, "add", s.Add(t.Context(), "home", o, "keys/x", "2"), watchword.Conflict)
	if f, err := s.Read(); err != nil || f.Contexts["home"].Subject != "alice" {
		t.Errorf("got %+v, %v", f, err)
	}
	for n := 2; n < maxContexts; n++ {
		login(t, s, fmt.Sprint("c", n), "1")
	}
	_, err = s.CheckFree("one-more", "1")
	wantCode(t, "one more than the limit", err, watchword.Conflict)
}

// The same attempt to log in has the same key after a crash; another attempt has another key.
func TestKeyOfALogin(t *testing.T) {
	s := newStore(t)
	first, file, made, err := s.EnsureKey("home", "1")
	if err != nil || !made {
		t.Fatalf("the first attempt: made %v, %v", made, err)
	}
	again, _, made, err := s.EnsureKey("home", "1")
	if err != nil || made || again.Public().ID() != first.Public().ID() {
		t.Errorf("the same attempt has another key, made %v, %v", made, err)
	}
	other, _, _, err := s.EnsureKey("home", "2")
	if err != nil || other.Public().ID() == first.Public().ID() {
		t.Errorf("another attempt has the same key, %v", err)
	}
	if err := s.ForgetKey(file); err != nil {
		t.Error(err)
	}
	if third, _, _, err := s.EnsureKey("home", "1"); err != nil || third.Public().ID() == first.Public().ID() {
		t.Errorf("a key that was removed is there, %v", err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, "-x", "a b", "a\nb", "é", strings.Repeat("a", 65)} {
		_, _, _, err := s.EnsureKey(name, "1")
		wantCode(t, fmt.Sprintf("%q", name), err, watchword.BadRequest)
		wantCode(t, fmt.Sprintf("%q", name), errorOf(s.CheckFree(name, "1")), watchword.BadRequest)
		wantCode(t, fmt.Sprintf("%q", name), s.Add(t.Context(), name, admin.Options{}, "k", ""), watchword.BadRequest)
	}
}

// A user without a home folder has no contexts, and no folder is made for them.
func TestFoldersOfAUser(t *testing.T) {
	home := t.TempDir()
	for _, c := range []struct {
		home, config, cache   string
		wantConfig, wantCache string // empty: refused
	}{
		{home, "", "", home + "/.config/watchword", home + "/.cache/watchword"},
		{home, "/c", "", "/c/watchword", home + "/.cache/watchword"},
		{home, "relative", "relative", home + "/.config/watchword", home + "/.cache/watchword"},
		{home + "/absent", "", "", "", ""},
		{home + "/absent", "/c", "", "", ""},
		{home + "/absent", "/c", "/d", "/c/watchword", "/d/watchword"},
		{"", "", "", "", ""},
	} {
		t.Setenv("HOME", c.home)
		t.Setenv("XDG_CONFIG_HOME", c.config)
		t.Setenv("XDG_CACHE_HOME", c.cache)
		s, err := Open(nil)
		switch {
		case c.wantConfig == "":
			wantCode(t, c.home, err, watchword.ConfigInvalid)
			if s != nil {
				t.Errorf("%+v: got a store", c)
			}
		case err != nil || s.dir != c.wantConfig || s.cache != c.wantCache:
			t.Errorf("%+v: got %+v, %v", c, s, err)
		}
	}
	if _, err := os.Stat(home + "/absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a home folder was made: %v", err)
	}
}

func TestNameForServer(t *testing.T) {
	for server, want := range map[string]string{
		"https://localhost:8443":             "localhost-8443",
		"https://iot.example.com":            "iot.example.com",
		"https://iot.example.com:443":        "iot.example.com",
		"https://iot.example.com/t/acme":     "iot.example.com-t-acme",
		"https://[::1]:8443":                 "1-8443",
		"https://" + strings.Repeat("a", 99): strings.Repeat("a", 64),
		"https://\u202e":                     "server",
		"%":                                  "server",
	} {
		got := NameFor(server)
		if got != want || CheckName(got) != nil {
			t.Errorf("%s: got %s, want %s", server, got, want)
		}
	}
}

func TestContextsFileIsChecked(t *testing.T) {
	const good = "current = \"a\"\n[contexts.a]\nserver = \"https://a\"\nissuer = \"https://a\"\nsubject = \"alice\"\npin = \"p\"\nkey = \"keys/a.jwk\"\ntrust = \"trust/a.jws\"\n"
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want watchword.Code
	}{
		"as it is written":        {good, 0o600, ""},
		"that others may read":    {good, 0o644, ""},
		"that others may write":   {good, 0o622, watchword.FileUntrusted},
		"no TOML":                 {"x", 0o600, watchword.ConfigInvalid},
		"an unknown member":       {good + "password = \"x\"\n", 0o600, watchword.ConfigInvalid},
		"a server without TLS":    {strings.Replace(good, "https://a", "http://a", 1), 0o600, watchword.ConfigInvalid},
		"a name that is a path":   {strings.Replace(good, "contexts.a", "contexts.\"../a\"", 1), 0o600, watchword.ConfigInvalid},
		"an invalid subject":      {strings.Replace(good, "alice", "a/b", 1), 0o600, watchword.ConfigInvalid},
		"a member that is absent": {strings.Replace(good, "pin = \"p\"\n", "", 1), 0o600, watchword.ConfigInvalid},
		"more than the limit":     {good + strings.Repeat("#", maxFile), 0o600, watchword.ConfigInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			if err := os.MkdirAll(s.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.Path(), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.Path(), c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := s.Read()
			wantCode(t, "read", err, c.want)
			if c.want != "" {
				wantCode(t, "change", s.Use(t.Context(), "a"), c.want)
				return
			}
			_, err = s.Options("a")
			wantCode(t, "without its files", err, watchword.ConfigInvalid)
		})
	}
}

// Keys and tokens that others may read are refused; a key outside of the folder stays when its context is deleted.
func TestKeyFilesOfContexts(t *testing.T) {
	s := newStore(t)
	file := login(t, s, "home", "1")
	if err := os.Chmod(s.in(file), 0o640); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a key that a group may read", errorOf(s.Options("home")), watchword.KeyExposed)

	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "k.jwk")
	if err := os.WriteFile(outside, k.JWK(), 0o600); err != nil {
		t.Fatal(err)
	}
	o := admin.Options{URL: "https://a", Issuer: "https://a", Subject: "alice", Pin: "p", Bundle: "b"}
	if err := s.Add(t.Context(), "a", o, outside, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Options("a"); err != nil || got.Key.Public().ID() != k.Public().ID() {
		t.Errorf("got %v", err)
	}
	wantCode(t, "delete", s.Delete(t.Context(), "a"), "")
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

func TestConcurrentLoginsAreAllStored(t *testing.T) {
	s := newStore(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() { login(t, s, fmt.Sprint("c", i), "1") })
	}
	all.Wait()
	if f, err := s.Read(); err != nil || len(f.Contexts) != 8 {
		t.Errorf("%d contexts, %v", len(f.Contexts), err)
	}
}

func TestTokenCacheIsPrivateAndBounded(t *testing.T) {
	s := newStore(t)
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	of := func(issuer string, subject watchword.SubjectID) admin.TokenCache {
		return s.TokenCache(admin.Options{Issuer: issuer, Subject: subject, Key: k})
	}
	one := of("https://a", "alice")
	if c := one.Load(); c.Token != "" {
		t.Errorf("before the first token: %+v", c)
	}
	saved := rest.CachedToken{Token: "t", Obtained: time.Unix(1, 0).UTC(), RefreshAt: time.Unix(2, 0).UTC()}
	one.Save(saved)
	if c := one.Load(); c != saved {
		t.Errorf("got %+v", c)
	}
	for _, other := range []admin.TokenCache{of("https://b", "alice"), of("https://a", "bob")} {
		if other.Load().Token != "" {
			t.Error("a token of another issuer or subject is loaded")
		}
	}
	path := one.(tokenFile).path
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := one.Load(); c.Token != "" {
		t.Errorf("from a damaged file: %+v", c)
	}

	old := of("https://old", "alice")
	old.Save(saved)
	then := time.Now().Add(-maxTokenAge - time.Minute)
	if err := os.Chtimes(old.(tokenFile).path, then, then); err != nil {
		t.Fatal(err)
	}
	one.Save(saved)
	if old.Load().Token != "" {
		t.Error("a token of more than a day is there")
	}
	for i := range maxTokens + 10 {
		of(fmt.Sprint("https://", i), "alice").Save(saved)
	}
	files, err := filepath.Glob(filepath.Join(s.cache, "tokens", "*.json"))
	if err != nil || len(files) != maxTokens {
		t.Errorf("%d files, %v", len(files), err)
	}
	if of(fmt.Sprint("https://", maxTokens+9), "alice").Load() != saved {
		t.Error("the token that was saved last is not there")
	}

	var warned []error
	s.warn = func(err error) { warned = append(warned, err) }
	if err := os.Chmod(filepath.Join(s.cache, "tokens"), 0o777); err != nil {
		t.Fatal(err)
	}
	if c := of(fmt.Sprint("https://", maxTokens+9), "alice").Load(); c.Token != "" || len(warned) != 1 || watchword.CodeOf(warned[0]) != watchword.FileUntrusted {
		t.Errorf("from a folder that others may write: %+v, %v", c, warned)
	}
}

// A process waits for another one that requests the token, and not longer than its context.
func TestTokenLock(t *testing.T) {
	s := newStore(t)
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	cache := s.TokenCache(admin.Options{Issuer: "https://a", Subject: "alice", Key: k})
	unlock := cache.Lock(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cache.Lock(ctx)() // returns at once
	locked := make(chan func(), 1)
	go func() { locked <- cache.Lock(t.Context()) }()
	unlock()
	testwait.For(t, "the lock, which another process released", locked)()
}

// Of two processes that got different bundles the one with the older bundle may store it last: the newer one stays.
func TestOlderBundleReplacesNoNewerOne(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	bundle := func(epoch, version int64) string {
		raw, err := token.SignTrust(token.Trust{Issuer: "https://home", Version: version, Epoch: epoch, Roots: []*jose.PublicKey{signer.Public()}, Issued: now, Expires: now.Add(time.Hour)}, signer)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	s := newStore(t)
	login(t, s, "home", "1")
	for _, c := range []struct {
		epoch, version int64
		stored         bool
	}{{1, 2, true}, {1, 3, true}, {1, 2, false}, {1, 3, true}, {2, 1, true}, {1, 9, false}} {
		o, err := s.Options("home")
		if err != nil {
			t.Fatal(err)
		}
		raw := bundle(c.epoch, c.version)
		o.SaveServer(admin.Server{URL: "https://home:8443", Issuer: "https://home", Bundle: raw, Pin: "pin of " + raw})
		o, err = s.Options("home")
		if err != nil || (o.Bundle == raw) != c.stored || (o.Pin == "pin of "+raw) != c.stored {
			t.Errorf("bundle %d of epoch %d: stored %v, %v; want %v", c.version, c.epoch, o.Bundle == raw, err, c.stored)
		}
	}
}

// The files of a context are named after it, and some file systems do not distinguish capital letters.
func TestContextNamesDifferInMoreThanCapitalLetters(t *testing.T) {
	s := newStore(t)
	login(t, s, "hub", "1")
	for name, want := range map[string]watchword.Code{"Hub": watchword.Conflict, "HUB": watchword.Conflict, "hub2": ""} {
		_, err := s.CheckFree(name, "2")
		wantCode(t, name, err, want)
		err = s.Add(t.Context(), name, admin.Options{URL: "https://h", Issuer: "https://h", Subject: "alice", Pin: "pin", Bundle: "b"}, "keys/x", "2")
		wantCode(t, "add "+name, err, want)
	}
}
