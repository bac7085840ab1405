package sqlite

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

// newDatabase is the script that makes the tables of a new database at once: what the migrations up to the number in its
// first line make one after the other. A test compares the two, and writes the script.
//
//go:embed schema.sql
var newDatabase string

const newDatabaseTitle = "-- The schema after migration "

// createSchema makes the tables of an empty database in one transaction, and records the migrations that they stand for.
// Migrations that are newer than the script remain for goose, and so does a database that has tables already.
func createSchema(ctx context.Context, db *sql.DB, p *goose.Provider) error {
	var tables int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&tables); err != nil || tables > 0 {
		return err
	}
	last, err := newDatabaseVersion()
	if err != nil {
		return err
	}
	versions, err := database.NewStore(goose.DialectSQLite3, goose.DefaultTablename)
	if err != nil {
		return err
	}
	t, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	err = versions.CreateVersionTable(ctx, t)
	for _, v := range append([]int64{0}, knownMigrations(p)...) { // goose's own first row is 0
		if err == nil && v <= last {
			err = versions.Insert(ctx, t, database.InsertRequest{Version: v})
		}
	}
	if err == nil {
		_, err = t.ExecContext(ctx, newDatabase)
	}
	if err != nil {
		return errors.Join(err, t.Rollback())
	}
	return t.Commit()
}

// newDatabaseVersion returns the newest migration that the script covers.
func newDatabaseVersion() (int64, error) {
	title, _, _ := strings.Cut(newDatabase, "\n")
	n, ok := strings.CutPrefix(title, newDatabaseTitle)
	n, _, _ = strings.Cut(n, ",")
	if !ok {
		return 0, fmt.Errorf("schema.sql begins with %q and not with %q", title, newDatabaseTitle)
	}
	return strconv.ParseInt(n, 10, 64)
}
