package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// writer owns the connection that writes. Steps that arrive together share a commit, each under its
// own savepoint: one fsync carries up to maxGroup steps, and a refused step rolls back alone. No
// step is answered before the commit.
type writer struct {
	db       *sql.DB
	conn     *sql.Conn
	tx       tx
	maxGroup int

	// runTwice makes each step run twice: it runs, is rolled back, and runs again, as in a store that
	// repeats a transaction. For tests.
	runTwice bool

	written func(took time.Duration) // may be nil

	jobs    chan *job // unbuffered: a job that the writer has not accepted waits, bounded by its context
	closing chan struct{}
	once    sync.Once
	ended   chan struct{}
}

type job struct {
	step             func(*tx) error
	withoutSavepoint bool // the step writes nothing before it refuses
	err              error
	done             chan struct{}
}

// tx is the open transaction while a step runs.
type tx struct {
	conn     *sql.Conn
	stmts    map[string]*sql.Stmt // statements by their text, which is constant
	consumed *consumedAssertions
	merkle   *merkleLog
	versions watchword.AuthorityVersions // versions that the step was compared with
	counts   *readCounts
}

func (t *tx) reads() *readCounts { return t.counts }

// memorySavepoint is how much the open transaction has added to the data in memory.
type memorySavepoint struct{ consumed, log int }

func (t *tx) memorySavepoint() memorySavepoint {
	return memorySavepoint{len(t.consumed.added), len(t.merkle.added)}
}

// rollbackMemory removes what was added to memory since the savepoint.
func (t *tx) rollbackMemory(to memorySavepoint) {
	t.consumed.undo(to.consumed)
	t.merkle.undo(to.log)
}

func newWriter(ctx context.Context, db *sql.DB, o Options, counts *readCounts) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{
		db: db, conn: conn, maxGroup: o.MaxGroup, written: o.Written, tx: tx{conn: conn, counts: counts, stmts: map[string]*sql.Stmt{}, consumed: newConsumedAssertions(), merkle: newLog(o.WithoutAuditLog)},
		jobs: make(chan *job), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	if err := errors.Join(w.tx.consumed.load(ctx, &w.tx, o.Now()), w.tx.merkle.load(ctx, &w.tx)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go w.run()
	return w, nil
}

// do runs a step in a transaction. It returns when the step is durable, or was refused without
// effect. A caller that gives up before its step begins leaves no effect; after that do waits for
// the result whatever its context says.
func (w *writer) do(ctx context.Context, step func(*tx) error) error {
	return w.submit(ctx, &job{step: step, done: make(chan struct{})})
}

// doWithoutSavepoint is do for a step that writes nothing before it refuses, so that it needs no
// savepoint. Any other error ends the whole group.
func (w *writer) doWithoutSavepoint(ctx context.Context, step func(*tx) error) error {
	return w.submit(ctx, &job{step: step, withoutSavepoint: true, done: make(chan struct{})})
}

func (w *writer) submit(ctx context.Context, j *job) error {
	if w.runTwice {
		j.step = runTwice(j.step)
	}
	if w.written != nil {
		began := time.Now()
		defer func() { w.written(time.Since(began)) }()
	}
	select {
	case w.jobs <- j:
	case <-ctx.Done():
		return watchword.Wrap(ctx.Err(), watchword.Unavailable, "the store is busy")
	case <-w.closing:
		return watchword.Refuse(watchword.Unavailable, "the store is closed")
	}
	<-j.done
	return j.err
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		select {
		case j := <-w.jobs:
			w.commit(j)
		case <-w.closing:
			return
		}
	}
}

// commit runs first and all waiting steps, and commits them together.
func (w *writer) commit(first *job) {
	if err := w.tx.control("BEGIN IMMEDIATE"); err != nil {
		first.err = unavailable(err)
		close(first.done)
		return
	}
	// The first step needs no savepoint: if it is refused, the transaction is rolled back.
	w.tx.consumed.added, w.tx.merkle.added = w.tx.consumed.added[:0], w.tx.merkle.added[:0]
	if first.err = unavailable(first.step(&w.tx)); first.err != nil {
		w.tx.rollbackMemory(memorySavepoint{})
		_ = w.tx.control("ROLLBACK") // the error adds nothing to the first one
		close(first.done)
		return
	}
	taken := []*job{first}
	broken := error(nil)
	for j := w.nextWaiting(len(taken)); j != nil; j = w.nextWaiting(len(taken)) {
		taken = append(taken, j)
		if j.err, broken = w.tx.runInSavepoint(j); broken != nil {
			break
		}
	}
	var grown audit.Edge
	if broken == nil {
		grown, broken = w.tx.merkle.grow(w.tx.exec)
	}
	if broken == nil {
		broken = w.tx.control("COMMIT")
	}
	if broken == nil {
		w.tx.merkle.commit(grown)
	} else {
		w.tx.rollbackMemory(memorySavepoint{})
		// The error of the rollback adds nothing: SQLite may have rolled back by itself (disk
		// full).
		_ = w.tx.control("ROLLBACK")
	}
	for _, j := range taken {
		if broken != nil && j.err == nil {
			j.err = unavailable(broken)
		}
		close(j.done)
	}
}

// nextWaiting returns the next waiting step, if the group has room.
func (w *writer) nextWaiting(taken int) *job {
	if taken >= w.maxGroup {
		return nil
	}
	for range groupYields {
		select {
		case j := <-w.jobs:
			return j
		default:
			// Goroutines that are about to submit a step run first: on a busy server one commit
			// then carries many steps, on an idle one nothing is delayed.
			runtime.Gosched()
		}
	}
	return nil
}

// groupYields is how often a commit yields to other goroutines before it closes.
const groupYields = 3

// runInSavepoint runs one step under a savepoint. broken means that the transaction cannot continue.
func (t *tx) runInSavepoint(j *job) (err, broken error) {
	before := t.memorySavepoint()
	if j.withoutSavepoint {
		if err = j.step(t); err != nil {
			t.rollbackMemory(before)
			if _, refusal := errors.AsType[*watchword.Error](err); !refusal {
				broken = err
			}
		}
		return unavailable(err), broken
	}
	if broken := t.control("SAVEPOINT step"); broken != nil {
		return nil, broken
	}
	if err := j.step(t); err != nil {
		t.rollbackMemory(before)
		if broken := t.control("ROLLBACK TO step"); broken != nil {
			return unavailable(err), broken
		}
		return unavailable(err), t.control("RELEASE step")
	}
	return nil, t.control("RELEASE step")
}

// runTwice returns a step that runs, is rolled back, and runs again.
func runTwice(step func(*tx) error) func(*tx) error {
	return func(t *tx) error {
		before := t.memorySavepoint()
		if err := t.control("SAVEPOINT twice"); err != nil {
			return err
		}
		_ = step(t) // what it says is what the second run says, or a test fails
		t.rollbackMemory(before)
		if err := errors.Join(t.control("ROLLBACK TO twice"), t.control("RELEASE twice")); err != nil {
			return err
		}
		return step(t)
	}
}

func (w *writer) close() error {
	w.once.Do(func() { close(w.closing) })
	<-w.ended
	var errs []error
	for _, st := range w.tx.stmts {
		errs = append(errs, st.Close())
	}
	w.tx.stmts = nil
	if err := w.conn.Close(); !errors.Is(err, sql.ErrConnDone) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, w.db.Close())...)
}

// stmt prepares a statement, once. Statements of a step do not use the context of its caller: an interrupt in the middle would end the
// whole group.
func (t *tx) stmt(q string) (*sql.Stmt, error) {
	st := t.stmts[q]
	if st == nil {
		var err error
		if st, err = t.conn.PrepareContext(context.Background(), q); err != nil {
			return nil, fmt.Errorf("preparing %q: %w", q, err)
		}
		t.stmts[q] = st
	}
	return st, nil
}

func (t *tx) control(q string) error {
	_, err := t.exec(q)
	return err
}

// exec runs a constant statement and returns the number of changed rows.
func (t *tx) exec(q string, args ...any) (int64, error) {
	st, err := t.stmt(q)
	if err != nil {
		return 0, err
	}
	r, err := st.Exec(args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *tx) query(_ context.Context, q string, args ...any) (*sql.Rows, error) {
	st, err := t.stmt(q)
	if err != nil {
		return nil, err
	}
	return st.Query(args...)
}

// withSecureDelete runs statements with secure_delete, so that SQLite overwrites what they replace
// or delete in the file.
func (t *tx) withSecureDelete(do func() error) (err error) {
	set := func(pragma string) error { // not through tx.exec: the pragma takes effect when it is prepared, and must do so each time
		_, err := t.conn.ExecContext(context.Background(), pragma)
		return err
	}
	if err := set(`PRAGMA secure_delete = ON`); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set(`PRAGMA secure_delete = OFF`)) }()
	return do()
}
