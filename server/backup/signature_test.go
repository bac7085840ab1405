package backup_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/token"
)

// signing is a server's root and log key, and the trust bundle by which the root introduces the log key.
type signing struct {
	root, log *jose.Signer
	bundle    string
}

func newKey(curve string) *jose.Signer {
	k, err := jose.GenerateKey(curve)
	if err != nil {
		panic(err)
	}
	s, err := k.Signer()
	if err != nil {
		panic(err)
	}
	return s
}

// newSigning makes the keys of a server of its own; roots are further roots that sign its bundle.
func newSigning(log *jose.Signer, roots ...*jose.Signer) *signing {
	s := &signing{root: newKey(jose.P256), log: log}
	roots = append([]*jose.Signer{s.root}, roots...)
	t := token.Trust{
		Issuer: "https://hub.example", Version: 1, Epoch: 1, Log: []*jose.PublicKey{log.Public()}, Issued: made.Add(-time.Hour), Expires: made.Add(time.Hour),
	}
	for _, r := range roots {
		t.Roots = append(t.Roots, r.Public())
	}
	for _, to := range []*[]*jose.PublicKey{&t.Issuers, &t.Command, &t.Time} {
		*to = append(*to, newKey(jose.P256).Public())
	}
	var err error
	if s.bundle, err = token.SignTrust(t, roots...); err != nil {
		panic(err)
	}
	return s
}

// hub is the server whose backups the tests of this package make.
var hub = newSigning(newKey(jose.Ed))

func (s *signing) pin() string { return token.TrustPin(s.root.Public()) }

func (s *signing) manifest() backup.Manifest {
	return backup.Manifest{
		Format: backup.Format, Made: made, Issuer: "https://hub.example", Root: s.pin(), Trust: s.bundle,
		Log: backup.Log{Origin: watchword.LogOrigin("https://hub.example")},
	}
}

func (s *signing) signed(m backup.Manifest) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return s.signedBytes(b)
}

func (s *signing) signedBytes(b []byte) string {
	raw, err := s.log.Sign(token.TypBackup, b)
	if err != nil {
		panic(err)
	}
	return raw
}

// Someone who can write to where backups are kept, knows all that is public, and has keys of their own, makes no backup of the server.
func TestAForgedBackupIsRefused(t *testing.T) {
	id := identity(t)
	begin, kek, db, config := file("format.json", `{"format":2}`), file("data/keys/kek", "k"), file("data/watchword.db", "d"), file("config/effective.toml", "")
	content := []entry{begin, kek, db, config}
	good := hub.manifest()
	must(t, json.Unmarshal(payloadOf(t, manifestOf(content[1:]...).body), &good))
	extract := func(pin, manifest string, es ...entry) error {
		_, err := backup.Extract(bytes.NewReader(sealed(t, id.Recipient(), "", append(es, file("manifest.jws", manifest))...)), []age.Identity{id}, pin, t.TempDir())
		return err
	}
	must(t, extract(hub.pin(), hub.signed(good), content...))
	must(t, extract("", hub.signed(good), content...))

	forger := newSigning(newKey(jose.Ed))
	own := func(edit func(*backup.Manifest)) backup.Manifest { m := good; edit(&m); return m }
	other := newSigning(hub.log) // another server, with another root, that has the same log key
	signature := func(of, payload string) string {
		return strings.Join(append(strings.Split(payload, ".")[:2], strings.Split(of, ".")[2]), ".")
	}
	later := own(func(m *backup.Manifest) { m.Epoch = 7 })
	raw, err := hub.log.Sign(token.TypTrust, payloadOf(t, hub.signed(good)))
	must(t, err)
	for _, tc := range []struct {
		name, pin, manifest string
		code                watchword.Code
		says                string
	}{
		{"signed with a key of the forger's", "", forger.signed(good), watchword.BackupInvalid, "no trust bundle of the root"},
		{"signed with the root itself, which is no log key", "", (&signing{log: hub.root}).signed(good), watchword.BackupInvalid, "no trust bundle of the root"},
		{"with the bundle of the forger's, and the server's root", "", forger.signed(own(func(m *backup.Manifest) { m.Trust = forger.bundle })), watchword.BackupInvalid, "not signed by the root"},
		{"of a server of the forger's", hub.pin(), forger.signed(own(func(m *backup.Manifest) { m.Trust, m.Root = forger.bundle, forger.pin() })), watchword.PinMismatch, forger.pin()},
		{"of another server, compared with no root", "", forger.signed(own(func(m *backup.Manifest) { m.Trust, m.Root = forger.bundle, forger.pin() })), "", ""},
		{"of another root with the same log key", hub.pin(), other.signed(own(func(m *backup.Manifest) { m.Trust, m.Root = other.bundle, other.pin() })), watchword.PinMismatch, other.pin()},
		{"with the signature of another manifest", "", signature(hub.signed(good), hub.signed(later)), watchword.BackupInvalid, "signature of the backup does not verify"},
		{"without a bundle", "", hub.signed(own(func(m *backup.Manifest) { m.Trust = "" })), watchword.BackupInvalid, "not signed by the root"},
		{"without a root", "", hub.signed(own(func(m *backup.Manifest) { m.Root = "" })), watchword.BackupInvalid, "not signed by the root"},
		{"of another issuer than its bundle", "", hub.signed(own(func(m *backup.Manifest) { m.Issuer = "https://other.example" })), watchword.BackupInvalid, "they must be the same"},
		{"of another log than its bundle", "", hub.signed(own(func(m *backup.Manifest) { m.Log.Origin = "other.example/log" })), watchword.BackupInvalid, "they must be the same"},
		{"a JWS of the log key that is no manifest", "", raw, watchword.BackupInvalid, "has the type"},
		{"the trust bundle as the manifest", "", hub.bundle, watchword.BackupInvalid, "has the type"},
		{"a pin that is none", "x", hub.signed(good), watchword.PinMismatch, hub.pin()},
	} {
		if err := extract(tc.pin, tc.manifest, content...); watchword.CodeOf(err) != tc.code || tc.says != "" && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %s %q", tc.name, err, tc.code, tc.says)
		}
	}
	// Members of two backups, both of the server.
	err = extract(hub.pin(), hub.signed(good), begin, file("data/keys/kek", "another"), db, config)
	if watchword.CodeOf(err) != watchword.BackupInvalid || !strings.Contains(err.Error(), "is not what its manifest says") {
		t.Errorf("members of two backups: %v", err)
	}
}

// While a new root is introduced, devices have the pin of either.
func TestABackupHasEachRootOfItsBundle(t *testing.T) {
	id := identity(t)
	two := newSigning(newKey(jose.Ed), hub.root)
	var b bytes.Buffer
	a, err := backup.NewWriter(&b, made, []age.Recipient{id.Recipient()})
	must(t, err)
	for _, name := range []string{backup.KEK, backup.Effective, backup.Database} {
		must(t, a.AddBytes(name, []byte(name)))
	}
	_, err = a.Finish(two.manifest(), two.log)
	must(t, err)
	for _, pin := range []string{two.pin(), hub.pin()} {
		_, err := backup.Extract(bytes.NewReader(b.Bytes()), []age.Identity{id}, pin, t.TempDir())
		must(t, err)
	}
	if _, err := backup.Extract(bytes.NewReader(b.Bytes()), []age.Identity{id}, token.TrustPin(newKey(jose.P256).Public()), t.TempDir()); watchword.CodeOf(err) != watchword.PinMismatch {
		t.Errorf("a third root: %v", err)
	}
}

// A backup that could not be verified is not made.
func TestNoBackupIsMadeThatCannotBeVerified(t *testing.T) {
	for what, m := range map[string]backup.Manifest{
		"a bundle that does not name the key": newSigning(newKey(jose.Ed), hub.root).manifest(), "no bundle": {Issuer: "https://hub.example"},
	} {
		a, err := backup.NewWriter(&bytes.Buffer{}, made, []age.Recipient{identity(t).Recipient()})
		must(t, err)
		if _, err := a.Finish(m, hub.log); watchword.CodeOf(err) != watchword.BackupInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A log key that was replaced is in no bundle of after, so that a backup which it signs says an old time, or one that does not fit.
func TestABackupIsOfTheTimeOfItsBundle(t *testing.T) {
	for at, want := range map[time.Duration]watchword.Code{
		0: "", -time.Hour: "", time.Hour: "", -time.Hour - token.Skew: "", time.Hour + token.Skew: "",
		-time.Hour - token.Skew - time.Second: watchword.BackupInvalid, time.Hour + token.Skew + time.Second: watchword.BackupInvalid,
	} {
		m := hub.manifest()
		m.Made = made.Add(at)
		if err := m.CheckTimes(); watchword.CodeOf(err) != want {
			t.Errorf("%s after the bundle's time: %v, want %q", at, err, want)
		}
	}
}

// payloadOf returns the payload of a JWS.
func payloadOf(t *testing.T, raw string) []byte {
	t.Helper()
	u, err := jose.ParseJWS(raw, 1<<20)
	must(t, err)
	return u.UnverifiedPayload()
}
