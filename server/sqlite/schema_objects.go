package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/watchword-iot/watchword"
)

// object is one row of sqlite_schema: a table, an index or a trigger with the statement that made it.
type object struct{ kind, name, table, sql string }

func (o object) String() string { return fmt.Sprintf("%.20s %.60q", o.kind, o.name) }

// maxObjects is the most tables, indexes and triggers that are read from a file: ten times those of this build.
const maxObjects = 2000

// statistics are the tables that ANALYZE makes, which change no result.
var statistics = []object{
	{"table", "sqlite_stat1", "sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"},
	{"table", "sqlite_stat4", "sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"},
}

// checkObjects refuses a database with a table, view, index or trigger that its migrations did not make, before anything else is read
// from it. The file may come from elsewhere (a backup, an old data folder, a folder whose log is verified): a view or a generated column in
// the place of a table may compute without end, or take all memory, at the first query. It reads sqlite_schema, which is always a table,
// and goose_db_version, once its text was compared. Codes: log_invalid; folder_newer, by checkSchema.
func checkObjects(ctx context.Context, db queryRower, path string) error {
	found, err := readObjects(ctx, db)
	if err != nil {
		return err
	}
	own, err := versionObjects()
	if err != nil {
		return err
	}
	if o, lacks := firstOf(own, found); lacks {
		return watchword.Refuse(watchword.LogInvalid, "%s is not a database of this product: it lacks the %s, or has another one", path, o)
	}
	if err := checkSchema(ctx, db, path); err != nil {
		return err
	}
	applied, err := appliedMigrations(ctx, db)
	if err != nil {
		return err
	}
	expected, err := objectsOf(ctx, applied)
	if err != nil {
		return err
	}
	if sameObjects(found, expected) {
		return nil
	}
	// A build may have added a migration with a lower number than those that the file has: then the columns of a table may be in the
	// order in which they came.
	order, err := migrationOrder(ctx, db, len(applied))
	if err != nil {
		return err
	}
	if len(order) == len(applied) {
		if expected, err = expectedObjects(ctx, order); err != nil {
			return watchword.Wrap(err, watchword.LogInvalid, "%s names migrations in an order in which no build applies them", path)
		}
	}
	if o, extra := firstOf(found, slices.Concat(expected, statistics)); extra {
		return watchword.Refuse(watchword.LogInvalid, "%s has the %s, which no build makes: if it was added by hand, remove it; otherwise the file was made to do harm", path, o)
	}
	if o, lacks := firstOf(expected, found); lacks {
		return watchword.Refuse(watchword.LogInvalid, "%s lacks the %s, which each build makes", path, o)
	}
	return nil
}

// firstOf returns the first object that is not among others.
func firstOf(objects, others []object) (object, bool) {
	i := slices.IndexFunc(objects, func(o object) bool { return !slices.Contains(others, o) })
	if i < 0 {
		return object{}, false
	}
	return objects[i], true
}

func sameObjects(found, expected []object) bool {
	_, extra := firstOf(found, slices.Concat(expected, statistics))
	_, lacks := firstOf(expected, found)
	return !extra && !lacks
}

// migrationOrder returns the migrations of a file in the order in which they were applied, and one more than n at most.
func migrationOrder(ctx context.Context, db queryRower, n int) (out []int64, err error) {
	rs, err := db.QueryContext(ctx, `SELECT version_id FROM goose_db_version WHERE version_id > 0 AND is_applied ORDER BY id LIMIT ?`, n+1)
	if err != nil {
		return nil, err
	}
	for rs.Next() {
		var v int64
		if err := rs.Scan(&v); err != nil {
			return nil, errors.Join(err, rs.Close())
		}
		out = append(out, v)
	}
	return out, errors.Join(rs.Err(), rs.Close())
}

func readObjects(ctx context.Context, db queryRower) (out []object, err error) {
	rs, err := db.QueryContext(ctx, `SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema LIMIT ?`, maxObjects)
	if err != nil {
		return nil, err
	}
	for rs.Next() {
		var o object
		if err := rs.Scan(&o.kind, &o.name, &o.table, &o.sql); err != nil {
			return nil, errors.Join(err, rs.Close())
		}
		out = append(out, o)
	}
	return out, errors.Join(rs.Err(), rs.Close())
}

// versionObjects are those of an empty database: the table that lists the migrations.
var versionObjects = sync.OnceValues(func() ([]object, error) { return expectedObjects(context.Background(), nil) })

// objectsOfBuild are the objects of a database of this build.
var objectsOfBuild = sync.OnceValues(func() ([]object, error) {
	p, err := provider(new(sql.DB)) // only its list of migrations is used
	if err != nil {
		return nil, err
	}
	return expectedObjects(context.Background(), knownMigrations(p))
})

// objectsOf returns what migrations, in ascending order, make.
func objectsOf(ctx context.Context, applied []int64) ([]object, error) {
	p, err := provider(new(sql.DB))
	if err != nil {
		return nil, err
	}
	if slices.Equal(applied, knownMigrations(p)) { // a running server reads its own file each time that the log grows
		return objectsOfBuild()
	}
	return expectedObjects(ctx, applied)
}

// expectedObjects applies migrations, in their order, to an empty database in memory.
func expectedObjects(ctx context.Context, versions []int64) (out []object, err error) {
	db, err := sql.Open("sqlite", "file::memory:")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // each connection has a database of its own
	defer func() { err = errors.Join(err, db.Close()) }()
	p, err := provider(db)
	if err != nil {
		return nil, err
	}
	if _, err := p.GetDBVersion(ctx); err != nil { // makes goose's table
		return nil, err
	}
	for _, v := range versions {
		if _, err := p.ApplyVersion(ctx, v, true); err != nil {
			return nil, fmt.Errorf("migration %d on an empty database: %w", v, err)
		}
	}
	return readObjects(ctx, db)
}
