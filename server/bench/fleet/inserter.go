package main

import (
	"context"
	"database/sql"
	"errors"
	"strings"
)

// inserter inserts rows in one transaction. After an error it does nothing more.
type inserter struct {
	ctx   context.Context
	tx    *sql.Tx
	stmts map[string]*sql.Stmt // by table
	err   error
}

func inTransaction(ctx context.Context, db *sql.DB, f func(*inserter) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(&inserter{ctx: ctx, tx: tx, stmts: map[string]*sql.Stmt{}}); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func (t *inserter) insert(table, columns string, values ...any) {
	if t.err != nil {
		return
	}
	st := t.stmts[table]
	if st == nil {
		if st, t.err = t.tx.PrepareContext(t.ctx, `INSERT INTO `+table+` (`+columns+`) VALUES (?`+strings.Repeat(`, ?`, len(values)-1)+`)`); t.err != nil {
			return
		}
		t.stmts[table] = st // closed with the transaction
	}
	_, t.err = st.ExecContext(t.ctx, values...)
}
