package device

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// signedConfig is a configuration for the device of s; epoch 0 is that of a server that says none.
func (s *fakeServer) signedConfig(by *jose.Signer, epoch, version int64) []byte {
	s.t.Helper()
	raw, err := token.SignConfig(by, token.Config{
		Issuer: s.trust.Issuer, Device: "lamp-1", Epoch: epoch, Version: version, Document: json.RawMessage(`{}`), Issued: time.Now(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return []byte(raw)
}

// The number of a configuration is kept as a number: it holds though the key that signed it
// is not valid any more, the file is gone, or the device starts again, and a later epoch begins anew.
func TestAnOlderConfigurationIsNeverHandedOn(t *testing.T) {
	const most = 1<<53 - 1
	s := newFakeServer(t)
	d := s.device(false, Options{})
	var got Config
	heard := 0
	hear := func(_ context.Context, c Config) error { heard, got = heard+1, c; return nil }
	d.OnConfig(hear)
	key := s.command
	again := func() {
		t.Helper()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if d, err = OpenWith(d.dir, d.opts); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		d.OnConfig(hear)
	}
	trust := func(epoch int64) func() {
		return func() { // another command key, and perhaps another epoch
			t.Helper()
			key = testSigner(t)
			s.trust.Version++
			s.trust.Epoch, s.trust.Command = epoch, []*jose.PublicKey{key.Public()}
			raw, err := token.SignTrust(s.trust, s.root)
			if err == nil {
				s.bundle = raw
				err = d.renewTrust(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func() {
		t.Helper()
		if err := os.Remove(d.path(configFile)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name           string
		first          func()
		epoch, version int64
		want           watchword.Code
		heard          bool
	}{
		{"the first", nil, 1, 5, "", true},
		{"the same again", nil, 1, 5, "", false},
		{"an older one", nil, 1, 4, watchword.CommandStale, false},
		{"the same of a server that says no epoch", nil, 0, 5, "", false},
		{"an older one after a start", again, 1, 4, watchword.CommandStale, false},
		{"an older one under the next key", trust(1), 1, 4, watchword.CommandStale, false},
		{"the same under the next key", nil, 1, 5, "", false},
		{"an older one under the next key, after a start", again, 1, 4, watchword.CommandStale, false},
		{"an older one without the file", remove, 1, 4, watchword.CommandStale, false},
		{"the same without the file, which is made anew", nil, 1, 5, "", false},
		{"a newer one", remove, 1, 6, "", true},
		{"one of a later epoch than the root said", nil, 2, 7, watchword.BundleInvalid, false},
		{"the last that there can be", nil, 1, most, "", true},
		{"another after it", nil, 1, 7, watchword.CommandStale, false},
		{"the first of the next epoch", trust(2), 2, 1, "", true},
		{"one of the epoch before", nil, 1, most, watchword.CommandStale, false},
		{"one without an epoch", nil, 0, most, watchword.CommandStale, false},
		{"one of the epoch before, after a start", again, 1, most, watchword.CommandStale, false},
		{"the second of the next epoch", nil, 2, 2, "", true},
	} {
		if tc.first != nil {
			tc.first()
		}
		before := heard
		err := d.applyConfig(t.Context(), s.signedConfig(key, tc.epoch, tc.version))
		if watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if (heard > before) != tc.heard || tc.heard && (got.Version != tc.version || got.Epoch != tc.epoch) {
			t.Errorf("%s: handed on %d times, %+v", tc.name, heard-before, got)
		}
	}
	if n, _ := d.configInFolder(); n != (position{2, 2}) {
		t.Errorf("the folder has version %d of epoch %d", n.Seq, n.Epoch)
	}
	d.OnConfig(func(context.Context, Config) error { return errors.New("no") })
	if err := d.applyConfig(t.Context(), s.signedConfig(key, 2, 3)); err == nil || d.knownConfig().Seq != 2 {
		t.Errorf("one that was not applied counts: %v", err)
	}
}

// A folder of a build that kept no numbers has the version in the file alone, also where the key that
// signed it is not valid any more.
func TestTheVersionOfAnOlderBuildsConfigurationIsTakenOver(t *testing.T) {
	for name, by := range map[string]func(s *fakeServer) *jose.Signer{
		"under the key that counts":       func(s *fakeServer) *jose.Signer { return s.command },
		"under a key that counts no more": func(s *fakeServer) *jose.Signer { return testSigner(s.t) },
	} {
		s := newFakeServer(t)
		d := s.device(false, Options{})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(d.path(countersFile)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(journalFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(configFile), s.signedConfig(by(s), 0, 7), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := OpenWith(d.dir, d.opts)
		if err != nil {
			t.Fatal(err)
		}
		d.OnConfig(func(context.Context, Config) error { return nil })
		if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 6)); watchword.CodeOf(err) != watchword.CommandStale {
			t.Errorf("%s: an older one: %v", name, err)
		}
		if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 8)); err != nil || d.MemoryLost() != "" {
			t.Errorf("%s: a newer one: %v, lost %s", name, err, d.MemoryLost())
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A configuration in the folder that no key which counts has signed moves the number that is known nowhere:
// it may be damaged.
func TestAConfigurationThatNobodySignedMovesNoNumber(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	d.OnConfig(func(context.Context, Config) error { return nil })
	if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 5)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path(configFile), s.signedConfig(testSigner(t), 1, 1<<53-1), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenWith(d.dir, d.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if n := d.knownConfig(); n != (position{1, 5}) {
		t.Errorf("the known one is version %d of epoch %d", n.Seq, n.Epoch)
	}
}

// A known configuration is not sent again: the device sends the ETag that it received.
func TestAConfigurationIsAskedForByItsTag(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	d.OnConfig(func(context.Context, Config) error { return nil })
	version, tags := int64(3), []string{}
	s.handle("GET /v1/self/config", func(w http.ResponseWriter, r *http.Request) {
		tags = append(tags, r.Header.Get("If-None-Match"))
		w.Header().Set("ETag", `"any"`)
		if r.Header.Get("If-None-Match") == `"any"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(s.signedConfig(s.command, 1, version))
	})
	for range 3 {
		if err := d.fetchConfig(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(tags) != 3 || tags[0] != "" || tags[1] != `"any"` || tags[2] != `"any"` {
		t.Errorf("asked with %q", tags)
	}
}
