//go:build unix

package attack_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// restoreSite is a place at which one server after the other runs at the same addresses, and the backups of it.
type restoreSite struct {
	t           *testing.T
	https, mqtt string
	identity    *age.X25519Identity
	change      func(*server.Config)
}

func newRestoreSite(t *testing.T) *restoreSite {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	return &restoreSite{t: t, https: "localhost:" + testport.Reserve(t), mqtt: "localhost:" + testport.Reserve(t), identity: id}
}

// serve starts the server of a folder.
func (s *restoreSite) serve(dir string) *testServer {
	s.t.Helper()
	return serveOn(s.t, dir, func(c *server.Config) {
		c.Server.HTTPS, c.Server.MQTTS = s.https, s.mqtt
		c.Audit.CheckpointEvery.Duration = 100 * time.Millisecond
		if s.change != nil {
			s.change(c)
		}
	})
}

// backup makes a backup of a folder, whether its server runs or not.
func (s *restoreSite) backup(dir string) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "backup.age")
	cfg := server.Defaults()
	cfg.Data = dir
	_, err := server.CreateBackup(s.t.Context(), cfg, server.Options{}, file, false, server.BackupKey{Recipients: []string{s.identity.Recipient().String()}})
	must(s.t, err)
	return file
}

// options are those of a restore to a new folder.
func (s *restoreSite) options(file string) server.RestoreOptions {
	return server.RestoreOptions{File: file, Identities: []age.Identity{s.identity}, Data: filepath.Join(s.t.TempDir(), "restored")}
}

func (s *restoreSite) restore(r server.RestoreOptions, o server.Options) server.RestoredBackup {
	s.t.Helper()
	done, err := server.RestoreBackup(s.t.Context(), r, o)
	must(s.t, err)
	if _, err := os.Stat(r.Data + ".tmp"); err == nil {
		s.t.Errorf("%s.tmp was left behind", r.Data)
	}
	return done
}

// device enrolls a device that obeys f, and runs it across the servers of the site. revoked gets a token when the server
// says that it is revoked.
func (s *restoreSite) device(srv *testServer, id watchword.SubjectID, o device.Options) (d *device.Device, revoked <-chan time.Duration) {
	s.t.Helper()
	told := make(chan time.Duration, 8)
	up := make(chan string, 64)
	o.Revoked = func(pause time.Duration) { told <- pause }
	o.Connected = func(over string) {
		select {
		case up <- over:
		default:
		}
	}
	d = srv.enroll(id, o, nil)
	for name, f := range obey {
		d.Handle(name, f)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			s.t.Errorf("%s: %v", id, err)
		}
	})
	select {
	case <-up:
	case <-time.After(20 * time.Second):
		s.t.Fatalf("%s did not connect", id)
	}
	return d, told
}

// answers orders f from a device until it is done: a device reconnects within its pauses, and a command that a device got
// before it has the new trust bundle comes to it again.
func answers(t *testing.T, srv *testServer, id watchword.SubjectID) {
	t.Helper()
	c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: id, Function: "f", TTL: 5 * time.Minute, WaitReceipt: time.Minute})
	must(t, err)
	for end := time.Now().Add(2 * time.Minute); c.State != watchword.Done; {
		if time.Now().After(end) || c.State.Final() {
			t.Fatalf("%s: the command is %s", id, c.State)
		}
		c, err = srv.admin.Command(t.Context(), c.ID, 10*time.Second)
		must(t, err)
	}
}

// A server is lost and restored at its addresses. Its devices come back by themselves, those too that obey only what is logged;
// the revoked ones stay out; what was decided after the backup counts; the old server, when it comes back, stops.
func TestARestoredServerHasItsDevicesAgain(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	s.device(srv, "plain", device.Options{})
	careful, _ := s.device(srv, "careful", device.Options{RequireLogProof: true})
	_, out := s.device(srv, "stolen", device.Options{})
	srv.enroll("asleep", device.Options{}, nil)
	answers(t, srv, "plain")
	answers(t, srv, "careful")
	waiting, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "asleep", Function: "f", TTL: time.Hour})
	must(t, err)
	_, err = srv.admin.CreateDevice(t.Context(), "unused", nil, 0)
	must(t, err)
	spent := srv.token(careful)

	revoked := make(chan error, 1)
	go func() { _, err := srv.admin.Revoke(t.Context(), "stolen", "stolen"); revoked <- err }()
	file := s.backup(old) // during the revocation
	must(t, <-revoked)
	for range 5 { // their commands are of higher numbers than the backup has
		answers(t, srv, "plain")
		answers(t, srv, "careful")
	}
	_, err = srv.admin.ApplyPolicy(t.Context(), "later", []byte("subjects = [\"plain\"]\n[[allow]]\npublish = [\"x/#\"]\n"), -1)
	must(t, err)
	_, err = srv.admin.Suspend(t.Context(), "asleep", "lost")
	must(t, err)
	<-out
	early, err := careful.Assertion(token.AssertionLifetime)
	must(t, err)
	srv.stop()

	r := s.options(file)
	r.Source = old
	done := s.restore(r, server.Options{})
	for _, e := range done.Done.Replayed {
		if e.Err != nil {
			t.Errorf("%s %s was not applied: %v", e.Entry.Kind, e.Entry.Object, e.Err)
		}
	}
	if done.Found.Missing != 0 || done.Done.Commands == 0 || done.Done.Codes == 0 {
		t.Errorf("restored %+v", done)
	}
	srv = s.serve(r.Data)
	began := time.Now()
	answers(t, srv, "plain")
	answers(t, srv, "careful")
	t.Logf("both devices obeyed %s after the start", time.Since(began).Round(time.Millisecond))
	if epoch, _ := careful.Position(); epoch != done.Epoch {
		t.Errorf("the device is in epoch %d, and the server in %d", epoch, done.Epoch)
	}
	for id, want := range map[watchword.SubjectID]watchword.State{"stolen": watchword.Revoked, "asleep": watchword.Suspended, "plain": watchword.Active} {
		if d, err := srv.admin.Device(t.Context(), id); err != nil || d.State != want {
			t.Errorf("%s is %s (%v), want %s", id, d.State, err, want)
		}
	}
	if c, err := srv.admin.Command(t.Context(), waiting.ID, 0); err != nil || c.State != watchword.Unknown {
		t.Errorf("the command that waited is %s, %v", c.State, err)
	}
	if ps, err := srv.admin.Policies(t.Context()); err != nil || len(ps) != 1 || ps[0].Name != "later" {
		t.Errorf("policies: %v, %v", ps, err)
	}
	if a := srv.request("GET", "/v1/self", spent, ""); a.status != http.StatusUnauthorized || !strings.Contains(a.body, string(watchword.IssuerRevoked)) {
		t.Errorf("a token of before: %d %s", a.status, a.body)
	}
	if a := srv.exchangeAssertion(early); a.status != http.StatusUnauthorized || !strings.Contains(a.body, string(watchword.TokenExpired)) {
		t.Errorf("an assertion of before: %d %s", a.status, a.body)
	}
	srv.stop()
	if v, err := server.VerifyLog(t.Context(), r.Data, nil); err != nil || v.Origin != done.Origin {
		t.Errorf("the log: %+v, %v", v, err)
	}
	first := entryAt(t, srv, done.Manifest.Log.Size+1)
	if first.Kind != audit.LogRestore || first.Data["root"] != done.Manifest.Log.Hash || first.Data["origin"] != done.Manifest.Log.Origin || !strings.Contains(first.Data["checkpoint"], done.Manifest.Log.Origin) {
		t.Errorf("the first entry after the backup is %+v", first)
	}

	// The old server comes back at the same addresses: no device obeys it, and the first that reaches it stops it.
	srv = s.serve(old)
	for end := time.Now().Add(2 * time.Minute); ; {
		_, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "plain", Function: "f", TTL: time.Hour, WaitReceipt: 100 * time.Millisecond})
		if watchword.CodeOf(err) == watchword.Superseded {
			break
		}
		must(t, err)
		if time.Now().After(end) {
			t.Fatal("the old server was not stopped by a device of the restored one")
		}
	}
	srv.stop()
	srv = s.serve(r.Data)
	answers(t, srv, "plain")
	answers(t, srv, "careful")
}

// rootKey returns the root key of a folder whose server does not run.
func (s *restoreSite) rootKey(dir string) *jose.Signer {
	s.t.Helper()
	srv := &testServer{t: s.t, dir: dir}
	return srv.stealKeys().Signer(keyring.Root)
}

// entryAt returns an entry of the log in a server's folder.
func entryAt(t *testing.T, srv *testServer, seq int64) audit.Entry {
	t.Helper()
	for _, e := range srv.allEntries() {
		if e.Seq == seq {
			return e
		}
	}
	t.Fatalf("no entry %d", seq)
	return audit.Entry{}
}

// What each source has of the time after a backup, and what a restore without it needs.
func TestSourcesOfARestore(t *testing.T) {
	s := newRestoreSite(t)
	old, journal := filepath.Join(t.TempDir(), "old"), t.TempDir()
	s.change = func(c *server.Config) {
		c.Backup.Journal, c.Backup.Recipients = journal, []string{s.identity.Recipient().String()}
	}
	srv := s.serve(old)
	for _, id := range []watchword.SubjectID{"a", "b", "c"} {
		srv.enroll(id, device.Options{}, nil)
	}
	ctx := t.Context()
	early, err := srv.admin.LogFile(ctx, "checkpoint")
	must(t, err)
	file := s.backup(old)
	_, err = srv.admin.Revoke(ctx, "a", "stolen")
	must(t, err)
	var stale bytes.Buffer
	must(t, srv.admin.ExportLog(ctx, admin.LogQuery{}, &stale))
	_, err = srv.admin.SetLabels(ctx, "b", watchword.Labels{"site": "two"}, 0)
	must(t, err)
	must(t, srv.admin.DeleteDevice(ctx, "c"))
	late := srv.enroll("late", device.Options{}, watchword.Labels{"kind": "lamp"})
	_, err = srv.admin.ApplyPolicy(ctx, "p", []byte("subjects = [\"b\"]\n[[allow]]\npublish = [\"x/#\"]\n"), -1)
	must(t, err)
	dir := t.TempDir()
	var export, some bytes.Buffer
	must(t, srv.admin.ExportLog(ctx, admin.LogQuery{}, &export))
	must(t, srv.admin.ExportLog(ctx, admin.LogQuery{Kind: audit.DeviceRevoke}, &some))
	note, err := srv.admin.LogFile(ctx, "checkpoint")
	must(t, err)
	running := s.options(file)
	running.Source = old
	_, err = server.RestoreBackup(ctx, running, server.Options{})
	wants(t, "the folder of a server that runs", err, watchword.FolderInUse)
	srv.stop()
	put := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, b, 0o600))
		return path
	}
	must(t, os.Mkdir(filepath.Join(dir, "mirror"), 0o700))
	put("mirror/checkpoint", note)
	end := endOf(t, export.Bytes())
	must(t, os.Mkdir(filepath.Join(dir, "end.mirror"), 0o700))
	put("end.mirror/checkpoint", end)
	last, err := ledger.ReadCheckpoint(end)
	must(t, err)
	shorter := ledger.Checkpoint{Origin: last.Origin, Size: last.Size - 1, Root: last.Root}
	unsigned := filepath.Join(t.TempDir(), "unsigned")
	must(t, os.CopyFS(unsigned, os.DirFS(old)))
	must(t, os.Chmod(unsigned, 0o700))
	must(t, os.Remove(filepath.Join(unsigned, "log.checkpoint")))
	short := t.TempDir()
	files, err := filepath.Glob(filepath.Join(journal, "*.journal"))
	must(t, err)
	for _, path := range files {
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(short, filepath.Base(path)), firstFrame(b), 0o600))
	}
	damaged := filepath.Join(t.TempDir(), "damaged")
	must(t, os.CopyFS(damaged, os.DirFS(old)))
	must(t, os.Chmod(damaged, 0o700))
	crashed := filepath.Join(t.TempDir(), "crashed") // a copy of its files without the write-ahead log
	must(t, os.CopyFS(crashed, os.DirFS(old)))
	must(t, os.Chmod(crashed, 0o700))
	must(t, os.WriteFile(filepath.Join(crashed, "running"), nil, 0o600))
	crashed2 := filepath.Join(t.TempDir(), "crashed") // SQLite makes an empty write-ahead log in a folder that it reads
	must(t, os.CopyFS(crashed2, os.DirFS(crashed)))
	must(t, os.Chmod(crashed2, 0o700))
	journalBeside := func(name string, b []byte) string {
		to := t.TempDir()
		must(t, os.CopyFS(to, os.DirFS(journal)))
		must(t, os.WriteFile(filepath.Join(to, name), b, 0o600))
		return to
	}
	foreignJournal, emptyJournal := journalBeside("x.journal", []byte("notes")), journalBeside("y.journal", nil)
	rewritten, err := shorter.Sign((&testServer{t: t, dir: old}).stealKeys().LogSigner())
	must(t, err)
	size := damage(t, damaged, audit.DeviceLabel)
	other := newRestoreSite(t)
	foreign := filepath.Join(t.TempDir(), "foreign")
	other.serve(foreign).stop()
	foreignNote, err := os.ReadFile(filepath.Join(foreign, "log.checkpoint"))
	must(t, err)

	for _, tc := range []struct {
		name, source string
		against      string // checkpoints, separated by spaces
		accept       bool
		epoch        int64
		code         watchword.Code
		states       string // of a, b's site, c, late, and the number of policies
	}{
		{"no source", "", "", false, 0, watchword.Conflict, ""},
		{"no source, accepted", "", "", true, 0, "", "active - active - 0"},
		{"the old folder", old, "", false, 0, "", "revoked two - active 1"},
		{"an export, whose end nothing shows", put("export", export.Bytes()), "", false, 0, watchword.Conflict, ""},
		{"an export, accepted", put("export", export.Bytes()), "", true, 0, "", "revoked two - active 1"},
		{"an export and a checkpoint of its end", put("export", export.Bytes()), put("end", end), false, 0, "", "revoked two - active 1"},
		{"an export and a mirror of its end", put("export", export.Bytes()), filepath.Join(dir, "end.mirror"), false, 0, "", "revoked two - active 1"},
		{"an export and an older checkpoint", put("export", export.Bytes()), put("early", early), false, 0, watchword.Conflict, ""},
		{"an export that is older than a checkpoint", put("stale", stale.Bytes()), put("end", end), false, 0, watchword.Conflict, ""},
		{"an export that is older than one of two checkpoints", put("stale", stale.Bytes()), put("staleEnd", endOf(t, stale.Bytes())) + " " + put("end", end), false, 0, watchword.Conflict, ""},
		{"an export and a checkpoint of another server", put("export", export.Bytes()), put("foreignNote", foreignNote), true, 0, watchword.LogInvalid, ""},
		{"an export and what is no checkpoint", put("export", export.Bytes()), put("export", export.Bytes()), true, 0, watchword.LogInvalid, ""},
		{"an export and what is not there", put("export", export.Bytes()), filepath.Join(dir, "none"), true, 0, watchword.NotFound, ""},
		{"an export and a checkpoint of a log that was rewritten", put("export", export.Bytes()), put("rewritten", rewritten), true, 0, watchword.LogInvalid, ""},
		{"a checkpoint of before the backup", put("early", early), "", false, 0, watchword.Conflict, ""},
		{"no source, and a checkpoint", "", put("end", end), false, 0, watchword.Conflict, ""},
		{"an export of one kind", put("some", some.Bytes()), "", false, 0, watchword.Conflict, ""},
		{"an export of one kind, accepted", put("some", some.Bytes()), "", true, 0, "", "revoked - active - 0"},
		{"an export that was cut", put("cut", export.Bytes()[:export.Len()-200]), "", true, 0, watchword.LogInvalid, ""},
		{"a checkpoint", put("note", note), "", false, 0, watchword.Conflict, ""},
		{"a checkpoint, accepted", put("note", note), "", true, 0, "", "active - active - 0"},
		{"a mirror", filepath.Join(dir, "mirror"), "", false, 0, watchword.Conflict, ""},
		{"a damaged folder", damaged, "", false, 0, watchword.Conflict, ""},
		{"a damaged folder, accepted", damaged, "", true, 0, "", "revoked - active - 0"},
		{"a folder without its write-ahead log", crashed, "", false, 0, watchword.Conflict, ""},
		{"a folder without its write-ahead log, accepted", crashed2, "", true, 0, "", "revoked two - active 1"},
		{"the old folder without its checkpoint", unsigned, "", false, 0, watchword.Conflict, ""},
		{"the old folder, and a checkpoint that it must have", old, put("end", end), false, 0, "", "revoked two - active 1"},
		{"the folder of another server", foreign, "", true, 0, watchword.LogInvalid, ""},
		{"the journal", journal, "", false, 0, "", "revoked two - active 1"},
		{"the journal, and an older checkpoint", journal, put("early", early), false, 0, "", "revoked two - active 1"},
		{"a journal that was cut at the end of a record", short, "", false, 0, "", "active - active - 0"},
		{"a journal that was cut at the end of a record, and a checkpoint", short, put("end", end), false, 0, watchword.Conflict, ""},
		{"a journal that was cut at the end of a record, and a checkpoint, accepted", short, put("end", end), true, 0, "", "active - active - 0"},
		{"the journal beside what is not one", foreignJournal, "", false, 0, watchword.Conflict, ""},
		{"the journal beside what is not one, accepted", foreignJournal, "", true, 0, "", "revoked two - active 1"},
		{"the journal beside an empty one", emptyJournal, "", false, 0, "", "revoked two - active 1"},
		{"what is not there", filepath.Join(dir, "none"), "", true, 0, watchword.NotFound, ""},
		{"an epoch that is not higher", old, "", false, 1, watchword.BadRequest, ""},
		{"an epoch above the highest", old, "", false, 1<<40 + 1, watchword.BadRequest, ""},
		{"the highest epoch, which is left for later restores", old, "", false, keyring.MaxEpoch, watchword.BadRequest, ""},
		{"a later epoch", old, "", false, keyring.EpochAt(time.Now().AddDate(0, 6, 0)), "", "revoked two - active 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := s.options(file)
			r.Data = filepath.Join(t.TempDir(), "restored")
			r.Source, r.Against, r.AcceptLoss, r.Epoch = tc.source, strings.Fields(tc.against), tc.accept, tc.epoch
			done, err := server.RestoreBackup(t.Context(), r, server.Options{})
			wants(t, tc.name, err, tc.code)
			if tc.code != "" {
				for _, path := range []string{r.Data, r.Data + ".tmp", r.Data + ".config"} {
					if _, err := os.Stat(path); err == nil {
						t.Errorf("%s was left behind", path)
					}
				}
				return
			}
			if done.Epoch < tc.epoch || done.Epoch <= done.Manifest.Epoch || tc.source == damaged && done.Found.To != size {
				t.Errorf("epoch %d, source %+v", done.Epoch, done.Found)
			}
			if want := tc.source == old || strings.Contains(tc.against, "end"); !tc.accept && done.Found.Confirmed != want {
				t.Errorf("the end is confirmed: %t, want %t", done.Found.Confirmed, want)
			}
			st, err := sqlite.Open(t.Context(), filepath.Join(r.Data, "watchword.db"), sqlite.Options{})
			must(t, err)
			defer st.Close()
			subject := func(id watchword.SubjectID) (is watchword.Subject, state string) {
				is, err := st.Subject(t.Context(), watchword.DefaultTenant, id)
				if watchword.CodeOf(err) == watchword.NotFound {
					return is, "-"
				}
				must(t, err)
				return is, string(is.State)
			}
			_, a := subject("a")
			b, _ := subject("b")
			_, c := subject("c")
			is, enrolled := subject("late")
			ps, err := st.Policies(t.Context(), watchword.DefaultTenant)
			must(t, err)
			if got := strings.Join([]string{a, cmp.Or(b.Labels["site"], "-"), c, enrolled, strconv.Itoa(len(ps))}, " "); got != tc.states {
				t.Errorf("got %s, want %s", got, tc.states)
			}
			if n := replayedEntries(t, r.Data, audit.DeviceRevoke); n != 1 && a == "revoked" || n != 0 && a != "revoked" {
				t.Errorf("%d entries of the revocation that was applied again", n)
			}
			if n := replayedEntries(t, r.Data, audit.DeviceEnroll); n != 1 && enrolled == "active" {
				t.Errorf("%d entries of the enrollment that was applied again", n)
			}
			sign, seal := late.Keys()
			if k, ok := is.SealKey(time.Now()); enrolled == "active" && (!ok || k.ID != seal.ID() || is.Keys[0].ID != sign.ID() || is.Labels["kind"] != "lamp") {
				t.Errorf("the device that enrolled after the backup has keys %v and labels %v", is.Keys, is.Labels)
			}
		})
	}
}

// endOf returns the checkpoint at the end of an export.
func endOf(t *testing.T, export []byte) []byte {
	t.Helper()
	lines := bytes.Split(bytes.TrimSpace(export), []byte("\n"))
	var l audit.ExportLine
	must(t, json.Unmarshal(lines[len(lines)-1], &l))
	return []byte(l.Checkpoint)
}

// firstFrame returns a journal without its records: two parts, each after its length in 4 bytes, and 32 bytes of authentication.
func firstFrame(journal []byte) []byte {
	n := 0
	for range 2 {
		n += 4 + int(binary.BigEndian.Uint32(journal[n:]))
	}
	return journal[:n+32]
}

// damage changes the first entry of a kind in a folder, and returns the number of the entry before it.
func damage(t *testing.T, dir, kind string) int64 {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "watchword.db"))
	must(t, err)
	defer db.Close()
	var seq int64
	must(t, db.QueryRow(`SELECT min(seq) FROM audit_entries WHERE instr(body, ?) > 0`, `"kind":"`+kind+`"`).Scan(&seq))
	_, err = db.Exec(`UPDATE audit_entries SET body = CAST('{}' AS BLOB) WHERE seq = ?`, seq)
	must(t, err)
	return seq - 1
}

// replayedEntries returns how many entries of a kind say that they were applied again.
func replayedEntries(t *testing.T, dir, kind string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "watchword.db")+"?mode=ro")
	must(t, err)
	defer db.Close()
	must(t, db.QueryRow(`SELECT count(*) FROM audit_entries WHERE instr(body, ?) > 0 AND instr(body, '"replayed_entry"') > 0`, `"kind":"`+kind+`"`).Scan(&n))
	return n
}

// Two restores of one backup are two servers: neither has the other's epoch, keys or log.
func TestTwoRestoresOfOneBackupDiffer(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	file := s.backup(old)
	srv.stop()
	var done []server.RestoredBackup
	var trusts []token.Trust
	for i := range 2 {
		r := s.options(file)
		r.AcceptLoss = true
		now := func() time.Time { return time.Now().Add(time.Duration(i) * time.Minute) }
		done = append(done, s.restore(r, server.Options{Now: now}))
		srv := serveAt(t, r.Data, now, func(c *server.Config) { c.Server.HTTPS, c.Server.MQTTS = s.https, s.mqtt })
		b, err := token.ReadTrust(srv.request("GET", "/v1/trust", "", "").body) // public: this client has another time
		must(t, err)
		trusts = append(trusts, b)
		srv.stop()
	}
	if done[0].Epoch >= done[1].Epoch || done[0].Origin == done[1].Origin || done[0].LogKey == done[1].LogKey {
		t.Errorf("%d %s and %d %s", done[0].Epoch, done[0].LogKey, done[1].Epoch, done[1].LogKey)
	}
	for i, b := range trusts {
		if b.BundleVersion() != (token.BundleVersion{Epoch: done[i].Epoch, Number: 1}) || b.Origin() != done[i].Origin || len(b.Issuers) != 1 || len(b.Command) != 1 || len(b.Time) != 1 || len(b.Log) != 1 {
			t.Errorf("bundle %s of %s with %d issuer, %d command, %d time and %d log keys", b.BundleVersion(), b.Origin(), len(b.Issuers), len(b.Command), len(b.Time), len(b.Log))
		}
	}
	if trusts[0].Command[0].ID() == trusts[1].Command[0].ID() || trusts[0].Roots[0].ID() != trusts[1].Roots[0].ID() {
		t.Error("two restores have one command key, or two roots")
	}
	origins := map[string]bool{}
	for range 2 { // with the same epoch, which the operator chose
		r := s.options(file)
		r.AcceptLoss, r.Epoch = true, 5_000_000
		d := s.restore(r, server.Options{})
		if d.Epoch != r.Epoch || !strings.Contains(d.Origin, "/log/5000000-") {
			t.Errorf("with epoch %d: epoch %d, origin %s", r.Epoch, d.Epoch, d.Origin)
		}
		origins[d.Origin] = true
	}
	if len(origins) != 2 {
		t.Errorf("two restores of epoch 5000000 have the origins %v", origins)
	}
}

// With an offline root the restored server serves nothing before the root has signed the bundle with the new keys.
func TestARestoreWaitsForAnOfflineRoot(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	s.serve(old).stop()
	cfg := server.Defaults()
	cfg.Data = old
	key := filepath.Join(t.TempDir(), "root.jwk")
	root := s.rootKey(old)
	must(t, server.TakeRootOffline(t.Context(), cfg, key, server.Options{}))
	r := s.options(s.backup(old))
	r.AcceptLoss = true
	done := s.restore(r, server.Options{})
	if done.Plan == nil || done.Plan.Epoch != done.Epoch || done.Plan.Version != 1 {
		t.Fatalf("the plan is %+v", done.Plan)
	}
	cfg = server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = r.Data, s.https, s.mqtt, ""
	_, err := server.New(t.Context(), cfg, server.Options{})
	wants(t, "a start before the root signed", err, watchword.KeyMissing)
	raw, err := token.SignTrustPayload([]byte(done.Plan.Payload), root)
	must(t, err)
	must(t, server.ImportBundles(t.Context(), cfg, []string{raw}, server.Options{}))
	srv := s.serve(r.Data)
	b, err := srv.admin.TrustBundle(t.Context())
	must(t, err)
	if b != raw {
		t.Error("the server publishes another bundle")
	}
}

// Witnesses and a device that requires them go on with the restored log, once the witness knows it.
func TestWitnessesFollowARestoredLog(t *testing.T) {
	w := startWitness(t, "w.example")
	s := newRestoreSite(t)
	s.change = func(c *server.Config) { c.Audit.Witnesses = []string{w.line} }
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	key := srv.logKey()
	w.watch(key.Name(), key)
	s.device(srv, "careful", device.Options{RequireLogProof: true})
	answers(t, srv, "careful")
	file := s.backup(old)
	answers(t, srv, "careful")
	srv.stop()
	r := s.options(file)
	r.Source = old
	done := s.restore(r, server.Options{})
	renewed, err := ledger.ParseKey(done.LogKey)
	must(t, err)
	w.watch(done.Origin, renewed)
	srv = s.serve(r.Data)
	answers(t, srv, "careful")
	c := srv.checkpoint(func(o ledger.VerifiedCheckpoint) bool { return len(o.Cosignatures) == 1 }, renewed, w.key)
	if c.Origin != done.Origin {
		t.Errorf("the witness signed for %s, and the log is %s", c.Origin, done.Origin)
	}
}
