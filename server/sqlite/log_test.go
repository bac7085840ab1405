package sqlite

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

func entryOf(i int) audit.Entry {
	return audit.Entry{Tenant: watchword.DefaultTenant, At: time.UnixMilli(int64(i) + 1), Kind: audit.TokenIssue, Actor: watchword.SubjectID(fmt.Sprint("lamp-", i)), Outcome: audit.Done}
}

// treeOf makes the tree of a store's entries anew.
func treeOf(t *testing.T, s *Store) ledger.Tree {
	t.Helper()
	rs, err := s.Records(t.Context(), 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	var own ledger.Tree
	for i, r := range rs {
		if r.Seq != int64(i+1) || !r.MatchesHash() {
			t.Fatalf("entry %d is number %d, fits %v", i+1, r.Seq, r.MatchesHash())
		}
		own, _ = own.Append(ledger.LeafHash(r.Hash))
	}
	return own
}

func TestTreeEdgeIsReloaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	n := 0
	for _, more := range []int{1, 254, 1, 1, 255, 3000, 77} {
		s := opened(t, path)
		var es []audit.Entry
		for range more {
			es = append(es, entryOf(n))
			n++
		}
		if err := s.AddEntry(t.Context(), es...); err != nil {
			t.Fatal(err)
		}
		tree, own := *s.w.tx.merkle.committed.Load(), treeOf(t, s)
		if tree.Size() != int64(n) || tree.Root() != own.Root() {
			t.Errorf("of %d entries the tree has %d, its root fits: %v", n, tree.Size(), tree.Root() == own.Root())
		}
		terms := s.w.tx.merkle.Terms
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = opened(t, path)
		if again := *s.w.tx.merkle.committed.Load(); again.Root() != own.Root() || s.w.tx.merkle.Terms != terms {
			t.Errorf("opened again with %d entries, the edge is another", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGapAtTreeEdgeIsDetectedAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	for i := range 300 {
		if err := s.AddEntry(t.Context(), entryOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`DELETE FROM audit_entries WHERE seq = 290`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, Options{}); watchword.CodeOf(err) != watchword.LogInvalid {
		t.Errorf("got %v", err)
	}
}

func TestEntriesOfAnOlderVersionComeUnderTheTree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite", dsn(path, "rwc", "journal_mode(WAL)"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := provider(db)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	const n = 600
	for i := range n {
		if _, err := db.Exec(`INSERT INTO audit_entries (tenant, at, kind, body) VALUES ('default', ?, 'token.issue', ?)`,
			i, fmt.Appendf(nil, `{"tenant":"default","at":"2026-11-24T00:00:00Z","kind":"token.issue","actor":"lamp-%d","outcome":"done"}`, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := opened(t, path)
	if tree := *s.w.tx.merkle.committed.Load(); tree.Size() != n || tree.Root() != treeOf(t, s).Root() {
		t.Errorf("the tree has %d entries", tree.Size())
	}
	rs, err := s.Find(t.Context(), audit.Query{Subject: "lamp-77"}, audit.Page{Limit: 10})
	if err != nil || len(rs) != 1 || rs[0].Seq != 78 {
		t.Errorf("%v %v", rs, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// And the way back.
	if db, err = sql.Open("sqlite", dsn(path, "rwc", "journal_mode(WAL)")); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if p, err = provider(db); err != nil {
		t.Fatal(err)
	}
	if _, err := p.DownTo(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	var count int
	if err := db.QueryRow(`SELECT count(*) FROM audit_entries WHERE kind = 'token.issue'`).Scan(&count); err != nil || count != n {
		t.Errorf("%d %v", count, err)
	}
}
