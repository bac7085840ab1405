//go:build unix

package attack_test

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// Between a backup and the loss of the server its root and TLS authority are replaced, the former root is revoked, and its address
// moves. The old folder and the journal have the rows of that: the restored server goes on with them, and its device comes back. A log
// has no keys: from an export the restore lists what it loses.
func TestARestoreHasTheKeysAndAddressOfAfterTheBackup(t *testing.T) {
	s := newRestoreSite(t)
	old, journal := filepath.Join(t.TempDir(), "old"), t.TempDir()
	s.change = func(c *server.Config) {
		c.Backup.Journal, c.Backup.Recipients = journal, []string{s.identity.Recipient().String()}
	}
	srv := s.serve(old)
	lamp, _ := s.device(srv, "lamp", device.Options{RequireLogProof: true})
	answers(t, srv, "lamp")
	file := s.backup(old)
	before, err := token.ReadTrust(srv.request("GET", "/v1/trust", "", "").body)
	must(t, err)
	for _, role := range []string{"issuer", "ca", "root"} {
		_, err := srv.admin.RotateKey(t.Context(), role, true)
		must(t, err)
	}
	trusts(t, lamp, "both roots", func(b *token.Trust) bool { return len(b.Roots) == 2 })
	_, err = srv.admin.RevokeKey(t.Context(), before.Roots[0].ID(), "stolen")
	must(t, err)
	moved := "https://" + strings.Replace(s.https, "localhost", "127.0.0.1", 1)
	_, err = srv.admin.MoveAddress(t.Context(), moved, time.Hour)
	must(t, err)
	trusts(t, lamp, "the new address, and one root", func(b *token.Trust) bool { return b.Issuer == moved && len(b.Roots) == 1 })
	after, err := token.ReadTrust(srv.request("GET", "/v1/trust", "", "").body)
	must(t, err)
	export := filepath.Join(t.TempDir(), "export")
	var lines bytes.Buffer
	must(t, srv.admin.ExportLog(t.Context(), admin.LogQuery{}, &lines))
	must(t, os.WriteFile(export, lines.Bytes(), 0o600))
	srv.stop()

	epoch := int64(0)
	for name, source := range map[string]string{"folder": old, "journal": journal} {
		r := s.options(file)
		r.Source, r.Epoch = source, epoch
		done := s.restore(r, server.Options{})
		epoch = done.Epoch + 1
		if len(done.Found.Lost) != 0 || len(done.Found.Warnings) != 0 {
			t.Errorf("%s: lost %v, warnings %q", name, done.Found.Lost, done.Found.Warnings)
		}
		for kind, n := range map[string]int{audit.KeyCreate: 3, audit.KeyRevoke: 1, audit.AddressMove: 1} {
			if got := replayedEntries(t, r.Data, kind); got < n {
				t.Errorf("%s: %d entries %s that were applied again, want %d", name, got, kind, n)
			}
		}
		srv := s.serve(r.Data)
		now, err := token.ReadTrust(srv.request("GET", "/v1/trust", "", "").body)
		must(t, err)
		if len(now.Roots) != 1 || now.Roots[0].ID() != after.Roots[0].ID() || now.Roots[0].ID() == before.Roots[0].ID() {
			t.Errorf("%s: the roots are not those of the last bundle", name)
		}
		if len(now.CAs) != len(after.CAs) || !bytes.Equal(now.CAs[len(now.CAs)-1], after.CAs[len(after.CAs)-1]) || bytes.Equal(now.CAs[0], after.CAs[len(after.CAs)-1]) {
			t.Errorf("%s: %d TLS authorities, and they are not those of the last bundle", name, len(now.CAs))
		}
		if now.Issuer != moved || len(now.History) != 2 {
			t.Errorf("%s: the issuer is %s, of %v", name, now.Issuer, now.History)
		}
		answers(t, srv, "lamp")
		srv.stop()
	}

	r := s.options(file)
	r.Source = export
	_, err = server.RestoreBackup(t.Context(), r, server.Options{})
	wants(t, "from an export", err, watchword.Conflict)
	for _, want := range []string{"key.create root", "key.revoke root " + string(before.Roots[0].ID()), "key.create ca", "address.move"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("from an export: %v, want %q in it", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "key.create issuer") {
		t.Errorf("it lists a key that the restore replaces: %v", err)
	}
	r.AcceptLoss = true
	if done := s.restore(r, server.Options{}); len(done.Found.Lost) < 4 {
		t.Errorf("the loss that was accepted is %v", done.Found.Lost)
	}

	// An old folder whose keys cannot be opened is as good as an export.
	damaged := filepath.Join(t.TempDir(), "damaged")
	must(t, os.CopyFS(damaged, os.DirFS(old)))
	must(t, os.Chmod(damaged, 0o700))
	db, err := sql.Open("sqlite", filepath.Join(damaged, "watchword.db"))
	must(t, err)
	_, err = db.Exec(`UPDATE server_keys SET private = x'00' WHERE role = 'ca' AND state = 'active'`)
	must(t, err)
	must(t, db.Close())
	r = s.options(file)
	r.Source = damaged
	_, err = server.RestoreBackup(t.Context(), r, server.Options{})
	wants(t, "from a folder with a damaged key", err, watchword.Conflict)
	r.AcceptLoss = true
	done := s.restore(r, server.Options{})
	if len(done.Found.Lost) < 4 || len(done.Found.Warnings) != 1 || !strings.Contains(done.Found.Warnings[0], string(watchword.KeyDamaged)) {
		t.Errorf("from a folder with a damaged key: lost %v, warnings %q", done.Found.Lost, done.Found.Warnings)
	}
	ring := (&testServer{t: t, dir: r.Data}).stealKeys()
	if ring.Root().ID() != before.Roots[0].ID() {
		t.Error("the root is neither that of the folder nor that of the backup")
	}
}

// The root was taken offline after the backup, which still has its private key: the restored server does not have it, and waits for
// the root. The plan is written before the data folder is in its place.
func TestARestoreKeepsTheRootOffline(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	s.serve(old).stop()
	file := s.backup(old)
	cfg := server.Defaults()
	cfg.Data = old
	must(t, server.TakeRootOffline(t.Context(), cfg, filepath.Join(t.TempDir(), "root.jwk"), server.Options{}))
	r := s.options(file)
	r.Source, r.Plan = old, filepath.Join(t.TempDir(), "none", "plan.json")
	_, err := server.RestoreBackup(t.Context(), r, server.Options{})
	wants(t, "a plan that cannot be written", err, watchword.Conflict)
	for _, path := range []string{r.Data, r.Data + ".tmp", r.Data + ".config"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was left behind", path)
		}
	}
	r.Plan = ""
	done := s.restore(r, server.Options{})
	if plan, err := os.ReadFile(done.PlanFile); done.PlanFile != r.Data+".plan.json" || err != nil || !strings.Contains(string(plan), `"payload"`) {
		t.Errorf("the plan in %q: %s, %v", done.PlanFile, plan, err)
	}
	if (&testServer{t: t, dir: r.Data}).stealKeys().Signer(keyring.Root) != nil {
		t.Error("the restored server has the private key of a root that was taken offline")
	}
}

// Where a restore may write, and that it leaves nothing if it may not.
func TestTargetsOfARestore(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	s.serve(old).stop()
	file := s.backup(old)
	for _, tc := range []struct {
		name, data string // below a new folder
		make       func(dir string) error
		code       watchword.Code
		want       string // the restored folder, or a part of the error
	}{
		{"a slash at the end", "new/", nil, "", "new"},
		{"an empty folder", "new", func(dir string) error { return os.Mkdir(filepath.Join(dir, "new"), 0o755) }, "", "new"},
		{"an indirect path", "a/../new", nil, "", "new"},
		{"a symbolic link to an empty folder", "new", func(dir string) error {
			return fsErrors(os.Mkdir(filepath.Join(dir, "there"), 0o700), os.Symlink("there", filepath.Join(dir, "new")))
		}, "", "there"},
		{"a symbolic link to nothing", "new", func(dir string) error { return os.Symlink("there", filepath.Join(dir, "new")) }, watchword.Conflict, "link to nothing"},
		{"a file", "new", func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) }, watchword.Conflict, "cannot be read as a folder"},
		{"the configuration of an earlier restore", "new", func(dir string) error { return os.Mkdir(filepath.Join(dir, "new.config"), 0o700) }, watchword.Conflict, "new.config exists"},
		{"what a killed restore left", "new", func(dir string) error {
			return fsErrors(os.Mkdir(filepath.Join(dir, "new.tmp"), 0o700), os.Mkdir(filepath.Join(dir, "new.config"), 0o700))
		}, watchword.Conflict, "was killed"},
		{"a folder without a parent", "none/new", nil, watchword.Unavailable, "cannot be made"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.make != nil {
				must(t, tc.make(dir))
			}
			was := testFiles(t, dir)
			r := s.options(file)
			r.Data, r.AcceptLoss = dir+"/"+tc.data, true
			done, err := server.RestoreBackup(t.Context(), r, server.Options{})
			wants(t, tc.name, err, tc.code)
			if tc.code != "" {
				if err != nil && !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q in it", err, tc.want)
				}
				if is := testFiles(t, dir); is != was {
					t.Errorf("it left %s, and there was %s", is, was)
				}
				return
			}
			if done.Data != filepath.Join(dir, tc.want) || done.Config != done.Data+".config" {
				t.Errorf("restored to %s, %s", done.Data, done.Config)
			}
			if _, err := server.VerifyLog(t.Context(), done.Data, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// trusts waits until a device has a trust bundle.
func trusts(t *testing.T, d *device.Device, what string, is func(*token.Trust) bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); !is(d.Trust()); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s has a trust bundle without %s", d.ID(), what)
		}
	}
}

func fsErrors(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// testFiles lists a folder.
func testFiles(t *testing.T, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range es {
		names = append(names, e.Name()+" "+e.Type().String())
	}
	return strings.Join(names, ", ")
}

// The notice of a recovery after the backup is shown again, unless the source says that it was acknowledged. The log in the old
// folder must have the root of its checkpoint, also where it goes on after it.
func TestARestoreShowsARecoveryAndChecksTheCheckpoint(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	file := s.backup(old)
	srv.stop()
	cfg := server.Defaults()
	cfg.Data = old
	_, err := server.RecoverOperator(t.Context(), cfg, "carla", server.Options{}) // another than the operator who acknowledges it below
	must(t, err)
	notices := func(data string) int {
		srv := s.serve(data)
		ns, err := srv.admin.Notices(t.Context())
		must(t, err)
		srv.stop()
		return len(ns.Notices)
	}
	r := s.options(file)
	r.Source = old
	done := s.restore(r, server.Options{})
	if n := notices(r.Data); n != 1 {
		t.Errorf("%d notices after a recovery that was not acknowledged", n)
	}
	srv = s.serve(old)
	told, err := srv.admin.Notices(t.Context())
	must(t, err)
	must(t, srv.admin.AcknowledgeNotice(t.Context(), told.Notices[0]))
	srv.stop()
	r = s.options(file)
	r.Source, r.Epoch = old, done.Epoch+1
	s.restore(r, server.Options{})
	if n := notices(r.Data); n != 0 {
		t.Errorf("%d notices after a recovery that was acknowledged", n)
	}

	// A checkpoint of another log of a smaller size, and the entries of the folder.
	other := newRestoreSite(t)
	foreign := filepath.Join(t.TempDir(), "foreign")
	other.serve(foreign).stop()
	note, err := os.ReadFile(filepath.Join(foreign, "log.checkpoint"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(old, "log.checkpoint"), note, 0o600))
	r = s.options(file)
	r.Source, r.AcceptLoss = old, true
	_, err = server.RestoreBackup(t.Context(), r, server.Options{})
	wants(t, "a checkpoint with another root", err, watchword.LogInvalid)
}
