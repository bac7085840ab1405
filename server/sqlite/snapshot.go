package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strings"

	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// Snapshot is a database at one moment, while another process or another connection may go on writing it. It holds a read transaction
// until it is closed: writers do not wait, but the write-ahead log keeps growing, so it must not stay open for longer than
// a copy takes. It changes nothing. It is not safe for concurrent use.
type Snapshot struct{ LogFile }

// OpenSnapshot opens the database at path as it is now, with what its write-ahead log has. Codes: folder_newer;
// log_invalid for a file with other tables than a build makes; unavailable.
func OpenSnapshot(ctx context.Context, path string) (*Snapshot, error) {
	f, err := openLog(ctx, path, dsn(path, "ro", "busy_timeout(5000)", "query_only(1)", "trusted_schema(0)", "cache_size(-2000)"))
	if err != nil {
		return nil, unavailable(err)
	}
	return &Snapshot{*f}, nil
}

// Size returns the number of bytes that WriteTo writes.
func (s *Snapshot) Size(ctx context.Context) (int64, error) {
	pages, err := s.number(ctx, `PRAGMA page_count`)
	if err != nil {
		return 0, err
	}
	page, err := s.number(ctx, `PRAGMA page_size`)
	return pages * page, err
}

// WriteDatabase writes the database file as a checkpoint of the whole write-ahead log would leave it: page by page, from the read
// transaction. Its memory is constant.
func (s *Snapshot) WriteDatabase(ctx context.Context, w io.Writer) error {
	rs, err := s.conn.QueryContext(ctx, `SELECT pgno, data FROM sqlite_dbpage ORDER BY pgno`)
	if err != nil {
		return unavailable(err)
	}
	defer rs.Close()
	var number int64
	var data sql.RawBytes
	for next := int64(1); rs.Next(); next++ {
		if err := rs.Scan(&number, &data); err != nil {
			return unavailable(err)
		}
		if number != next {
			return fmt.Errorf("page %d of the database was read in the place of page %d", number, next)
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return unavailable(rs.Err())
}

// TableCounts returns the number of rows of each table.
func (s *Snapshot) TableCounts(ctx context.Context) (map[string]int64, error) {
	names, err := queryAll(ctx, s, func(r scanner) (n string, err error) { return n, r.Scan(&n) },
		`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name`)
	if err != nil {
		return nil, err
	}
	counts := map[string]int64{}
	for _, name := range names {
		if counts[name], err = s.number(ctx, `SELECT count(*) FROM "`+strings.ReplaceAll(name, `"`, `""`)+`"`); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// LastCheckpoint returns the largest checkpoint; a zero one if there is none.
func (s *Snapshot) LastCheckpoint(ctx context.Context) (audit.SignedCheckpoint, error) {
	return lastCheckpoint(ctx, s)
}

// Tree returns the tree over all entries of the log. Code: log_invalid.
func (s *Snapshot) Tree(ctx context.Context) (ledger.Tree, error) {
	size, err := lastEntry(ctx, s)
	if err != nil {
		return ledger.Tree{}, err
	}
	return s.TreeAt(ctx, size)
}

// TreeAt returns the tree over the first size entries. Code: log_invalid.
func (s *Snapshot) TreeAt(ctx context.Context, size int64) (ledger.Tree, error) {
	return ledger.TreeAt(size, func(level int, n int64, width int) ([]byte, error) { return tile(ctx, s, level, n, width) })
}

// Damage returns the first fault that SQLite's own checks find in the file; "ok" if there is none.
func (s *Snapshot) Damage(ctx context.Context) (string, error) {
	found, err := queryAll(ctx, s, func(r scanner) (line string, err error) { return line, r.Scan(&line) }, `PRAGMA integrity_check(1)`)
	return strings.Join(found, "; "), err
}
