//go:build unix

package attack_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// A user who can write to the old data folder, and has none of its keys, adds an owner to the log, a root to the server's keys, makes a
// revoked root valid again, or gives the server another address: none of them is on the restored server. What the server itself signed is: the new root that the former one
// introduced, by whose pin the restore can be asked for.
func TestARestoreTakesOnlyWhatTheServerSigned(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	srv.enroll("a", device.Options{}, nil)
	file := s.backup(old)
	before, err := token.ReadTrust(srv.request("GET", "/v1/trust", "", "").body)
	must(t, err)
	_, err = srv.admin.RotateKey(t.Context(), "root", true)
	must(t, err)
	_, err = srv.admin.RevokeKey(t.Context(), before.Roots[0].ID(), "stolen")
	must(t, err)
	after, err := token.ReadTrust(srv.request("GET", "/v1/trust", "", "").body)
	must(t, err)
	_, err = srv.admin.Revoke(t.Context(), "a", "stolen")
	must(t, err)
	srv.stop()
	oldPin, newPin := token.TrustPin(before.Roots[0]), token.TrustPin(after.Roots[0])
	foreign, err := jose.GenerateKey("P-256")
	must(t, err)
	change := func(t *testing.T, f func(db *sql.DB, dir string)) string {
		dir := filepath.Join(t.TempDir(), "changed")
		must(t, os.CopyFS(dir, os.DirFS(old)))
		must(t, os.Chmod(dir, 0o700))
		db, err := sql.Open("sqlite", filepath.Join(dir, "watchword.db"))
		must(t, err)
		f(db, dir)
		must(t, db.Close())
		return dir
	}
	run := func(t *testing.T, source, root string, accept bool, code watchword.Code, parts ...string) server.RestoredBackup {
		t.Helper()
		r := s.options(file)
		r.Data, r.Source, r.Root, r.AcceptLoss = filepath.Join(t.TempDir(), "restored"), source, root, accept
		done, err := server.RestoreBackup(t.Context(), r, server.Options{})
		wants(t, "the restore", err, code)
		for _, part := range parts {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%v, want %q in it", err, part)
			}
		}
		return done
	}

	for name, pin := range map[string]string{"of the backup": oldPin, "that a bundle introduced": newPin} {
		t.Run("the root "+name, func(t *testing.T) {
			done := run(t, old, pin, false, "")
			if !slices.Equal(done.Roots, []string{newPin}) || !done.Found.Confirmed || done.Found.Elsewhere || len(done.Found.Warnings) > 0 {
				t.Errorf("roots %q, source %+v", done.Roots, done.Found)
			}
		})
	}
	t.Run("another root", func(t *testing.T) {
		run(t, old, token.TrustPin(foreign.Public()), true, watchword.PinMismatch, oldPin)
		run(t, "", newPin, true, watchword.PinMismatch)
	})

	by := audit.Actor{Tenant: watchword.DefaultTenant, Subject: "operator"}
	for name, note := range map[string]bool{"behind the last checkpoint": false, "with a checkpoint of theirs": true} {
		t.Run("an owner "+name, func(t *testing.T) {
			dir := change(t, func(db *sql.DB, dir string) {
				forgeEntries(
					t, db, dir, note,
					by.DoneEntry("operator.create", "mallory", time.Now(), map[string]string{"role": "owner"}),
					by.DoneEntry("operator.enroll", "mallory", time.Now(), map[string]string{"sign": string(foreign.Public().ID()), "sign_jwk": string(foreign.Public().JWK())}),
					by.DoneEntry(audit.DeviceSuspend, "a", time.Now(), nil),
				)
			})
			run(t, dir, "", false, watchword.Conflict, "operator.create owner mallory", "operator.enroll mallory", "device.suspend a")
			done := run(t, dir, "", true, "")
			if n := len(done.Found.LeftOut()); n != 2 || len(done.Found.Unproved) != 3 {
				t.Errorf("left out %v of %v", done.Found.LeftOut(), done.Found.Unproved)
			}
			st, err := sqlite.Open(t.Context(), filepath.Join(done.Data, "watchword.db"), sqlite.Options{})
			must(t, err)
			defer st.Close()
			if is, err := st.Subject(t.Context(), watchword.DefaultTenant, "mallory"); watchword.CodeOf(err) != watchword.NotFound {
				t.Errorf("mallory is %s %s, %v", is.Role, is.State, err)
			}
			is, err := st.Subject(t.Context(), watchword.DefaultTenant, "a")
			must(t, err)
			// The checkpoints in the database prove the revocation.
			if is.State != watchword.Revoked {
				t.Errorf("a is %s", is.State)
			}
		})
	}

	retired := by.DoneEntry(audit.KeyRetire, string(before.Roots[0].ID()), before.Issued, map[string]string{"role": "root", "before": "active", "after": "retiring"})
	for _, tc := range []struct {
		name, query string
		args        []any
		entry       *audit.Entry
	}{
		{"a root of theirs", `INSERT INTO server_keys (id, role, state, public, private, created) VALUES (?, 'root', 'retiring', ?, x'', 0)`, []any{string(foreign.Public().ID()), foreign.Public().JWK()}, nil},
		{"a former log key of theirs", `INSERT INTO server_keys (id, role, state, public, private, created) VALUES (?, 'log', 'gone', ?, x'', 0)`, []any{string(foreign.Public().ID()), foreign.Public().JWK()}, nil},
		{"a revoked root", `UPDATE server_keys SET state = 'retiring' WHERE id = ?`, []any{string(before.Roots[0].ID())}, nil},
		{"a revoked root, by an entry of theirs of the time of the backup", `UPDATE server_keys SET state = 'retiring' WHERE id = ?`, []any{string(before.Roots[0].ID())}, &retired},
		{"an address of theirs", `INSERT INTO issuers (issuer, until) VALUES ('https://evil.example', 0)`, nil, nil},
		{"a bundle of theirs", `UPDATE bundles SET jws = (SELECT jws FROM bundles ORDER BY version LIMIT 1) WHERE version = (SELECT max(version) FROM bundles)`, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := change(t, func(db *sql.DB, dir string) {
				res, err := db.Exec(tc.query, tc.args...)
				must(t, err)
				if n, err := res.RowsAffected(); n != 1 || err != nil {
					t.Fatalf("%d rows changed, %v", n, err)
				}
				if tc.entry != nil {
					forgeEntries(t, db, dir, false, *tc.entry)
				}
			})
			run(t, dir, "", false, watchword.Conflict)
			done := run(t, dir, "", true, "")
			if len(done.Found.Warnings) == 0 || !strings.Contains(strings.Join(done.Found.Warnings, " "), "the server's own keys and addresses are those of the backup") {
				t.Errorf("warnings %q", done.Found.Warnings)
			}
			ring := (&testServer{t: t, dir: done.Data}).stealKeys()
			for _, k := range append(ring.Public(keyring.Root), ring.Public(keyring.Log)...) {
				if k.ID() == foreign.Public().ID() {
					t.Error("the restored server has the key of a user who could write to the folder")
				}
			}
			if !slices.Equal(done.Roots, []string{oldPin}) {
				t.Errorf("the roots are %q, and that of the backup is %q", done.Roots, oldPin)
			}
		})
	}

	// The checkpoint in the folder counts fewer entries than the folder has: the end is not confirmed. The last entry changes no authority.
	s.backup(old)
	if done := run(t, old, "", false, ""); done.Found.Confirmed {
		t.Errorf("the end is confirmed by a checkpoint of fewer entries: %+v", done.Found)
	}
}

// forgeEntries adds entries to the log of a folder. note says whether log.checkpoint is of
// them, with the signature of another key.
func forgeEntries(t *testing.T, db *sql.DB, dir string, note bool, es ...audit.Entry) {
	t.Helper()
	f, err := sqlite.OpenLog(t.Context(), filepath.Join(dir, "watchword.db"))
	must(t, err)
	var tree ledger.Tree
	must(t, f.Each(t.Context(), func(r audit.Record) error {
		tree, _ = tree.Append(ledger.LeafHash(r.Hash))
		return nil
	}))
	is, err := f.Instance(t.Context())
	must(t, err)
	must(t, f.Close())
	for _, e := range es {
		body, err := e.Body()
		must(t, err)
		r := audit.Record{Body: body, Salt: ledger.Salt{1}}
		r.Hash = ledger.Commitment(r.Salt, body)
		tree, _ = tree.Append(ledger.LeafHash(r.Hash))
		_, err = db.Exec(`INSERT INTO audit_entries (seq, hash, salt, body) VALUES (?, ?, ?, ?)`, tree.Size(), r.Hash[:], r.Salt[:], body)
		must(t, err)
	}
	if note {
		checkpoint := ledger.Checkpoint{Origin: is.Origin(), Size: tree.Size(), Root: tree.Root()}
		stranger, err := jose.GenerateKey("Ed25519")
		must(t, err)
		signer, err := stranger.Signer()
		must(t, err)
		text, err := checkpoint.Sign(ledger.Signer{Key: ledger.LogKeys(is.Origin(), signer.Public())[0], SignFunc: signer.SignBytes})
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "log.checkpoint"), text, 0o600))
	}
}
