package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"math"
	"os"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
)

// LogFile reads the log from a database that another process may be writing, in the state at which
// it was opened. It changes nothing. It is not safe for concurrent use.
type LogFile struct {
	db   *sql.DB
	conn *sql.Conn
}

// OpenLog opens the log in the database at path. On a medium on which nothing can be written, it reads the database file alone, as a
// clean end leaves it. Codes: not_found, folder_newer; log_invalid for a file with other tables than a build makes; unavailable, also
// for a write-ahead log on such a medium.
func OpenLog(ctx context.Context, path string) (_ *LogFile, err error) {
	if _, err := os.Stat(path); err != nil {
		return nil, watchword.Wrap(err, watchword.NotFound, "the database %s does not exist", path)
	}
	f, err := openLog(ctx, path, dsn(path, "ro", "busy_timeout(5000)", "query_only(1)", "trusted_schema(0)", "cache_size(-16000)"))
	if code := watchword.CodeOf(err); err != nil && code != watchword.FolderNewer && code != watchword.LogInvalid { // read-only medium
		if lost := checkNoWriteAheadLog(path, err); lost != nil {
			return nil, lost
		}
		still, again := openLog(ctx, path, dsn(path, "ro", "query_only(1)", "trusted_schema(0)")+"&immutable=1")
		if again != nil {
			return nil, unavailable(errors.Join(err, again))
		}
		return still, nil
	}
	return f, err
}

// checkNoWriteAheadLog refuses a database that cannot be read, for cause, with the write-ahead log beside it: alone it lacks its last
// writes. Code: unavailable.
func checkNoWriteAheadLog(path string, cause error) error {
	info, err := os.Stat(path + "-wal")
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	return watchword.Wrap(errors.Join(cause, err), watchword.Unavailable, "the database %s cannot be read together with its write-ahead log, which has its last writes: SQLite needs to write beside them; copy the whole folder to where files can be written", path)
}

func openLog(ctx context.Context, path, dsn string) (_ *LogFile, err error) {
	f := &LogFile{}
	if f.db, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	if f.conn, err = f.db.Conn(ctx); err == nil {
		if _, err = f.conn.ExecContext(ctx, `BEGIN`); err == nil {
			err = checkObjects(ctx, f.conn, path) // its first read starts the snapshot
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.db.Close())
	}
	return f, nil
}

// Close closes the file.
func (f *LogFile) Close() error { return errors.Join(f.conn.Close(), f.db.Close()) }

func (f *LogFile) reads() *readCounts { return new(readCounts) } // a file without a server: its reads are not counted

func (f *LogFile) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return f.conn.QueryContext(ctx, q, args...)
}

// ServerKeys returns the server's keys from the file.
func (f *LogFile) ServerKeys(ctx context.Context) ([]keyring.SealedKey, error) {
	if v, err := f.layout(ctx); err != nil || v >= schemaOfRestores {
		return serverKeys(ctx, f)
	}
	return queryAll(ctx, f, scanServerKey, `SELECT id, role, state, public, private, cert, created, starts, ends, '' FROM server_keys ORDER BY n`)
}

// Schema versions from which on the tables have other names or columns. The file may be a copy of an earlier build: reading a
// log changes nothing, so nothing has migrated it.
const (
	schemaOfTerms    = 21
	schemaOfRestores = 25
)

// layout returns one of the schema versions above: the latest whose tables the file has.
func (f *LogFile) layout(ctx context.Context) (int, error) {
	return queryOne(ctx, f, func(r scanner) (v int, err error) { return v, r.Scan(&v) }, nil, `SELECT CASE
		WHEN EXISTS (SELECT 1 FROM pragma_table_info('instance') WHERE name = 'log_origin') THEN 25
		WHEN EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'house') THEN 0
		ELSE 21 END`)
}

// Schema returns the number of the last migration.
func (f *LogFile) Schema(ctx context.Context) (int64, error) {
	return f.number(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`)
}

func (f *LogFile) number(ctx context.Context, q string) (int64, error) {
	return queryOne(ctx, f, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, error(nil), q)
}

// Instance returns the instance's settings from its first start, and from its last restore.
func (f *LogFile) Instance(ctx context.Context) (keyring.Instance, error) {
	switch v, err := f.layout(ctx); {
	case err != nil || v >= schemaOfRestores:
		return instance(ctx, f)
	case v >= schemaOfTerms:
		return queryOne(ctx, f, scanInstance, keyring.ErrNotInitialized, `SELECT issuer, epoch, created, '', 0, 0 FROM instance`)
	default:
		return queryOne(ctx, f, scanInstance, keyring.ErrNotInitialized, `SELECT issuer, epoch, at, '', 0, 0 FROM house`)
	}
}

// Bundles returns every signed bundle, oldest first.
func (f *LogFile) Bundles(ctx context.Context) ([]keyring.SignedBundle, error) {
	if v, err := f.layout(ctx); err != nil || v >= schemaOfRestores {
		return bundles(ctx, f)
	}
	is, err := f.Instance(ctx)
	if err != nil {
		return nil, err
	}
	return queryAll(ctx, f, scanBundle, `SELECT ?, version, jws, starts, expires FROM bundles ORDER BY version`, is.Epoch)
}

// Each calls do for every entry, in order.
func (f *LogFile) Each(ctx context.Context, do func(audit.Record) error) error {
	// In pages: between them tiles are read on the same connection.
	const page = 16 * ledger.TileWidth
	for after := int64(math.MinInt64); ; { // includes invalid numbers
		rs, err := records(ctx, f, after, page)
		if err != nil {
			return err
		}
		for _, r := range rs {
			if err := do(r); err != nil {
				return err
			}
		}
		if len(rs) < page {
			return nil
		}
		after = rs[len(rs)-1].Seq
	}
}

// FullTile returns a full tile.
func (f *LogFile) FullTile(ctx context.Context, level int, n int64) ([]byte, ledger.Hash, error) {
	type tile struct {
		hashes []byte
		root   ledger.Hash
	}
	t, err := queryOne(ctx, f, func(r scanner) (t tile, err error) {
		var root []byte
		if err = r.Scan(&t.hashes, &root); err == nil && len(root) != len(t.root) {
			err = watchword.Refuse(watchword.LogInvalid, "entry %d: the root of %s was changed", n<<(ledger.TileHeight*(level+1))+1, ledger.Path(level, n, ledger.TileWidth))
		}
		copy(t.root[:], root)
		return t, err
	}, notFound("tile", n), `SELECT hashes, root FROM audit_tiles WHERE level = ? AND n = ?`, level, n)
	return t.hashes, t.root, err
}

// TileFilter returns the search terms of a full tile.
func (f *LogFile) TileFilter(ctx context.Context, n int64) (audit.TileFilter, error) {
	return queryOne(ctx, f, scanTerms, notFound("tile", n), `SELECT first, last, bits FROM audit_terms WHERE n = ?`, n)
}

// Counts counts tiles and their search terms.
func (f *LogFile) Counts(ctx context.Context) (tiles, terms int64, err error) {
	_, err = queryAll(ctx, f, func(r scanner) (none struct{}, err error) { return none, r.Scan(&tiles, &terms) },
		`SELECT (SELECT count(*) FROM audit_tiles), (SELECT count(*) FROM audit_terms)`)
	return tiles, terms, err
}

// Checkpoints returns all checkpoints, by size.
func (f *LogFile) Checkpoints(ctx context.Context) ([]audit.SignedCheckpoint, error) {
	return queryAll(ctx, f, scanCheckpoint, `SELECT size, note, at FROM audit_checkpoints ORDER BY size`)
}
