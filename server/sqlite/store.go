// Package sqlite is the default store: one database file, SQL and migrations. Each method is one
// transaction, which is durable before the method returns. Rules live in the packages that own
// them; the store loads, calls the rule, and writes. It returns unavailable where the disk fails.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	driver "modernc.org/sqlite" // registers "sqlite"; pure Go
	codes "modernc.org/sqlite/lib"

	"github.com/watchword-iot/watchword"
)

// readConnections is the number of connections for reading, beside the one that writes.
const readConnections = 4

// Options holds the settings of a store. The zero value is ready to use.
type Options struct {
	// MaxGroup limits how many steps one commit carries; 0 means 512.
	MaxGroup int
	// WithoutAuditLog writes no audit entries, to measure what the log costs. No configuration sets
	// it.
	WithoutAuditLog bool
	// Now is the wall clock, which [Open] reads once; nil means time.Now.
	Now func() time.Time
	// Written is called after each step that writes, with the time from its start until it was durable or refused; nil: it is not called.
	Written func(took time.Duration)
}

// Store is one database file. Make one with [Open]. It is safe for concurrent use.
type Store struct {
	db   *sql.DB // connections for reading
	w    *writer
	mu   sync.RWMutex
	read map[string]*sql.Stmt // statements by their text, which is constant

	counts  readCounts
	upgrade *Upgrade
}

// readCounts counts what was read of a database.
type readCounts struct{ statements, rows atomic.Int64 }

// Reads returns how many queries were run since [Open], and how many rows they returned: also those of steps that write.
func (s *Store) Reads() (statements, rows int64) {
	return s.counts.statements.Load(), s.counts.rows.Load()
}

// Open opens the database file at path, creates it (mode 0600) if it does not exist, and migrates
// its schema, after it has copied a database of an earlier one: see [Upgrade].
// Codes: folder_newer, with nothing changed; unavailable.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	if o.MaxGroup == 0 {
		o.MaxGroup = 512
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, unavailable(err)
	}
	if err := f.Close(); err != nil {
		return nil, unavailable(err)
	}
	if err := checkSchemaOf(ctx, path); err != nil {
		return nil, unavailable(err)
	}
	w, err := sql.Open("sqlite", dsn(path, "rwc", "journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(5000)", "cache_size(-16000)"))
	if err != nil {
		return nil, unavailable(err)
	}
	w.SetMaxOpenConns(1)
	s := &Store{read: map[string]*sql.Stmt{}}
	if s.upgrade, err = migrate(ctx, w, path); err != nil {
		return nil, errors.Join(unavailable(err), w.Close())
	}
	if s.w, err = newWriter(ctx, w, o, &s.counts); err != nil {
		return nil, errors.Join(unavailable(err), w.Close())
	}
	if s.db, err = sql.Open("sqlite", dsn(path, "ro", "busy_timeout(5000)", "query_only(1)", "cache_size(-8000)")); err != nil {
		return nil, errors.Join(unavailable(err), s.w.close())
	}
	s.db.SetMaxOpenConns(readConnections)
	s.db.SetMaxIdleConns(readConnections)
	if err := s.db.PingContext(ctx); err != nil {
		return nil, errors.Join(unavailable(err), s.Close())
	}
	return s, nil
}

func dsn(path, mode string, pragmas ...string) string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}
	q := url.Values{"mode": {mode}, "_txlock": {"immediate"}}
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// Ping returns nil if a write transaction can commit.
func (s *Store) Ping(ctx context.Context) error {
	return s.w.do(ctx, func(t *tx) error {
		if _, err := t.exec(`UPDATE instance SET one = one`); err != nil {
			return err
		}
		return t.merkle.checkSingleWriter(t)
	})
}

// Close finishes the writes in progress and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.read {
		errs = append(errs, st.Close())
	}
	s.read = map[string]*sql.Stmt{}
	return errors.Join(append(errs, s.db.Close(), s.w.close())...)
}

// stmt returns the prepared statement of a constant query text.
func (s *Store) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.RLock()
	st := s.read[query]
	s.mu.RUnlock()
	if st != nil {
		return st, nil
	}
	st, err := s.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.read[query]; other != nil {
		return other, st.Close()
	}
	s.read[query] = st
	return st, nil
}

// querier runs queries: a read connection, or the writer's transaction.
type querier interface {
	query(ctx context.Context, q string, args ...any) (*sql.Rows, error)
	reads() *readCounts
}

func (s *Store) reads() *readCounts { return &s.counts }

func (s *Store) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	st, err := s.stmt(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

// scanner is the part of sql.Rows that reads one row.
type scanner interface{ Scan(dest ...any) error }

// queryAll reads all rows of a query.
func queryAll[T any](ctx context.Context, from querier, scan func(scanner) (T, error), q string, args ...any) ([]T, error) {
	rs, err := from.query(ctx, q, args...)
	if err != nil {
		return nil, unavailable(err)
	}
	defer rs.Close()
	counts := from.reads()
	counts.statements.Add(1)
	var out []T
	for rs.Next() {
		counts.rows.Add(1)
		v, err := scan(rs)
		if err != nil {
			return nil, unavailable(err)
		}
		out = append(out, v)
	}
	return out, unavailable(rs.Err())
}

// queryEach calls f with each row of a query.
func queryEach(ctx context.Context, from querier, f func(scanner) error, q string, args ...any) error {
	rs, err := from.query(ctx, q, args...)
	if err != nil {
		return unavailable(err)
	}
	defer rs.Close()
	counts := from.reads()
	counts.statements.Add(1)
	for rs.Next() {
		counts.rows.Add(1)
		if err := f(rs); err != nil {
			return unavailable(err)
		}
	}
	return unavailable(rs.Err())
}

// queryOne reads the first row of a query, or returns missing.
func queryOne[T any](ctx context.Context, from querier, scan func(scanner) (T, error), missing error, q string, args ...any) (T, error) {
	vs, err := queryAll(ctx, from, scan, q, args...)
	if err != nil || len(vs) == 0 {
		var zero T
		if err == nil {
			err = missing
		}
		return zero, err
	}
	return vs[0], nil
}

func notFound(what string, id any) error {
	return watchword.Refuse(watchword.NotFound, "%s %q not found", what, id)
}

// unavailable wraps driver errors with code unavailable; refusals and nil pass unchanged.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*watchword.Error](err); ok {
		return err
	}
	switch e, _ := errors.AsType[*driver.Error](err); primary(e) {
	case codes.SQLITE_FULL:
		return watchword.Wrap(err, watchword.Unavailable, "the store cannot write: the disk is full")
	case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB:
		return watchword.Wrap(err, watchword.Unavailable, "the database file is damaged")
	}
	return watchword.Wrap(err, watchword.Unavailable, "the store does not answer")
}

// Damaged reports whether err means that the file is no intact SQLite database.
func Damaged(err error) bool {
	e, _ := errors.AsType[*driver.Error](err)
	switch primary(e) {
	case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB, codes.SQLITE_ERROR: // SQLITE_ERROR: a table that a statement names is missing
		return true
	}
	return false
}

// primary returns SQLite's primary result code; 0 for other errors.
func primary(e *driver.Error) int {
	if e == nil {
		return 0
	}
	return e.Code() & 0xff
}

// toMillis returns a time as it is stored: in UTC milliseconds, the zero time as 0.
func toMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
