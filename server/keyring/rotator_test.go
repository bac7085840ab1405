package keyring_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

const (
	issuer  = "https://localhost:8443"
	every   = 30 * 24 * time.Hour
	overlap = 48 * time.Hour
	day     = 24 * time.Hour
)

var (
	start = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	by    = audit.Actor{Tenant: watchword.DefaultTenant, Subject: "operator", Versions: watchword.AuthorityVersions{Local: true}}
)

// ringFixture is a founded ring over a real store, with a clock that the test moves.
type ringFixture struct {
	*testing.T
	st   *sqlite.Store
	kek  keyring.KEK
	ring *keyring.Ring
	k    *keyring.Rotator
	now  time.Time
	told int // how often the keys changed

	clock keyring.Clock
}

func newRingFixture(t *testing.T) *ringFixture {
	t.Helper()
	dir := t.TempDir()
	h := &ringFixture{T: t, now: start}
	var err error
	h.kek, err = keyring.OpenKEK(filepath.Join(dir, "kek"), true)
	h.must(err)
	h.st, err = sqlite.Open(t.Context(), filepath.Join(dir, "db"), sqlite.Options{})
	h.must(err)
	t.Cleanup(func() { h.must(h.st.Close()) })
	key, err := jose.GenerateKey(jose.P256)
	h.must(err)
	h.must(keyring.Initialize(t.Context(), h.st, keyring.InitOptions{Issuer: issuer, KEK: h.kek, Now: h.now, Operator: watchword.Subject{
		Tenant: watchword.DefaultTenant, ID: "operator", Kind: watchword.Operator, State: watchword.Active,
		Keys: []watchword.Key{{ID: key.Public().ID(), Purpose: watchword.Sign, JWK: key.Public().JWK(), State: watchword.KeyActive}},
	}}))
	h.restart()
	return h
}

// HandleChange counts, behind the ring.
func (h *ringFixture) HandleChange(_ context.Context, c watchword.Change) error {
	if c.Kind == watchword.ServerKeysChanged {
		h.told++
	}
	return nil
}

// restart opens ring and keeper anew, as a process does.
func (h *ringFixture) restart() {
	h.Helper()
	var err error
	h.ring, err = keyring.Open(h.Context(), h.st, h.kek, h.clock)
	h.must(err)
	live := session.NewLive()
	live.Register(h.ring, h)
	h.k, err = keyring.NewRotator(h.Context(), h.st, h.ring, live, keyring.RotatorOptions{
		Schedule: keyring.Schedule{RotateEvery: every, Overlap: overlap}, Log: slog.New(slog.DiscardHandler),
	}, h.now)
	h.must(err)
}

func (h *ringFixture) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *ringFixture) wants(code watchword.Code, err error) {
	h.Helper()
	if got := watchword.CodeOf(err); got != code {
		h.Errorf("got %q (%v), want %q", got, err, code)
	}
}

// at moves the clock and lets the keeper do what is due.
func (h *ringFixture) at(d time.Duration) {
	h.Helper()
	h.now = start.Add(d)
	h.must(h.k.Step(h.Context(), h.now))
}

func (h *ringFixture) bundle() token.Trust {
	h.Helper()
	t, err := token.ReadTrust(h.ring.Bundle(h.now))
	h.must(err)
	return t
}

func ids(ks []*jose.PublicKey) (out []watchword.KeyID) {
	for _, k := range ks {
		out = append(out, k.ID())
	}
	return out
}

// states is the states of a role's keys, oldest first.
func (h *ringFixture) states(role keyring.Role) string {
	var out []string
	for _, k := range h.k.Status(h.now).Keys {
		if k.Role == role {
			out = append(out, string(k.State))
		}
	}
	return strings.Join(out, " ")
}

func TestKeysRotateOnSchedule(t *testing.T) {
	h := newRingFixture(t)
	for _, role := range []keyring.Role{keyring.Issuer, keyring.Command, keyring.Time} {
		t.Run(string(role), func(t *testing.T) {
			h := newRingFixture(t)
			listed := func() []watchword.KeyID {
				b := h.bundle()
				return ids(map[keyring.Role][]*jose.PublicKey{keyring.Issuer: b.Issuers, keyring.Command: b.Command, keyring.Time: b.Time}[role])
			}
			first := h.ring.Signer(role).Public().ID()
			h.at(every - overlap - time.Second)
			if got := h.states(role); got != "active" || h.bundle().Version != 1 {
				t.Fatalf("before its time: %s, bundle %d", got, h.bundle().Version)
			}
			h.at(every - overlap)
			if got := h.states(role); got != "active next" || h.ring.Signer(role).Public().ID() != first || len(listed()) != 2 {
				t.Fatalf("one refresh before: %s, %d listed", got, len(listed()))
			}
			h.restart() // what is due is in the store
			h.at(every - time.Second)
			if h.ring.Signer(role).Public().ID() != first {
				t.Fatal("the next key signs before every device can know it")
			}
			h.at(every)
			second := h.ring.Signer(role).Public().ID()
			if got := h.states(role); got != "retiring active" || second == first || !slices.Equal(listed(), []watchword.KeyID{first, second}) {
				t.Fatalf("at its time: %s", got)
			}
			tails := map[keyring.Role]time.Duration{keyring.Issuer: day + token.Skew, keyring.Command: token.ConfigLifetime + token.Skew, keyring.Time: token.TimeLifetime + token.Skew}
			h.at(every + tails[role] - time.Second)
			if got := h.states(role); !strings.HasPrefix(got, "retiring active") {
				t.Fatalf("while what it signed can be valid: %s", got)
			}
			h.at(every + tails[role])
			if got := h.states(role); !strings.HasPrefix(got, "gone active") || slices.Contains(listed(), first) {
				t.Fatalf("at its end: %s", got)
			}
			rows, err := h.st.ServerKeys(t.Context())
			h.must(err)
			for _, r := range rows {
				if r.ID == first && len(r.Private) != 0 {
					t.Error("the private half of a key that is gone is still there")
				}
			}
		})
	}
	h.at(every)
	for _, role := range []keyring.Role{keyring.Root, keyring.CA, keyring.Log} {
		if got := h.states(role); got != "active" {
			t.Errorf("%s: %s; it turns by hand", role, got)
		}
	}
	if v := h.bundle().Version; v != 2 { // one bundle for all that turned at once
		t.Errorf("bundle %d", v)
	}
}

// Whatever the clock does between two looks, no token is lost: what was signed
// last by a key verifies until its end.
func TestKeyOutlivesItsSignatures(t *testing.T) {
	h := newRingFixture(t)
	h.at(every - overlap)
	grant := token.Grant{Issuer: issuer, Subject: watchword.Subject{ID: "lamp-1"}, Key: "k", JTI: "t1", Issued: h.now, Expires: start.Add(every + day - time.Second)}
	grant.Issued = start.Add(every - time.Second)
	raw, err := token.SignAccess(h.ring.IssuerSigner(), grant)
	h.must(err)
	for _, d := range []time.Duration{every - time.Second, every, every + day - 2*time.Second} {
		h.at(d)
		_, err := token.VerifyAccess(raw, h.ring.IssuerKeys(), issuer, issuer, h.now, 0)
		h.must(err)
		if !strings.Contains(string(h.ring.JWKS()), `"kid":"`+kid(t, raw)+`"`) {
			t.Errorf("at %s the JWK set does not name the key", d)
		}
	}
	h.at(every + 2*day)
	_, err = token.VerifyAccess(raw, h.ring.IssuerKeys(), issuer, issuer, h.now, 0)
	h.wants(watchword.KeyUnknown, err)
}

func kid(t *testing.T, raw string) string {
	t.Helper()
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	if err != nil {
		t.Fatal(err)
	}
	return u.Kid
}

func TestRotate(t *testing.T) {
	h := newRingFixture(t)
	ctx := t.Context()
	_, err := h.k.Rotate(ctx, by, "door", false, h.now)
	h.wants(watchword.NotFound, err)
	_, err = h.k.Rotate(ctx, by, keyring.Data, false, h.now)
	h.wants(watchword.NotFound, err)
	next, err := h.k.Rotate(ctx, by, keyring.Issuer, false, h.now)
	h.must(err)
	if next.State != keyring.Next || !next.Starts.Equal(h.now.Add(overlap)) || h.states(keyring.Issuer) != "active next" {
		t.Fatalf("got %+v", next)
	}
	_, err = h.k.Rotate(ctx, by, keyring.Issuer, false, h.now)
	h.wants(watchword.Conflict, err)
	again, err := h.k.Rotate(ctx, by, keyring.Issuer, true, h.now)
	h.must(err)
	if again.ID != next.ID || h.ring.IssuerSigner().Public().ID() != next.ID || h.states(keyring.Issuer) != "retiring active" {
		t.Fatalf("at once: %+v, %s", again, h.states(keyring.Issuer))
	}
	for _, role := range []keyring.Role{keyring.CA, keyring.Command, keyring.Time, keyring.Log} {
		got, err := h.k.Rotate(ctx, by, role, true, h.now)
		h.must(err)
		if got.State != keyring.Active || h.ring.Signer(role).Public().ID() != got.ID || h.states(role) != "retiring active" {
			t.Errorf("%s: %+v, %s", role, got, h.states(role))
		}
	}
	if b := h.bundle(); len(b.CAs) != 2 || len(b.Log) != 2 || len(b.Issuers) != 2 {
		t.Errorf("the bundle lists %d authorities, %d log and %d issuer keys", len(b.CAs), len(b.Log), len(b.Issuers))
	}
	if n := strings.Count(string(h.ring.CAPEM()), "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("%d certificates in the PEM", n)
	}
	h.at(10 * 365 * day)
	if got := h.states(keyring.Log); got != "retiring active" {
		t.Errorf("log keys: %s; what they signed stays valid", got)
	}
	es, err := audit.Entries(ctx, h.st, 0, 1000)
	h.must(err)
	kinds := map[string]int{}
	for _, e := range es {
		kinds[e.Kind]++
	}
	for _, k := range []string{audit.KeyCreate, audit.KeyActivate, audit.KeyRetire, audit.KeyErase, audit.BundleSign} {
		if kinds[k] == 0 {
			t.Errorf("no entry %s", k)
		}
	}
}

func TestRevoke(t *testing.T) {
	ctx := t.Context()
	t.Run("the active key: another signs", func(t *testing.T) {
		h := newRingFixture(t)
		h.told = 0
		bundle := h.ring.Bundle(h.now)
		old := h.ring.IssuerSigner().Public().ID()
		_, err := h.k.Revoke(ctx, by, old, "stolen", h.now)
		h.must(err)
		if h.states(keyring.Issuer) != "revoked active" || !h.ring.IssuerKeyRevoked(old) || h.ring.IssuerKeyRevoked(h.ring.IssuerSigner().Public().ID()) {
			t.Fatalf("states %s", h.states(keyring.Issuer))
		}
		if b := h.bundle(); len(b.Issuers) != 1 || b.Issuers[0].ID() == old || strings.Contains(string(h.ring.JWKS()), string(old)) {
			t.Error("a revoked key is still published")
		}
		if h.told != 1 || h.ring.Bundle(h.now) == bundle {
			t.Errorf("told %d times", h.told)
		}
		_, err = h.k.Revoke(ctx, by, old, "", h.now)
		h.wants(watchword.Conflict, err)
		h.restart()
		if !h.ring.IssuerKeyRevoked(old) {
			t.Error("forgotten after a restart")
		}
	})
	t.Run("the active key with a next one waiting: that one signs", func(t *testing.T) {
		h := newRingFixture(t)
		next, err := h.k.Rotate(ctx, by, keyring.Command, false, h.now)
		h.must(err)
		_, err = h.k.Revoke(ctx, by, h.ring.CommandSigner().Public().ID(), "", h.now)
		h.must(err)
		if h.ring.CommandSigner().Public().ID() != next.ID {
			t.Error("another key signs")
		}
	})
	t.Run("a next key", func(t *testing.T) {
		h := newRingFixture(t)
		next, err := h.k.Rotate(ctx, by, keyring.Time, false, h.now)
		h.must(err)
		_, err = h.k.Revoke(ctx, by, next.ID, "", h.now)
		h.must(err)
		if h.states(keyring.Time) != "active revoked" {
			t.Errorf("states %s", h.states(keyring.Time))
		}
	})
	t.Run("no key, and the active root", func(t *testing.T) {
		h := newRingFixture(t)
		_, err := h.k.Revoke(ctx, by, "nobody", "", h.now)
		h.wants(watchword.NotFound, err)
		_, err = h.k.Revoke(ctx, by, h.ring.Root().ID(), "", h.now)
		h.wants(watchword.Conflict, err)
		_, err = h.k.Revoke(ctx, by, h.kek.ID(), "", h.now)
		h.wants(watchword.NotFound, err)
	})
}

func TestNewRootIsSignedByOldRoot(t *testing.T) {
	h := newRingFixture(t)
	ctx := t.Context()
	before := h.ring.Bundle(h.now)
	oldPin := token.TrustPin(h.ring.Root())
	knew, err := token.VerifyTrust(before, oldPin, h.now)
	h.must(err)
	_, err = h.k.Rotate(ctx, by, keyring.Root, false, h.now)
	h.must(err)
	newPin := token.TrustPin(h.ring.Root())
	both := h.ring.Bundle(h.now)
	if oldPin == newPin || !jose.LooksLikeDual(both) {
		t.Fatalf("the bundle of two roots: %.40s", both)
	}
	met, err := token.VerifyNextTrust(both, knew, h.now)
	h.must(err)
	for _, pin := range []string{oldPin, newPin} {
		_, err = token.VerifyTrust(both, pin, h.now)
		h.must(err)
	}
	_, err = h.k.Rotate(ctx, by, keyring.Root, false, h.now)
	h.wants(watchword.Conflict, err)
	// Bundles are signed by both as long as a device or a link may know the old one alone.
	h.at(100 * day)
	if !jose.LooksLikeDual(h.ring.Bundle(h.now)) {
		t.Fatal("the old root does not sign any more, and links of its time are good yet")
	}
	h.at(token.TrustLifetime + 30*day)
	alone := h.ring.Bundle(h.now)
	if jose.LooksLikeDual(alone) {
		t.Fatal("the old root still signs")
	}
	_, err = token.VerifyNextTrust(alone, met, h.now)
	h.must(err)
	_, err = token.VerifyNextTrust(alone, knew, h.now)
	h.wants(watchword.KeyUnknown, err)
	_, err = token.VerifyTrust(alone, oldPin, h.now)
	h.wants(watchword.PinMismatch, err)

	t.Run("not by the new one alone, nor by the old one alone", func(t *testing.T) {
		p, err := jose.ParseDual(both, watchword.MaxBundle)
		h.must(err)
		root, err := jose.GenerateKey(jose.P256)
		h.must(err)
		s, err := root.Signer()
		h.must(err)
		trust, err := token.ReadTrust(both)
		h.must(err)
		mine := trust
		mine.Roots = []*jose.PublicKey{s.Public()}
		forged, err := forgeTrust(mine, s)
		h.must(err)
		_, err = token.VerifyNextTrust(forged, knew, start)
		h.wants(watchword.KeyUnknown, err)
		mine.Roots = []*jose.PublicKey{trust.Roots[0], s.Public()} // names the old one, which did not sign
		forged, err = forgeTrust(mine, s)
		h.must(err)
		_, err = token.VerifyNextTrust(forged, knew, start)
		h.wants(watchword.KeyUnknown, err)
		single := strings.Split(strings.Trim(both, `[]"`), `","`)[0] // the old root's half alone
		if !strings.Contains(single, ".") || p.First == nil {
			t.Fatal("the pair is not what was expected")
		}
		_, err = token.VerifyNextTrust(single, knew, start)
		h.wants(watchword.BundleInvalid, err)
	})
}

func TestOfflineRoot(t *testing.T) {
	h := newRingFixture(t)
	ctx := t.Context()
	var medium []byte
	h.wants(watchword.Internal, h.k.ExportRoot(ctx, by, func([]byte) error { return os.ErrPermission }, h.now))
	if h.ring.Signer(keyring.Root) == nil {
		t.Fatal("the root is gone though it could not be written down")
	}
	h.must(h.k.ExportRoot(ctx, by, func(jwk []byte) error { medium = slices.Clone(jwk); return nil }, h.now))
	h.wants(watchword.Conflict, h.k.ExportRoot(ctx, by, func([]byte) error { return nil }, h.now))
	h.restart()
	if h.ring.Signer(keyring.Root) != nil || h.bundle().Version != 1 {
		t.Fatal("the root is still here")
	}
	_, err := h.k.Rotate(ctx, by, keyring.Issuer, true, h.now)
	h.wants(watchword.Conflict, err)
	first := h.ring.IssuerSigner().Public().ID()
	h.at(every + day)
	if h.states(keyring.Issuer) != "active" {
		t.Fatalf("a key turned that no bundle could name: %s", h.states(keyring.Issuer))
	}

	planned, err := h.k.PlanBundles(ctx, by, 6, h.now)
	h.must(err)
	key, err := jose.ParsePrivateJWK(medium, jose.ForSigning)
	h.must(err)
	root, err := key.Signer()
	h.must(err)
	var signed []string
	for _, p := range planned {
		raw, err := token.SignTrustPayload([]byte(p.Payload), root)
		h.must(err)
		signed = append(signed, raw)
	}
	t.Run("what cannot be taken", func(t *testing.T) {
		_, stranger := newSigner(t)
		foreign, err := forgePayload([]byte(planned[0].Payload), stranger)
		h.must(err)
		later, err := forgePayload([]byte(planned[2].Payload), stranger)
		h.must(err)
		alien := h.bundle()
		alien.Version, alien.Issued, alien.Expires = 7, h.now, h.now.Add(day)
		alien.Command = append(alien.Command, stranger.Public())
		strange, err := forgeTrust(alien, root)
		h.must(err)
		lacking := h.bundle()
		lacking.Version, lacking.Issued, lacking.Expires, lacking.Issuers = 7, h.now, h.now.Add(day), nil
		short, err := forgeTrust(lacking, root)
		h.must(err)
		for name, c := range map[string]struct {
			raws []string
			want watchword.Code
		}{
			"nothing":                             {nil, watchword.BadRequest},
			"words":                               {[]string{"words"}, watchword.TokenMalformed},
			"the signature of an unknown key":     {[]string{foreign}, watchword.KeyUnknown},
			"a key that is none of ours":          {[]string{strange}, watchword.BundleInvalid},
			"without the key that signs":          {[]string{short}, watchword.BundleInvalid},
			"the second before the first":         {[]string{signed[1], signed[0]}, watchword.BundleInvalid},
			"twice the same":                      {[]string{signed[0], signed[0]}, watchword.Conflict},
			"good ones with a bad one among them": {append(slices.Clone(signed[:2]), later), watchword.KeyUnknown},
		} {
			if err := h.k.ImportBundles(ctx, by, c.raws, h.now); watchword.CodeOf(err) != c.want {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
			if h.bundle().Version != 1 {
				t.Fatalf("%s: something was taken", name)
			}
		}
	})
	h.must(h.k.ImportBundles(ctx, by, signed, h.now))
	if st := h.k.Status(h.now); st.Version.Number != planned[0].Version || st.PlannedBundles != 5 || st.Stale != "" {
		t.Fatalf("status %+v", st)
	}

	// A device follows for the whole time, by bundles that each name what signs then and next.
	knew, err := token.VerifyNextTrust(h.ring.Bundle(h.now), token.Trust{Issuer: issuer, Roots: []*jose.PublicKey{root.Public()}}, h.now)
	h.must(err)
	from := h.now.Sub(start)
	signers := map[watchword.KeyID]bool{first: true}
	for d := from; d < from+6*30*day; d += day {
		h.at(d)
		if d%(7*day) == 0 {
			h.restart()
		}
		signer := h.ring.IssuerSigner().Public().ID()
		if !slices.Contains(ids(knew.Issuers), signer) {
			t.Fatalf("after %s a key signs that a device did not have a day before", d)
		}
		signers[signer] = true
		if knew, err = token.VerifyNextTrust(h.ring.Bundle(h.now), knew, h.now); err != nil {
			t.Fatalf("after %s: %v", d, err)
		}
		if why := h.k.Status(h.now).Stale; why != "" && d < from+5*30*day {
			t.Fatalf("after %s: %s", d, why)
		}
	}
	if len(signers) < 6 {
		t.Errorf("%d issuer keys signed in half a year", len(signers))
	}

	t.Run("a revoked key makes the bundle stale, and those ahead that name it go", func(t *testing.T) {
		planned, err := h.k.PlanBundles(ctx, by, 3, h.now)
		h.must(err)
		var signed []string
		for _, p := range planned {
			raw, err := token.SignTrustPayload([]byte(p.Payload), root)
			h.must(err)
			signed = append(signed, raw)
		}
		h.must(h.k.ImportBundles(ctx, by, signed, h.now))
		_, err = h.k.Revoke(ctx, by, h.ring.CommandSigner().Public().ID(), "lost", h.now)
		h.must(err)
		if st := h.k.Status(h.now); st.Stale == "" || st.PlannedBundles != 1 { // the third names it no more
			t.Errorf("status %+v", st)
		}
	})
	t.Run("and comes back", func(t *testing.T) {
		other, _ := newSigner(t)
		h.wants(watchword.Conflict, h.k.ImportRoot(ctx, by, other.JWK(), h.now))
		h.must(h.k.ImportRoot(ctx, by, medium, h.now))
		if st := h.k.Status(h.now); h.ring.Signer(keyring.Root) == nil || st.Stale != "" || st.PlannedBundles != 0 {
			t.Errorf("status %+v", st)
		}
		h.restart()
	})
}

func newSigner(t *testing.T) (*jose.PrivateKey, *jose.Signer) {
	t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return k, s
}

func TestKeyErrorsAreDistinguished(t *testing.T) {
	h := newRingFixture(t)
	ctx := t.Context()
	dir := t.TempDir()
	_, err := keyring.OpenKEK(filepath.Join(dir, "none"), false)
	h.wants(watchword.KeyMissing, err)
	for name, text := range map[string]string{
		"empty": "", "short": "AAAA", "padded": strings.Repeat("A", 43) + "=", "words": "this is no key, though it has 43 characters",
		"with stray bits": strings.Repeat("A", 42) + "B",
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		h.must(os.WriteFile(file, []byte(text), 0o600))
		_, err := keyring.OpenKEK(file, false)
		if watchword.CodeOf(err) != watchword.KeyDamaged || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	exposed := filepath.Join(dir, "exposed")
	h.must(os.WriteFile(exposed, []byte(base64.RawURLEncoding.EncodeToString(make([]byte, 32))), 0o644))
	_, err = keyring.OpenKEK(exposed, false)
	h.wants(watchword.KeyExposed, err)
	other, err := keyring.OpenKEK(filepath.Join(dir, "other"), true)
	h.must(err)
	_, err = keyring.Open(ctx, h.st, other, nil)
	h.wants(watchword.KeyUnwrap, err)

	rows, err := h.st.ServerKeys(ctx)
	h.must(err)
	for i, r := range rows {
		for _, part := range []string{"private", "public"} {
			bad := slices.Clone(rows)
			bytes := &bad[i].Private
			if part == "public" {
				bytes = &bad[i].Public
			}
			if len(*bytes) == 0 {
				continue
			}
			*bytes = slices.Clone(*bytes)
			(*bytes)[len(*bytes)/2] ^= 1
			if _, err := keyring.Open(ctx, changed{h.st, bad}, h.kek, nil); watchword.CodeOf(err) != watchword.KeyDamaged {
				t.Errorf("the %s %s half damaged: %v", r.Role, part, err)
			}
		}
	}
	swapped := slices.Clone(rows)
	a, b := slices.IndexFunc(rows, func(r keyring.SealedKey) bool { return r.Role == keyring.Issuer }), slices.IndexFunc(rows, func(r keyring.SealedKey) bool { return r.Role == keyring.Command })
	swapped[a].Private, swapped[b].Private = rows[b].Private, rows[a].Private
	if _, err := keyring.Open(ctx, changed{h.st, swapped}, h.kek, nil); watchword.CodeOf(err) != watchword.KeyDamaged {
		t.Errorf("two rows swapped: %v", err)
	}
	promoted := slices.Clone(rows)
	promoted[b].Role = keyring.Issuer
	if _, err := keyring.Open(ctx, changed{h.st, promoted}, h.kek, nil); watchword.CodeOf(err) != watchword.KeyDamaged {
		t.Errorf("a command key in the issuer's place: %v", err)
	}
	sum := sha256.Sum256(nil)
	sealed, err := h.ring.Seal("args/cmd_1", sum[:])
	h.must(err)
	if _, err := h.ring.Open("args/cmd_2", sealed); watchword.CodeOf(err) != watchword.KeyDamaged {
		t.Errorf("what was sealed for another row: %v", err)
	}
}

// changed is a store whose keys were changed.
type changed struct {
	*sqlite.Store
	rows []keyring.SealedKey
}

func (c changed) ServerKeys(context.Context) ([]keyring.SealedKey, error) { return c.rows, nil }

// forgeTrust signs a bundle as [token.SignTrust] does, also an invalid one.
func forgeTrust(b token.Trust, roots ...*jose.Signer) (string, error) {
	payload, err := token.TrustPayload(b)
	if err != nil {
		return "", err
	}
	return forgePayload(payload, roots...)
}

func forgePayload(payload []byte, roots ...*jose.Signer) (string, error) {
	if len(roots) == 2 {
		return jose.SignDual(roots[0], roots[1], token.TypTrust, payload)
	}
	return roots[0].Sign(token.TypTrust, payload)
}
