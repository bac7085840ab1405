package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pressly/goose/v3"
	driver "modernc.org/sqlite"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Upgrade says that [Open] migrated the database of an earlier build. The schema of a database is the number of its newest
// migration. Copy is a copy of the database as it was before the first migration, with the schema From: the file
// PATH.before-TO, mode 0600. One such file is kept, that of the last upgrade.
type Upgrade struct {
	From, To int64
	Copy     string
	Others   error // why copies of earlier upgrades remain; nil: there are none
}

// Upgrade returns what Open migrated; nil if the database was new, or had this build's schema.
func (s *Store) Upgrade() *Upgrade { return s.upgrade }

// SchemaVersion returns the schema of this build.
func SchemaVersion() (int64, error) {
	p, err := provider(new(sql.DB)) // only its list of migrations is used
	if err != nil {
		return 0, err
	}
	known := knownMigrations(p)
	return known[len(known)-1], nil
}

// IsUpgradeCopy reports whether the file of that name is a copy that an upgrade of the database left.
func IsUpgradeCopy(database, name string) bool { return strings.HasPrefix(name, database+copyInfix) }

func provider(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	// Out of order: migration 15 was added after 16 and 19, so some databases have those and lack
	// it.
	return goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithAllowOutofOrder(true), goose.WithGoMigrations(
		goose.NewGoMigration(8, &goose.GoFunc{RunTx: buildLog}, &goose.GoFunc{RunTx: dropLog})))
}

// migrate applies the migrations that the database lacks. It copies a database that has some before it applies the others.
func migrate(ctx context.Context, db *sql.DB, path string) (*Upgrade, error) {
	p, err := provider(db)
	if err != nil {
		return nil, err
	}
	applied, err := appliedMigrations(ctx, db)
	if err != nil {
		return nil, err
	}
	known := knownMigrations(p)
	var up *Upgrade
	switch {
	case len(applied) == 0:
		if err := createSchema(ctx, db, p); err != nil {
			return nil, fmt.Errorf("making the tables of a new database: %w", err)
		}
	case len(applied) < len(known):
		up = &Upgrade{To: known[len(known)-1]}
		up.Copy = copyPath(path, up.To)
		if up.From, err = copyBefore(ctx, db, up.Copy, applied); err != nil {
			return nil, watchword.Wrap(err, watchword.Unavailable, "the database was not upgraded: a copy of it cannot be written to %s", up.Copy)
		}
	}
	if _, err := p.Up(ctx); err != nil {
		if up != nil {
			err = fmt.Errorf("%w; %s is a copy of the database before the upgrade", err, up.Copy)
		}
		return nil, fmt.Errorf("bringing the tables up to date: %w", err)
	}
	if up == nil {
		return nil, nil
	}
	up.Others = removeOtherCopies(path, up.Copy)
	return up, nil
}

func knownMigrations(p *goose.Provider) (versions []int64) {
	for _, s := range p.ListSources() {
		versions = append(versions, s.Version)
	}
	slices.Sort(versions)
	return versions
}

// queryRower is a database, or one connection to it.
type queryRower interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// appliedMigrations returns the migrations that a database has, in ascending order; none for an empty one.
func appliedMigrations(ctx context.Context, db queryRower) (versions []int64, err error) {
	rs, err := db.QueryContext(ctx, `SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'goose_db_version'`)
	if err != nil {
		return nil, err
	}
	exists := rs.Next()
	if err := errors.Join(rs.Err(), rs.Close()); err != nil || !exists {
		return nil, err
	}
	if rs, err = db.QueryContext(ctx, `SELECT DISTINCT version_id FROM goose_db_version WHERE version_id > 0 AND is_applied ORDER BY version_id`); err != nil {
		return nil, err
	}
	for rs.Next() {
		var v int64
		if err := rs.Scan(&v); err != nil {
			return nil, errors.Join(err, rs.Close())
		}
		versions = append(versions, v)
	}
	return versions, errors.Join(rs.Err(), rs.Close())
}

// checkSchemaOf is checkSchema for the file at path, before anything is written to it.
func checkSchemaOf(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", dsn(path, "ro", "busy_timeout(5000)", "query_only(1)"))
	if err != nil {
		return err
	}
	return errors.Join(checkSchema(ctx, db, path), db.Close())
}

// checkSchema refuses a database with a migration that this build does not have: it does not know what the tables mean, and
// what it wrote there the newer build would misread. Codes: folder_newer, unavailable.
func checkSchema(ctx context.Context, db queryRower, path string) error {
	p, err := provider(new(sql.DB)) // only its list of migrations is used
	if err != nil {
		return err
	}
	applied, err := appliedMigrations(ctx, db)
	if err != nil {
		return unavailable(err)
	}
	known := knownMigrations(p)
	for _, v := range slices.Backward(applied) {
		if slices.Contains(known, v) {
			continue
		}
		back := "restore a backup from before the upgrade"
		if c := copyPath(path, v); exists(c) {
			back = "go back to " + c + ", the copy from before the upgrade"
		}
		return watchword.Refuse(watchword.FolderNewer, "the data folder %s has schema %d, of another build, and this build has schema %d: run the build that upgraded the folder, or %s", filepath.Dir(path), v, known[len(known)-1], back)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

const copyInfix = ".before-"

// copyPath returns the path of the copy that is made before an upgrade to a schema.
func copyPath(path string, to int64) string { return fmt.Sprintf("%s%s%04d", path, copyInfix, to) }

// copyBefore copies the database to a file and returns the schema of the copy. A copy with fewer migrations than the database
// remains: an earlier start made it and was cut off between two migrations.
func copyBefore(ctx context.Context, db *sql.DB, to string, applied []int64) (schema int64, err error) {
	if exists(to) {
		before, err := migrationsOf(ctx, to)
		if err != nil {
			return 0, err
		}
		if n := len(before); n > 0 && n < len(applied) {
			return before[n-1], nil
		}
	}
	tmp := to + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if err = durable.Create(tmp, nil, 0o600); err == nil { // SQLite would make a file that others can read
		err = copyTo(ctx, db, tmp)
	}
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(to))
	}
	if err != nil {
		_ = os.Remove(tmp) // the first error is the one to report
		return 0, err
	}
	return applied[len(applied)-1], nil
}

func migrationsOf(ctx context.Context, path string) ([]int64, error) {
	db, err := sql.Open("sqlite", dsn(path, "ro", "query_only(1)")+"&immutable=1") // leaves no file beside it
	if err != nil {
		return nil, err
	}
	versions, err := appliedMigrations(ctx, db)
	return versions, errors.Join(err, db.Close())
}

// copyTo writes the database to a file page by page (sqlite3_backup).
func copyTo(ctx context.Context, db *sql.DB, path string) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	err = conn.Raw(func(c any) error {
		from, ok := c.(interface {
			NewBackup(uri string) (*driver.Backup, error)
		})
		if !ok {
			return fmt.Errorf("%T copies no database", c)
		}
		b, err := from.NewBackup(dsn(path, "rw", "synchronous(FULL)"))
		if err != nil {
			return err
		}
		_, err = b.Step(-1) // all pages
		return errors.Join(err, b.Finish())
	})
	return errors.Join(err, conn.Close())
}

// removeOtherCopies removes the copies of earlier upgrades, which are as large as the database.
func removeOtherCopies(path, keep string) error {
	found, err := filepath.Glob(globLiteral(path) + copyInfix + "*")
	for _, f := range found {
		if f != keep {
			err = errors.Join(err, os.Remove(f))
		}
	}
	return err
}

// globLiteral quotes the characters of a path that are special in a pattern.
func globLiteral(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
