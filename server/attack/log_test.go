package attack_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	orders "github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// serverWithLog is a data folder with a log of more than two tiles, which no server uses any more, and the checkpoint that
// was stored elsewhere.
func serverWithLog(t *testing.T) (dir string, keys []ledger.Key, kept []byte) {
	t.Helper()
	srv := serve(t, nil)
	keys = []ledger.Key{srv.logKey()}
	srv.checkpointNote() // a first one
	srv.checkpoint(func(o ledger.VerifiedCheckpoint) bool { return o.Size > 530 }, keys...)
	kept = srv.checkpointNote()
	srv.stop() // which signs what came last
	if _, err := server.VerifyLog(t.Context(), srv.dir, fixedKeys(keys), kept); err != nil {
		t.Fatal(err)
	}
	return srv.dir, keys, kept
}

// checkpointNote is a checkpoint of what is in the log by now.
func (srv *testServer) checkpointNote() []byte {
	srv.t.Helper()
	key := srv.logKey()
	es, err := srv.admin.FindEntries(srv.t.Context(), admin.LogQuery{Newest: true}, 1)
	must(srv.t, err)
	o := srv.checkpoint(func(o ledger.VerifiedCheckpoint) bool { return o.Size >= es[0].Seq }, key)
	note, err := srv.admin.LogFile(srv.t.Context(), "checkpoint")
	must(srv.t, err)
	if again, err := ledger.VerifyCheckpoint(note, key); err != nil || again.Size < o.Size {
		srv.t.Fatal(err)
	}
	return note
}

// copyTree copies a folder.
func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	must(t, os.CopyFS(to, os.DirFS(from)))
	must(t, filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	}))
	return to
}

// tamper runs SQL on a data folder's database, as an attacker with write access.
func tamper(t *testing.T, dir string, f func(db *sql.DB)) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "watchword.db"))
	must(t, err)
	defer db.Close()
	f(db)
}

func exec1(t *testing.T, db *sql.DB, q string, args ...any) {
	t.Helper()
	r, err := db.Exec(q, args...)
	must(t, err)
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%s changed nothing", q)
	}
}

// Whatever an attacker with write access to the database changes, with everything recomputed except signatures, is found,
// and the first entry that does not match is named.
func TestRewrittenLogIsDetected(t *testing.T) {
	dir, keys, kept := serverWithLog(t)
	flip := func(column, table, where string) func(t *testing.T, db *sql.DB) {
		return func(t *testing.T, db *sql.DB) {
			var b []byte
			must(t, db.QueryRow(`SELECT `+column+` FROM `+table+` WHERE `+where).Scan(&b))
			b[len(b)/2] ^= 1
			exec1(t, db, `UPDATE `+table+` SET `+column+` = ? WHERE `+where, b)
		}
	}
	run := func(q string) func(t *testing.T, db *sql.DB) {
		return func(t *testing.T, db *sql.DB) { exec1(t, db, q) }
	}
	// again makes an entry with another body, and all that is derived from it up to a level.
	again := func(seq int64, tiles bool) func(t *testing.T, db *sql.DB) {
		return func(t *testing.T, db *sql.DB) {
			if seq == 0 { // the last but one
				must(t, db.QueryRow(`SELECT max(seq) - 1 FROM audit_entries`).Scan(&seq))
			}
			var body []byte
			must(t, db.QueryRow(`SELECT body FROM audit_entries WHERE seq = ?`, seq).Scan(&body))
			body = bytes.Replace(body, []byte(`"operator"`), []byte(`"somebody"`), 1)
			salt := ledger.NewSalt()
			hash := ledger.Commitment(salt, body)
			exec1(t, db, `UPDATE audit_entries SET hash = ?, salt = ?, body = ? WHERE seq = ?`, hash[:], salt[:], body, seq)
			if !tiles {
				return
			}
			n := (seq - 1) / ledger.TileWidth
			var hashes []byte
			must(t, db.QueryRow(`SELECT hashes FROM audit_tiles WHERE level = 0 AND n = ?`, n).Scan(&hashes))
			leaf := ledger.LeafHash(hash)
			copy(hashes[int((seq-1)%ledger.TileWidth)*len(leaf):], leaf[:])
			hs, err := ledger.ParseTile(hashes, ledger.TileWidth)
			must(t, err)
			root := ledger.Root(hs)
			exec1(t, db, `UPDATE audit_tiles SET hashes = ?, root = ? WHERE level = 0 AND n = ?`, hashes, root[:], n)
			rebuildTerms(t, db, n)
		}
	}
	type change func(t *testing.T, db *sql.DB)
	for _, tc := range []struct {
		name   string
		change change
		says   string
	}{
		{"a byte of a body", flip("body", "audit_entries", "seq = 300"), "entry 300 was changed"},
		{"a byte of a salt", flip("salt", "audit_entries", "seq = 300"), "entry 300 was changed"},
		{"a byte of a hash", flip("hash", "audit_entries", "seq = 300"), "entry 300 was changed"},
		{"a byte of the last entry", run(`UPDATE audit_entries SET body = CAST(replace(CAST(body AS TEXT), '"v":1', '"v":2') AS BLOB) WHERE seq = (SELECT max(seq) FROM audit_entries)`), "was changed"},
		{"a byte of a tile", flip("hashes", "audit_tiles", "level = 0 AND n = 1"), "entry 385 does not match the hash in its tile"},
		{"a byte of a tile's root", flip("root", "audit_tiles", "level = 0 AND n = 1"), "entry 257"},
		{"a byte of what searches know", flip("bits", "audit_terms", "n = 1"), "entry 257"},
		{"what searches know is emptied", run(`UPDATE audit_terms SET bits = zeroblob(2048) WHERE n = 0`), "entry 1"},
		{"the times that searches know", run(`UPDATE audit_terms SET last = first WHERE n = 0`), "entry 1"},
		{"a byte of a checkpoint's text", flip("note", "audit_checkpoints", "size = (SELECT max(size) FROM audit_checkpoints)"), "checkpoint of"},
		{"a byte of an older checkpoint", flip("note", "audit_checkpoints", "size = (SELECT min(size) FROM audit_checkpoints)"), "checkpoint of"},
		{"a checkpoint under another size", run(`UPDATE audit_checkpoints SET size = size + 100000 WHERE size = (SELECT max(size) FROM audit_checkpoints)`), "checkpoint of"},
		{"an entry is gone", run(`DELETE FROM audit_entries WHERE seq = 300`), "entry 300 is missing"},
		{"the first entry is gone", run(`DELETE FROM audit_entries WHERE seq = 1`), "entry 1 is missing"},
		{"two entries change places", func(t *testing.T, db *sql.DB) {
			exec1(t, db, `UPDATE audit_entries SET seq = -1 WHERE seq = 300`)
			exec1(t, db, `UPDATE audit_entries SET seq = 300 WHERE seq = 301`)
			exec1(t, db, `UPDATE audit_entries SET seq = 301 WHERE seq = -1`)
		}, "entry 300 does not match"},
		{"entries move up over one that is gone", func(t *testing.T, db *sql.DB) {
			exec1(t, db, `DELETE FROM audit_entries WHERE seq = 300`)
			exec1(t, db, `UPDATE audit_entries SET seq = -seq WHERE seq > 300`)
			exec1(t, db, `UPDATE audit_entries SET seq = -seq - 1 WHERE seq < 0`)
		}, "entry 300 does not match"},
		{"the end is cut", run(`DELETE FROM audit_entries WHERE seq > 520`), "entry 521 is missing"},
		{"the end is cut, and the checkpoints of it", func(t *testing.T, db *sql.DB) {
			exec1(t, db, `DELETE FROM audit_entries WHERE seq > 520`)
			exec1(t, db, `DELETE FROM audit_checkpoints WHERE size > 520`)
		}, "entry 521 is missing"}, // by the checkpoint that was kept elsewhere
		{"an entry is put between", func(t *testing.T, db *sql.DB) {
			exec1(t, db, `UPDATE audit_entries SET seq = -seq - 1 WHERE seq >= 300`)
			exec1(t, db, `UPDATE audit_entries SET seq = -seq WHERE seq < 0`)
			exec1(t, db, `INSERT INTO audit_entries SELECT 300, hash, salt, body FROM audit_entries WHERE seq = 299`)
		}, "entry 300 does not match"},
		{"an entry is made anew", again(300, false), "entry 300 does not match"},
		{"an entry and its tile are made anew", again(300, true), "the log was rewritten there"},
		{"an entry at the edge is made anew", again(0, false), "the log was rewritten there"},
		{"a body is taken away", run(`UPDATE audit_entries SET salt = NULL, body = NULL WHERE seq = 300`), "entry "},
		{"a body is taken away, and searches know nothing of it", func(t *testing.T, db *sql.DB) {
			exec1(t, db, `UPDATE audit_entries SET salt = NULL, body = NULL WHERE seq = 300`)
			rebuildTerms(t, db, 1)
		}, "entry 300 has no body"},
		{"a tile is gone", run(`DELETE FROM audit_tiles WHERE level = 0 AND n = 1`), "entry 257"},
		{"a tile too many", run(`INSERT INTO audit_tiles SELECT 0, 9, root, hashes FROM audit_tiles WHERE level = 0 AND n = 1`), "tiles"},
		{"all checkpoints are gone", run(`DELETE FROM audit_checkpoints`), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := copyTree(t, dir)
			tamper(t, c, func(db *sql.DB) { tc.change(t, db) })
			_, err := server.VerifyLog(t.Context(), c, fixedKeys(keys), kept)
			if tc.says == "" { // what is kept elsewhere still vouches for the rest
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if watchword.CodeOf(err) != watchword.LogInvalid || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want something of %q", err, tc.says)
			}
			// The program says so too, with the exit status for it, whatever keys the folder names.
			checkpoint := filepath.Join(t.TempDir(), "kept")
			write(t, checkpoint, string(kept))
			if out, status := command(t, "/nowhere", "", "audit", "verify", c, "--against", checkpoint); status != 8 {
				t.Errorf("exit status %d: %s", status, out)
			}
		})
	}
}

// rebuildTerms makes what searches know of a tile anew, as the thief would.
func rebuildTerms(t *testing.T, db *sql.DB, n int64) {
	t.Helper()
	rows, err := db.Query(`SELECT body FROM audit_entries WHERE seq > ? AND seq <= ? AND body IS NOT NULL`, n*ledger.TileWidth, (n+1)*ledger.TileWidth)
	must(t, err)
	defer rows.Close()
	var terms audit.TileFilter
	for rows.Next() {
		var body []byte
		must(t, rows.Scan(&body))
		e, err := audit.Parse(1, body)
		must(t, err)
		terms.Add(e)
	}
	must(t, rows.Err())
	must(t, rows.Close())
	exec1(t, db, `UPDATE audit_terms SET first = ?, last = ?, bits = ? WHERE n = ?`, terms.First, terms.Last, terms.Bits[:], n)
}

// A byte of any row and column of the log's tables counts: one of each, and others at
// each run.
func TestEveryChangedLogRowIsDetected(t *testing.T) {
	dir, keys, kept := serverWithLog(t)
	tamper(t, dir, func(db *sql.DB) {
		for table, columns := range map[string][]string{
			"audit_entries": {"hash", "salt", "body"}, "audit_tiles": {"root", "hashes"}, "audit_terms": {"bits"}, "audit_checkpoints": {"note"},
		} {
			var ids []int64
			rows, err := db.Query(`SELECT rowid FROM ` + table)
			must(t, err)
			for rows.Next() {
				var id int64
				must(t, rows.Scan(&id))
				ids = append(ids, id)
			}
			must(t, rows.Err())
			must(t, rows.Close())
			if len(ids) > 40 { // of the many entries some, and the last
				rand.Shuffle(len(ids)-1, func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
				ids = ids[len(ids)-40:]
			}
			for _, id := range ids {
				for _, column := range columns {
					var b []byte
					must(t, db.QueryRow(`SELECT `+column+` FROM `+table+` WHERE rowid = ?`, id).Scan(&b))
					at, bit := rand.IntN(len(b)), byte(1)<<rand.IntN(8)
					b[at] ^= bit
					exec1(t, db, `UPDATE `+table+` SET `+column+` = ? WHERE rowid = ?`, b, id)
					if _, err := server.VerifyLog(t.Context(), dir, fixedKeys(keys), kept); watchword.CodeOf(err) != watchword.LogInvalid {
						t.Errorf("%s, row %d: bit %08b of byte %d of %s: %v", table, id, bit, at, column, err)
					}
					b[at] ^= bit
					exec1(t, db, `UPDATE `+table+` SET `+column+` = ? WHERE rowid = ?`, b, id)
				}
			}
		}
	})
	if _, err := server.VerifyLog(t.Context(), dir, fixedKeys(keys), kept); err != nil {
		t.Errorf("put right again: %v", err)
	}
}

// Two logs of one name, from a copied database: two checkpoints expose it.
func TestForkedLogIsDetected(t *testing.T) {
	srv := serve(t, nil)
	key := srv.logKey()
	srv.checkpointNote()
	srv.stop()
	fork := copyTree(t, srv.dir)
	grow := func(dir string) (*testServer, []byte) {
		g := serveOn(t, dir, nil)
		for range 5 {
			if _, err := g.admin.Entries(t.Context(), 0, 1); err != nil {
				t.Fatal(err)
			}
		}
		return g, g.checkpointNote()
	}
	one, first := grow(srv.dir)
	two, second := grow(fork)
	one.stop()
	two.stop()
	for dir, against := range map[string][]byte{srv.dir: second, fork: first} {
		_, err := server.VerifyLog(t.Context(), dir, fixedKeys([]ledger.Key{key}), against)
		if watchword.CodeOf(err) != watchword.LogInvalid {
			t.Errorf("%s against the other's checkpoint: %v", dir, err)
		}
	}
	for dir, own := range map[string][]byte{srv.dir: first, fork: second} {
		if _, err := server.VerifyLog(t.Context(), dir, fixedKeys([]ledger.Key{key}), own); err != nil {
			t.Errorf("%s against its own: %v", dir, err)
		}
	}
}

// A server does not go on with a log that does not extend what it signed.
func TestServerDoesNotSignRewrittenLog(t *testing.T) {
	dir, _, _ := serverWithLog(t)
	for name, q := range map[string]string{
		"an entry at the edge was changed": `UPDATE audit_entries SET hash = zeroblob(32) WHERE seq = (SELECT max(size) - 1 FROM audit_checkpoints)`, // that it signed
		"the end was cut":                  `DELETE FROM audit_entries WHERE seq > 520`,
		"an entry at the edge is gone":     `DELETE FROM audit_entries WHERE seq = (SELECT max(size) - 1 FROM audit_checkpoints)`, // that it signed
	} {
		c := copyTree(t, dir)
		tamper(t, c, func(db *sql.DB) { exec1(t, db, q) })
		cfg := server.Defaults()
		cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = c, "localhost:0", "localhost:0", ""
		_, err := server.New(t.Context(), cfg, server.Options{})
		wants(t, name, err, watchword.LogInvalid)
	}
}

// What evidence says counts, each part of it, and under the right root alone.
func TestChangedEvidenceIsRefused(t *testing.T) {
	srv := serve(t, nil)
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	other := srv.enroll("lamp-2", device.Options{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, d := range []*device.Device{lamp, other} {
		d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) { return map[string]int{"set": 40}, nil })
		go func() { _ = d.Run(ctx) }() // ends with the test
	}
	evidence := func(id watchword.SubjectID, level int) []byte {
		c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: id, Function: "lamp.set", Args: fmt.Appendf(nil, `{"level":%d}`, level), WaitReceipt: admin.DefaultTTL / 2})
		must(t, err)
		if c.State != watchword.Done || c.LogEntry == 0 {
			t.Fatalf("%s, log entry %d", c.State, c.LogEntry)
		}
		b, err := srv.admin.Evidence(ctx, c.ID)
		must(t, err)
		return b
	}
	good, elsewhere, second := evidence("lamp-1", 40), evidence("lamp-2", 40), evidence("lamp-1", 41)
	pin := token.TrustPin(lamp.Trust().Roots[0])
	v, err := orders.VerifyEvidence(good, pin)
	if err != nil || v.Command.Function != "lamp.set" || string(v.Command.Args) != `{"level":40}` || v.Status != watchword.StatusDone || v.OrderKey == "" {
		t.Fatalf("%+v %v", v, err)
	}
	if _, err := orders.VerifyEvidence(good, token.TrustPin(deviceSigner(t, lamp).Public())); watchword.CodeOf(err) != watchword.LogInvalid {
		t.Errorf("under another root: %v", err)
	}
	var e, e2, e3 map[string]any
	must(t, json.Unmarshal(good, &e))
	must(t, json.Unmarshal(elsewhere, &e2))
	must(t, json.Unmarshal(second, &e3))
	refused := func(what string, m map[string]any) {
		t.Helper()
		b, err := json.Marshal(m)
		must(t, err)
		if _, err := orders.VerifyEvidence(b, pin); watchword.CodeOf(err) != watchword.LogInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	for name := range e {
		for what, from := range map[string]map[string]any{"another device's": e2, "another command's": e3} {
			if fmt.Sprint(e[name]) == fmt.Sprint(from[name]) { // bundles, the orderer, the type; the same key
				continue
			}
			m := map[string]any{}
			for k, v := range e {
				m[k] = v
			}
			m[name] = from[name]
			if name == "enrollment" || name == "orderer" {
				// The same entry proved under a later checkpoint is as good.
				if what == "another command's" {
					continue
				}
				if name == "orderer" {
					continue
				}
			}
			refused(what+" "+name, m)
		}
		m := map[string]any{}
		for k, v := range e {
			if k != name {
				m[k] = v
			}
		}
		refused("without "+name, m)
	}
	// A flipped byte anywhere in it, step by step, is refused or says the same.
	for i := 0; i < len(good); i += 37 {
		b := bytes.Clone(good)
		b[i] ^= 1
		if w, err := orders.VerifyEvidence(b, pin); err == nil && fmt.Sprint(w.Command, w.Status, w.ReceiptKey) != fmt.Sprint(v.Command, v.Status, v.ReceiptKey) {
			t.Fatalf("byte %d of the evidence may be changed", i)
		}
	}
}

// fixedKeys returns the given keys for every log.
func fixedKeys(keys []ledger.Key) func(string) []ledger.Key {
	return func(string) []ledger.Key { return keys }
}

// What is pruned is what the log said before, under its signature, and nothing else.
func TestPruningWithoutAuthorization(t *testing.T) {
	dir, keys, kept := serverWithLog(t)
	ctx := t.Context()
	store := func(dir string, f func(st *sqlite.Store)) {
		st, err := sqlite.Open(ctx, filepath.Join(dir, "watchword.db"), sqlite.Options{})
		must(t, err)
		f(st)
		must(t, st.Close())
	}
	verify := func(dir string) error {
		_, err := server.VerifyLog(ctx, dir, fixedKeys(keys), kept)
		return err
	}
	forged := copyTree(t, dir)
	var shall audit.Pruning
	say := func(st *sqlite.Store) {
		var err error
		_, shall, err = st.PlanPrune(ctx, time.Now().Add(time.Hour), 1)
		must(t, err)
		must(t, st.AddEntry(ctx, shall.AddTo(audit.Entry{Tenant: watchword.DefaultTenant, At: time.Now(), Kind: audit.LogPrune, Outcome: audit.Done})))
	}
	store(dir, say)
	must(t, verify(dir))
	serveOn(t, dir, nil).stop() // which signs it
	store(dir, func(st *sqlite.Store) {
		n, err := st.PruneLog(ctx, shall)
		must(t, err)
		if n == 0 {
			t.Error("nothing was pruned")
		}
	})
	must(t, verify(dir))
	// Proofs made before go on holding, and it starts.
	serveOn(t, dir, nil).stop()
	must(t, verify(dir))

	lose := func(where string) func(db *sql.DB) {
		return func(db *sql.DB) {
			exec1(t, db, `UPDATE audit_entries SET salt = NULL, body = NULL WHERE body IS NOT NULL AND `+where)
			rebuildTerms(t, db, 0)
			rebuildTerms(t, db, 1)
		}
	}
	for name, change := range map[string]func(db *sql.DB){
		"one of a kind that lasts": lose(`seq = (SELECT min(seq) FROM audit_entries WHERE body IS NOT NULL)`),
		"one beyond it":            lose(`seq = 300`),
	} {
		c := copyTree(t, dir)
		tamper(t, c, change)
		wants(t, name, verify(c), watchword.LogInvalid)
	}
	// The same, by an attacker with write access to the database only.
	store(forged, func(st *sqlite.Store) {
		say(st)
		_, err := st.PruneLog(ctx, shall)
		must(t, err)
	})
	wants(t, "without an approval", verify(forged), watchword.LogInvalid)
}

// Without any other checkpoint, the one beside the database detects it too.
func TestCheckpointFileIsCheckedAtStart(t *testing.T) {
	dir, _, _ := serverWithLog(t)
	for name, q := range map[string][]string{
		"rewritten": {`DELETE FROM audit_checkpoints`, `UPDATE audit_entries SET hash = zeroblob(32), salt = NULL, body = NULL WHERE seq = (SELECT max(seq) FROM audit_entries)`},
		"cut":       {`DELETE FROM audit_checkpoints`, `DELETE FROM audit_entries WHERE seq = (SELECT max(seq) FROM audit_entries)`},
	} {
		c := copyTree(t, dir)
		tamper(t, c, func(db *sql.DB) {
			for _, q := range q {
				exec1(t, db, q)
			}
		})
		_, err := server.VerifyLog(t.Context(), c, nil)
		wants(t, name, err, watchword.LogInvalid)
		cfg := server.Defaults()
		cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = c, "localhost:0", "localhost:0", ""
		_, err = server.New(t.Context(), cfg, server.Options{})
		wants(t, name+", started", err, watchword.LogInvalid)
	}
}
