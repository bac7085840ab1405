package sqlite

import (
	"context"
	"database/sql"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// merkleLog is the right edge of the Merkle tree in memory. Entries of a step are removed when it
// is rolled back, and folded in when it commits. The database holds entries and full tiles; the
// edge is computed from them at start. It belongs to the writer, except committed, which anyone may
// read.
type merkleLog struct {
	audit.Edge
	added     []audit.Leaf // in the transaction that is open
	committed atomic.Pointer[ledger.Tree]
	disabled  bool // for measuring only
}

func newLog(off bool) *merkleLog {
	l := &merkleLog{disabled: off}
	l.committed.Store(&l.Tree)
	return l
}

func (l *merkleLog) undo(to int) { l.added = l.added[:to] }

// grow writes the tiles that the open transaction fills, and returns the edge after its commit.
func (l *merkleLog) grow(exec func(q string, args ...any) (int64, error)) (audit.Edge, error) {
	return grow(l.Edge, l.added, exec)
}

func grow(e audit.Edge, leaves []audit.Leaf, exec func(q string, args ...any) (int64, error)) (audit.Edge, error) {
	e, g := e.Append(leaves)
	for i := range g.Terms {
		t := &g.Terms[i]
		if _, err := exec(`INSERT INTO audit_terms (n, first, last, bits) VALUES (?, ?, ?, ?)`, t.N, t.First, t.Last, t.Bits[:]); err != nil {
			return e, err
		}
	}
	for _, t := range g.Tiles {
		if _, err := exec(`INSERT INTO audit_tiles (level, n, root, hashes) VALUES (?, ?, ?, ?)`, t.Level, t.N, t.Root[:], ledger.AppendTile(nil, t.Hashes...)); err != nil {
			return e, err
		}
	}
	return e, nil
}

// commit makes e the current edge; it is durable.
func (l *merkleLog) commit(e audit.Edge) {
	if len(l.added) == 0 {
		return
	}
	l.Edge = e
	clear(l.added) // so that entries can be freed
	l.added = l.added[:0]
	tree := e.Tree
	l.committed.Store(&tree)
}

// load computes the edge from the tables. Code: log_invalid where they do not match.
func (l *merkleLog) load(ctx context.Context, from querier) error {
	size, err := lastEntry(ctx, from)
	if err != nil {
		return err
	}
	tree, err := ledger.TreeAt(size, func(level int, n int64, width int) ([]byte, error) { return tile(ctx, from, level, n, width) })
	if err != nil {
		return err
	}
	l.Tree = tree
	terms, err := queryOne(ctx, from, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, error(nil), `SELECT coalesce(max(n) + 1, 0) FROM audit_terms`)
	if err == nil && terms != size/ledger.TileWidth {
		err = watchword.Refuse(watchword.LogInvalid, "the search index has %d tiles, and the log has %d", terms, size/ledger.TileWidth)
	}
	if err != nil {
		return err
	}
	rs, err := records(ctx, from, size-size%ledger.TileWidth, ledger.TileWidth)
	if err != nil {
		return err
	}
	for _, r := range rs {
		e, err := r.Entry()
		if err != nil { // a pruned range ends at a tile
			return watchword.Wrap(err, watchword.LogInvalid, "entry %d at the end of the log has no body, or its body is damaged", r.Seq)
		}
		l.Terms.Add(e)
	}
	l.committed.Store(&tree)
	return nil
}

// checkSingleWriter refuses to write where another process has written to the log.
func (l *merkleLog) checkSingleWriter(t *tx) error {
	last, err := lastEntry(context.Background(), t)
	if err == nil && !l.disabled && last != l.next()-1 {
		err = watchword.Refuse(watchword.LogInvalid, "another process wrote to the log: its last entry is %d, and the last entry of this server is %d", last, l.next()-1)
	}
	return err
}

func lastEntry(ctx context.Context, from querier) (int64, error) {
	return queryOne(ctx, from, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, error(nil), `SELECT coalesce(max(seq), 0) FROM audit_entries`)
}

// addEntry writes audit entries. Their numbers are consecutive, because a rolled back step takes its
// numbers with it.
func (t *tx) addEntry(es ...audit.Entry) error {
	if t.merkle.disabled {
		return nil
	}
	for _, e := range es {
		if err := e.Compared(t.versions); err != nil {
			return err
		}
		body, err := e.Body()
		if err != nil {
			return err
		}
		r, leaf := audit.NewRecord(t.merkle.next(), body)
		if _, err := t.exec(`INSERT INTO audit_entries (seq, hash, salt, body) VALUES (?, ?, ?, ?)`, r.Seq, r.Hash[:], r.Salt[:], body); err != nil {
			return err
		}
		t.merkle.added = append(t.merkle.added, audit.Leaf{Hash: leaf, Entry: e})
	}
	return nil
}

// next is the number of the next entry.
func (l *merkleLog) next() int64 { return l.Tree.Size() + int64(len(l.added)) + 1 }

// AddEntry writes audit entries in a transaction of their own.
func (s *Store) AddEntry(ctx context.Context, es ...audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error {
		for _, e := range es {
			if err := t.withVersions(e.Tenant, e.Versions, func() error { return t.addEntry(e) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// Sequence does nothing: entries are numbered in their own transaction.
func (s *Store) Sequence(context.Context) error { return nil }

// Tree returns the tree over the committed entries.
func (s *Store) Tree(context.Context) (ledger.Tree, error) {
	return *s.w.tx.merkle.committed.Load(), nil
}

// Tile returns the first width hashes of a tile.
func (s *Store) Tile(ctx context.Context, level int, n int64, width int) ([]byte, error) {
	return tile(ctx, s, level, n, width)
}

// tile reads a full tile, or computes one from the level below.
func tile(ctx context.Context, from querier, level int, n int64, width int) ([]byte, error) {
	bytes := func(r scanner) (b []byte, err error) { return b, r.Scan(&b) }
	full, err := queryAll(ctx, from, bytes, `SELECT hashes FROM audit_tiles WHERE level = ? AND n = ?`, level, n)
	if err != nil {
		return nil, err
	}
	var b []byte
	switch {
	case len(full) == 1:
		b = full[0]
	case level == 0:
		cs, err := commitments(ctx, from, n*ledger.TileWidth, width)
		if err != nil {
			return nil, err
		}
		for _, c := range cs {
			b = ledger.AppendTile(b, ledger.LeafHash(c))
		}
	default:
		roots, err := queryAll(ctx, from, bytes, `SELECT root FROM audit_tiles WHERE level = ? AND n >= ? AND n < ? ORDER BY n`,
			level-1, n*ledger.TileWidth, n*ledger.TileWidth+int64(width))
		if err != nil {
			return nil, err
		}
		for _, r := range roots {
			b = append(b, r...)
		}
	}
	if len(b) < width*len(ledger.Hash{}) {
		return nil, watchword.Refuse(watchword.LogInvalid, "tile %s is incomplete", ledger.Path(level, n, width))
	}
	return b[:width*len(ledger.Hash{})], nil
}

// Commitments returns the leaf hashes of up to limit entries after a number.
func (s *Store) Commitments(ctx context.Context, after int64, limit int) ([]ledger.Hash, error) {
	return commitments(ctx, s, after, limit)
}

// commitments refuses gaps.
func commitments(ctx context.Context, from querier, after int64, limit int) ([]ledger.Hash, error) {
	next := after
	return queryAll(ctx, from, func(r scanner) (h ledger.Hash, err error) {
		var seq int64
		var b []byte
		if err = r.Scan(&seq, &b); err != nil {
			return h, err
		}
		if next++; seq != next || len(b) != len(h) {
			return h, watchword.Refuse(watchword.LogInvalid, "entry %d is missing", next)
		}
		copy(h[:], b)
		return h, nil
	}, `SELECT seq, hash FROM audit_entries WHERE seq > ? ORDER BY seq LIMIT ?`, after, limit)
}

// Records returns up to limit entries after a number, oldest first.
func (s *Store) Records(ctx context.Context, after int64, limit int) ([]audit.Record, error) {
	return records(ctx, s, after, limit)
}

func records(ctx context.Context, from querier, after int64, limit int) ([]audit.Record, error) {
	return queryAll(ctx, from, scanRecord, `SELECT seq, hash, salt, body FROM audit_entries WHERE seq > ? ORDER BY seq LIMIT ?`, after, limit)
}

func scanRecord(r scanner) (out audit.Record, err error) {
	var hash, salt []byte
	if err = r.Scan(&out.Seq, &hash, &salt, &out.Body); err != nil {
		return out, err
	}
	if len(hash) != len(out.Hash) || out.Body != nil && len(salt) != len(out.Salt) {
		return out, watchword.Refuse(watchword.LogInvalid, "entry %d is damaged", out.Seq)
	}
	copy(out.Hash[:], hash)
	copy(out.Salt[:], salt)
	return out, nil
}

// AddCheckpoint stores a signed checkpoint; it replaces one of the same size.
func (s *Store) AddCheckpoint(ctx context.Context, c audit.SignedCheckpoint) error {
	return s.w.do(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO audit_checkpoints (size, note, at) VALUES (?, ?, ?)
			ON CONFLICT (size) DO UPDATE SET note = excluded.note`, c.Size, c.Note, toMillis(c.At))
		return err
	})
}

// LastCheckpoint returns the largest checkpoint; a zero one if there is none.
func (s *Store) LastCheckpoint(ctx context.Context) (audit.SignedCheckpoint, error) {
	return lastCheckpoint(ctx, s)
}

func lastCheckpoint(ctx context.Context, from querier) (audit.SignedCheckpoint, error) {
	return queryOne(ctx, from, scanCheckpoint, error(nil), `SELECT size, note, at FROM audit_checkpoints ORDER BY size DESC LIMIT 1`)
}

func scanCheckpoint(r scanner) (c audit.SignedCheckpoint, err error) {
	var at int64
	err = r.Scan(&c.Size, &c.Note, &at)
	c.At = fromMillis(at)
	return c, err
}

// buildLog migrates the entries of an older version into a tree.
func buildLog(ctx context.Context, t *sql.Tx) error {
	var e audit.Edge
	exec := func(q string, args ...any) (int64, error) {
		r, err := t.ExecContext(ctx, q, args...)
		if err != nil {
			return 0, err
		}
		return r.RowsAffected()
	}
	for {
		rs, err := t.QueryContext(ctx, `SELECT seq, body FROM audit_entries_before WHERE seq > ? ORDER BY seq LIMIT ?`, e.Tree.Size(), ledger.TileWidth)
		if err != nil {
			return err
		}
		var some []audit.Leaf
		var bodies [][]byte
		for rs.Next() {
			var seq int64
			var body []byte
			if err := rs.Scan(&seq, &body); err != nil {
				return err
			}
			entry, err := audit.Parse(seq, body)
			if err != nil || seq != e.Tree.Size()+int64(len(some))+1 {
				return watchword.Wrap(err, watchword.LogInvalid, "entry %d of the log is damaged or out of order", seq)
			}
			some, bodies = append(some, audit.Leaf{Entry: entry}), append(bodies, body)
		}
		if err := rs.Err(); err != nil {
			return err
		}
		if len(some) == 0 {
			_, err := exec(`DROP TABLE audit_entries_before`)
			return err
		}
		for i, body := range bodies {
			r, leaf := audit.NewRecord(e.Tree.Size()+int64(i)+1, body)
			some[i].Hash = leaf
			if _, err := exec(`INSERT INTO audit_entries (seq, hash, salt, body) VALUES (?, ?, ?, ?)`, r.Seq, r.Hash[:], r.Salt[:], body); err != nil {
				return err
			}
		}
		if e, err = grow(e, some, exec); err != nil {
			return err
		}
	}
}

// dropLog reverts buildLog.
func dropLog(ctx context.Context, t *sql.Tx) error {
	_, err := t.ExecContext(ctx, `CREATE TABLE audit_entries_before (
			seq    INTEGER PRIMARY KEY,
			tenant TEXT    NOT NULL,
			at     INTEGER NOT NULL,
			kind   TEXT    NOT NULL,
			body   BLOB    NOT NULL
		) STRICT;
		INSERT INTO audit_entries_before SELECT seq, json_extract(CAST(body AS TEXT), '$.tenant'), 0, json_extract(CAST(body AS TEXT), '$.kind'), body
			FROM audit_entries WHERE body IS NOT NULL`)
	return err
}
