package server_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
)

func newIdentity(t *testing.T) (*age.X25519Identity, server.BackupKey) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	return id, server.BackupKey{Recipients: []string{id.Recipient().String()}}
}

// restored is the data folder in a backup.
func restored(t *testing.T, file string, id age.Identity) (dir string, m backup.Manifest) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	dir = t.TempDir()
	m, err = backup.Extract(f, []age.Identity{id}, "", dir)
	must(t, err)
	return filepath.Join(dir, "data"), m
}

func verifies(t *testing.T, file string, id age.Identity) server.BackupCheck {
	t.Helper()
	scratch := t.TempDir()
	v, err := server.VerifyBackup(t.Context(), file, []age.Identity{id}, "", scratch, quiet)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	empty(t, scratch)
	return v
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%s has %v", dir, left)
	}
}

// pauses calls act once, when the part of a backup before the end of the database was written.
type pauses struct {
	bytes.Buffer
	act func()
}

func (p *pauses) Write(b []byte) (int, error) {
	if p.act != nil && p.Len() > 64<<10 {
		act := p.act
		p.act = nil
		act()
	}
	return p.Buffer.Write(b)
}

// What is in a backup is one moment, whatever happens while it is written.
func TestABackupMadeDuringChangesIsOfOneMoment(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	s, err := server.New(t.Context(), c, quiet)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	defer func() {
		cancel()
		must(t, <-ended)
	}()
	a, err := admin.Local(c.Data)
	must(t, err)
	for _, name := range []watchword.SubjectID{"lamp-1", "lamp-2"} {
		_, err = a.CreateDevice(t.Context(), name, nil, time.Hour)
		must(t, err)
	}
	id, _ := newIdentity(t)
	archive := pauses{act: func() {
		_, err := a.Revoke(t.Context(), "lamp-1", "stolen")
		must(t, err)
		for _, role := range []string{"issuer", "ca"} {
			_, err = a.RotateKey(t.Context(), role, true)
			must(t, err)
		}
		must(t, s.SignLog(t.Context())) // the checkpoint beside the database is newer than the database in the backup
		_, err = a.Revoke(t.Context(), "lamp-2", "stolen")
		must(t, err)
	}}
	made, err := s.MakeBackup(t.Context(), &archive, id.Recipient())
	must(t, err)
	if archive.act != nil {
		t.Fatalf("the backup has %d bytes: nothing happened while it was made", archive.Len())
	}
	file := filepath.Join(t.TempDir(), "during")
	must(t, os.WriteFile(file, archive.Bytes(), 0o600))
	verifies(t, file, id)
	dir, m := restored(t, file, id)
	if m.Log != made.Manifest.Log {
		t.Errorf("the manifest says %+v, and %+v was returned", m.Log, made.Manifest.Log)
	}
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "watchword.db"), sqlite.Options{})
	must(t, err)
	defer st.Close()
	for _, name := range []watchword.SubjectID{"lamp-1", "lamp-2"} {
		x, err := st.Subject(t.Context(), watchword.DefaultTenant, name)
		must(t, err)
		if x.State == watchword.Revoked {
			t.Errorf("%s is %s: the backup has an act that came after it began", name, x.State)
		}
	}
	tree, err := st.Tree(t.Context())
	must(t, err)
	if tree.Size() != m.Log.Size {
		t.Errorf("the log has %d entries, and the manifest says %d", tree.Size(), m.Log.Size)
	}
	once(t, config(t, dir)) // a server starts on it
}

func TestBackupsUnderLoad(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	s, err := server.New(t.Context(), c, quiet)
	must(t, err)
	writes := make(chan struct{}, 1)
	s.Beside(func(ctx context.Context, add func(audit.Entry) error) error {
		for ctx.Err() == nil {
			e := audit.Actor{Tenant: watchword.DefaultTenant}.DoneEntry(audit.ClockTrust, "", time.Now(), nil)
			if err := add(e); err != nil {
				return err
			}
			select {
			case writes <- struct{}{}:
			default:
			}
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	a, err := admin.Local(c.Data)
	must(t, err)
	id, key := newIdentity(t)
	dir := t.TempDir()
	var last int64
	for n := range 4 {
		<-writes
		_, err := a.RotateKey(t.Context(), "issuer", true)
		must(t, err)
		file := filepath.Join(dir, string(rune('a'+n)))
		f, err := server.CreateBackup(t.Context(), c, quiet, file, false, key)
		must(t, err)
		if v := verifies(t, file, id); v.Manifest.Log.Size <= last || v.Size != f.Size {
			t.Errorf("the log of the next backup has %d entries, after %d; %d bytes, and %d were said", v.Manifest.Log.Size, last, v.Size, f.Size)
		} else {
			last = v.Manifest.Log.Size
		}
	}
	cancel()
	must(t, <-ended)
}

// entries returns the audit entries of a kind in a folder without a server.
func entries(t *testing.T, dir, kind string) (out []audit.Entry) {
	t.Helper()
	f, err := sqlite.OpenLog(t.Context(), filepath.Join(dir, "watchword.db"))
	must(t, err)
	defer f.Close()
	must(t, f.Each(t.Context(), func(r audit.Record) error {
		e, err := r.Entry()
		if err == nil && e.Kind == kind {
			out = append(out, e)
		}
		return err
	}))
	return out
}

func TestABackupOfAFolderWithoutAServer(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	id, key := newIdentity(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "b")
	if _, err := server.CreateBackup(t.Context(), c, quiet, file, false, key); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("before the first start: %v", err)
	}
	once(t, c)
	c.Backup.Recipients, c.Text = key.Recipients, []byte("# mine\n")
	for _, name := range []string{"note", ".log.checkpoint-2801681649"} { // the second is a file that is being written
		must(t, os.WriteFile(filepath.Join(c.Data, name), []byte("x"), 0o600))
	}
	f, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
	must(t, err)
	if es := entries(t, c.Data, audit.BackupCreate); len(es) != 1 || es[0].Object != "b" || es[0].Data["sha256"] != f.SHA256 || es[0].Actor != server.FirstOperator {
		t.Errorf("the log has %+v", es)
	}
	v := verifies(t, file, id)
	if len(v.Manifest.LeftOut) != 1 || v.Manifest.LeftOut[0] != "note" || v.Keys != 6 || v.Bundles != 1 {
		t.Errorf("%+v", v)
	}
	data, _ := restored(t, file, id)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(data), "config", "watchword.toml"))
	must(t, err)
	if string(text) != "# mine\n" {
		t.Errorf("the configuration is %q", text)
	}
	for _, name := range []string{"operator.jwk", "keys/kek", "tls/ca.pem", "log.checkpoint"} {
		was, err := os.ReadFile(filepath.Join(c.Data, name))
		must(t, err)
		is, err := os.ReadFile(filepath.Join(data, name))
		must(t, err)
		if !bytes.Equal(was, is) {
			t.Errorf("%s is another one", name)
		}
	}
	if _, err := server.CreateBackup(t.Context(), c, quiet, file, false, key); watchword.CodeOf(err) != watchword.Conflict {
		t.Errorf("the file exists: %v", err)
	}
	_, err = server.CreateBackup(t.Context(), c, quiet, file, true, key)
	must(t, err)
	verifies(t, file, id)
}

func TestABackupThatFailsLeavesNothing(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	once(t, c)
	_, key := newIdentity(t)
	dir := t.TempDir()
	create := func(c server.Config, key server.BackupKey) error {
		_, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(dir, "b"), false, key)
		return err
	}
	want := func(what string, err error, code watchword.Code, says string) {
		t.Helper()
		if watchword.CodeOf(err) != code || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
		empty(t, dir)
	}
	for n := range 2 { // without a server, and with one
		want("no recipient", create(c, server.BackupKey{}), watchword.ConfigInvalid, "recipient")
		want("an invalid recipient", create(c, server.BackupKey{Recipients: []string{"age1x"}}), watchword.ConfigInvalid, "age1x")
		want("an identity", create(c, server.BackupKey{Recipients: []string{"AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"}}), watchword.ConfigInvalid, "private key")
		want("a short passphrase", create(c, server.BackupKey{Passphrase: "short"}), watchword.ConfigInvalid, "12 characters")
		kek := filepath.Join(c.Data, "keys", "kek")
		good, err := os.ReadFile(kek)
		must(t, err)
		must(t, os.WriteFile(kek, []byte("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"), 0o600))
		want("another key-encryption key", create(c, key), watchword.KeyUnwrap, "key-encryption key")
		must(t, os.Remove(kek))
		want("no key-encryption key", create(c, key), watchword.KeyMissing, "key-encryption key")
		must(t, os.WriteFile(kek, good, 0o600))
		if n == 0 {
			runningAt(t, c, quiet)
		}
	}
	_, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(dir, "no", "b"), false, key)
	want("no folder", err, watchword.Unavailable, "does not exist")
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = server.CreateBackup(stopped, c, quiet, filepath.Join(dir, "b"), false, key)
	if err == nil {
		t.Error("a backup that was interrupted has no error")
	}
	empty(t, dir)
}

// A log that lost entries must not replace a good backup.
func TestNoBackupOfALogThatLacksEntries(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	once(t, c)
	older, err := os.ReadFile(filepath.Join(c.Data, "watchword.db"))
	must(t, err)
	once(t, c)
	must(t, os.WriteFile(filepath.Join(c.Data, "watchword.db"), older, 0o600))
	_, key := newIdentity(t)
	dir := t.TempDir()
	if _, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(dir, "b"), false, key); watchword.CodeOf(err) != watchword.LogInvalid {
		t.Error(err)
	}
	empty(t, dir)
}

// A backup is made before an upgrade, by the new program too: it changes nothing in the folder.
func TestABackupDoesNotUpgradeTheFolder(t *testing.T) {
	archives, err := filepath.Glob(filepath.Join("testdata", "upgrade", "*.tar.gz"))
	must(t, err)
	if len(archives) == 0 {
		t.Fatal("no folder of an earlier build")
	}
	own, err := sqlite.SchemaVersion()
	must(t, err)
	id, key := newIdentity(t)
	older := false
	for _, archive := range archives {
		dir := t.TempDir()
		unpack(t, archive, dir)
		c := config(t, filepath.Join(dir, "data"))
		schema := func() int64 {
			db, err := sqlite.OpenSnapshot(t.Context(), filepath.Join(c.Data, "watchword.db"))
			must(t, err)
			defer db.Close()
			n, err := db.Schema(t.Context())
			must(t, err)
			return n
		}
		before := schema()
		file := filepath.Join(t.TempDir(), "b")
		_, err := server.CreateBackup(t.Context(), c, quiet, file, false, key)
		must(t, err)
		if after := schema(); after != before {
			t.Errorf("%s: migration %d, after the backup %d", archive, before, after)
		}
		older = older || before < own
		if v := verifies(t, file, id); v.Manifest.Schema != before {
			t.Errorf("%s: the backup has migration %d", archive, v.Manifest.Schema)
		}
	}
	if !older {
		t.Error("no archive has an earlier schema")
	}
}

func TestADamagedBackupIsRefused(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	once(t, c)
	id, key := newIdentity(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "b")
	_, err := server.CreateBackup(t.Context(), c, quiet, file, false, key)
	must(t, err)
	good, err := os.ReadFile(file)
	must(t, err)
	scratch := t.TempDir()
	verify := func(what string, b []byte, ids ...age.Identity) {
		t.Helper()
		must(t, os.WriteFile(file, b, 0o600))
		if _, err := server.VerifyBackup(t.Context(), file, ids, "", scratch, quiet); watchword.CodeOf(err) != watchword.BackupInvalid {
			t.Errorf("%s: %v", what, err)
		}
		empty(t, scratch)
	}
	for at := 10; at < len(good); at += len(good) / 20 {
		changed := bytes.Clone(good)
		changed[at] ^= 0x20
		verify("a changed byte", changed, id)
		verify("a truncated file", good[:at], id)
	}
	other, _ := newIdentity(t)
	verify("another identity", good, other)
	// An archive with hashes that fit, but not with the database that its manifest describes.
	data, m := restored(t, file, id)
	logKey := logKeyOf(t, data)
	for what, edit := range map[string]func(m *backup.Manifest, db []byte) []byte{
		"fewer rows":         func(m *backup.Manifest, db []byte) []byte { m.Tables["subjects"]++; return db },
		"another log":        func(m *backup.Manifest, db []byte) []byte { m.Log.Size++; return db },
		"another epoch":      func(m *backup.Manifest, db []byte) []byte { m.Epoch++; return db },
		"no database at all": func(_ *backup.Manifest, db []byte) []byte { return bytes.Repeat([]byte("x"), len(db)) },
		"a view in the place of a table, whose rows never end": func(_ *backup.Manifest, db []byte) []byte {
			return changed(t, db, `DROP TABLE issuer_use`, `CREATE VIEW issuer_use AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n`)
		},
		"an index more": func(_ *backup.Manifest, db []byte) []byte {
			return changed(t, db, `CREATE INDEX more ON subjects (hex(id))`)
		},
		"half a database": func(_ *backup.Manifest, db []byte) []byte { return db[:len(db)/2] },
	} {
		var n backup.Manifest
		b, err := json.Marshal(m)
		must(t, errors.Join(err, json.Unmarshal(b, &n)))
		var out bytes.Buffer
		a, err := backup.NewWriter(&out, m.Made, []age.Recipient{id.Recipient()})
		must(t, err)
		db, err := os.ReadFile(filepath.Join(data, "watchword.db"))
		must(t, err)
		db = edit(&n, db)
		kek, err := os.ReadFile(filepath.Join(data, "keys", "kek"))
		must(t, err)
		must(t, errors.Join(a.AddBytes(backup.Database, db), a.AddBytes(backup.KEK, kek), a.AddBytes(backup.Effective, nil)))
		_, err = a.Finish(n, logKey)
		must(t, err)
		verify(what, out.Bytes(), id)
	}
}

// changed returns a database after some statements.
func changed(t *testing.T, db []byte, statements ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	must(t, os.WriteFile(path, db, 0o600))
	d, err := sql.Open("sqlite", "file:"+path)
	must(t, err)
	for _, q := range append(statements, `PRAGMA journal_mode = DELETE`) {
		_, err := d.ExecContext(t.Context(), q)
		must(t, err)
	}
	must(t, d.Close())
	out, err := os.ReadFile(path)
	must(t, err)
	return out
}

// Each file of a data folder is in a backup, or is made anew by each start.
func TestABackupIsWhole(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	runningAt(t, c, quiet)
	a, err := admin.Local(c.Data)
	must(t, err)
	_, err = a.CreateDevice(t.Context(), "lamp-1", nil, time.Hour)
	must(t, err)
	_, err = a.RotateKey(t.Context(), "ca", true)
	must(t, err)
	_, key := newIdentity(t)
	f, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(t.TempDir(), "b"), false, key)
	must(t, err)
	if len(f.Manifest.LeftOut)+len(f.Manifest.Missing) > 0 {
		t.Errorf("the backup lacks %v and %v: add them to the members of package backup, or to derivedFiles", f.Manifest.LeftOut, f.Manifest.Missing)
	}
}

// A file that cannot be written is named as such, although the server sees only that its client went away.
func TestAFullDiskIsNamed(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	runningAt(t, c, quiet)
	_, key := newIdentity(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full: ", err)
	}
	defer full.Close()
	if err := server.AskBackup(t.Context(), c.Data, full, key); watchword.CodeOf(err) != watchword.Unavailable || !strings.Contains(err.Error(), "the disk is full") {
		t.Error(err)
	}
}

// After a restore the log has another origin: backups and journals name that one. Root and issuer are the same.
func TestABackupNamesTheOriginOfTheLogOfToday(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	once(t, c)
	id, key := newIdentity(t)
	dir := t.TempDir()
	first, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(dir, "b"), false, key)
	must(t, err)
	r := server.RestoreOptions{File: first.File, Identities: []age.Identity{id}, Root: first.Manifest.Root, Data: filepath.Join(dir, "new"), AcceptLoss: true}
	done, err := server.RestoreBackup(t.Context(), r, quiet)
	must(t, err)
	c.Data = r.Data
	f, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(dir, "b2"), false, key)
	must(t, err)
	if f.Manifest.Log.Origin != done.Origin || f.Manifest.Log.Origin == first.Manifest.Log.Origin || f.Manifest.Root != first.Manifest.Root {
		t.Errorf("the manifest names the log %s and the root %s", f.Manifest.Log.Origin, f.Manifest.Root)
	}
	verifies(t, f.File, id)
	verifies(t, first.File, id) // its log key is revoked since
}

// logKeyOf is the active log key of a folder without a server.
func logKeyOf(t *testing.T, dir string) *jose.Signer {
	t.Helper()
	kek, err := keyring.OpenKEK(filepath.Join(dir, "keys", "kek"), false)
	must(t, err)
	f, err := sqlite.OpenLog(t.Context(), filepath.Join(dir, "watchword.db"))
	must(t, err)
	defer f.Close()
	sealed, err := f.ServerKeys(t.Context())
	must(t, err)
	k, err := keyring.OpenLogKey(kek, sealed)
	must(t, err)
	return k
}

// A backup names its root, and is refused where another one is demanded. Its key is the log key of then, whatever became of it.
func TestABackupIsComparedWithARoot(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	runningAt(t, c, quiet)
	a, err := admin.Local(c.Data)
	must(t, err)
	pin, err := a.TrustPin(t.Context())
	must(t, err)
	id, key := newIdentity(t)
	dir, scratch := t.TempDir(), t.TempDir()
	verify := func(file, root string) error {
		v, err := server.VerifyBackup(t.Context(), file, []age.Identity{id}, root, scratch, quiet)
		if err == nil && len(v.Warnings) > 0 {
			t.Errorf("%s: %v", file, v.Warnings)
		}
		empty(t, scratch)
		return err
	}
	create := func(name string) string {
		f, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(dir, name), false, key)
		must(t, err)
		return f.File
	}
	first := create("first")
	must(t, verify(first, pin))
	before := logKeyOf(t, c.Data).Public().ID()
	_, err = a.RotateKey(t.Context(), "log", true)
	must(t, err)
	if logKeyOf(t, c.Data).Public().ID() == before {
		t.Fatal("the log key is the same")
	}
	second := create("second")
	must(t, verify(second, pin))
	_, err = a.RevokeKey(t.Context(), before, "stolen")
	must(t, err)
	must(t, verify(first, pin))
	must(t, verify(create("third"), pin))
	_, err = a.RotateKey(t.Context(), "root", true)
	must(t, err)
	after, err := a.TrustPin(t.Context())
	must(t, err)
	fourth := create("fourth")
	must(t, verify(fourth, after))
	must(t, verify(fourth, pin)) // the former root signs the bundles too until it is revoked
	other := strings.Repeat("A", 43)
	for what, err := range map[string]error{"another root": verify(second, other), "a root of after the backup": verify(first, after)} {
		if watchword.CodeOf(err) != watchword.PinMismatch || !strings.Contains(err.Error(), pin) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := verify(first, "A"); watchword.CodeOf(err) != watchword.BadRequest {
		t.Errorf("a pin that is none: %v", err)
	}
	r := server.RestoreOptions{File: first, Identities: []age.Identity{id}, Root: other, Data: filepath.Join(dir, "new"), AcceptLoss: true}
	if _, err := server.RestoreBackup(t.Context(), r, quiet); watchword.CodeOf(err) != watchword.PinMismatch {
		t.Errorf("a restore of another root: %v", err)
	}
	if left, err := filepath.Glob(r.Data + "*"); err != nil || len(left) > 0 {
		t.Errorf("the restore left %v (%v)", left, err)
	}
}

// A server with the root and the bundles of another one, which are public, has no log key that these introduce: it makes no backup.
// Package backup holds that a reader refuses what another program makes in its place.
func TestNoBackupOfAServerWithTheRootOfAnother(t *testing.T) {
	theirs, mine := config(t, filepath.Join(t.TempDir(), "data")), config(t, filepath.Join(t.TempDir(), "data"))
	once(t, theirs)
	once(t, mine)
	_, key := newIdentity(t)
	must(t, os.Remove(filepath.Join(mine.Data, "log.checkpoint")))
	// The forger's database gets the public root and the public bundle.
	db, err := sql.Open("sqlite", "file:"+filepath.Join(mine.Data, "watchword.db"))
	must(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `ATTACH ? AS theirs`, filepath.Join(theirs.Data, "watchword.db"))
	must(t, err)
	for _, q := range []string{
		`DELETE FROM server_keys WHERE role = 'root'`, `DELETE FROM bundles`, `INSERT INTO bundles SELECT * FROM theirs.bundles`, `UPDATE instance SET issuer = (SELECT issuer FROM theirs.instance)`,
		`INSERT INTO server_keys SELECT n + 100, id, role, state, public, x'', cert, created, starts, ends, origin FROM theirs.server_keys WHERE role = 'root'`,
	} {
		_, err := db.ExecContext(t.Context(), q)
		must(t, err)
	}
	if _, err := server.CreateBackup(t.Context(), mine, quiet, filepath.Join(t.TempDir(), "b"), false, key); watchword.CodeOf(err) != watchword.KeyMissing {
		t.Errorf("a backup whose key no bundle names: %v", err)
	}
}
