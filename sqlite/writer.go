package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/watchword-iot/watchword"
)

// writer is the one connection that writes. Steps that arrive together share a
// commit, each under its own savepoint, so that one fsync carries up to group of
// them and a step that is refused takes nothing else with it. Nobody gets an
// answer before the commit.
type writer struct {
	db       *sql.DB
	conn     *sql.Conn
	tx       tx
	maxGroup int

	jobs    chan *job // unbuffered: who is not taken waits at the door, with its context
	closing chan struct{}
	once    sync.Once
	ended   chan struct{}
}

type job struct {
	step             func(*tx) error
	withoutSavepoint bool // what it refuses, it refuses before it writes
	err              error
	done             chan struct{}
}

// tx is the transaction that is open while a step runs.
type tx struct {
	conn     *sql.Conn
	stmts    map[string]*sql.Stmt // by their text, which is constant
	consumed *consumedAssertions
	merkle   *merkleLog
	versions watchword.AuthorityVersions // what the step that runs was compared with
}

// memoryMark is how much the open transaction has added to what lies in memory.
type memoryMark struct{ consumed, log int }

func (t *tx) mark() memoryMark { return memoryMark{len(t.consumed.added), len(t.merkle.added)} }

// undo takes back what was added since.
func (t *tx) undo(to memoryMark) {
	t.consumed.undo(to.consumed)
	t.merkle.undo(to.log)
}

func newWriter(ctx context.Context, db *sql.DB, o Options) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{
		db: db, conn: conn, maxGroup: o.MaxGroup, tx: tx{conn: conn, stmts: map[string]*sql.Stmt{}, consumed: newConsumedAssertions(), merkle: newLog(o.WithoutAuditLog)},
		jobs: make(chan *job), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	if err := errors.Join(w.tx.consumed.load(ctx, &w.tx), w.tx.merkle.load(ctx, &w.tx)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go w.run()
	return w, nil
}

// do runs a step in a transaction and returns when it is on the disk, or when it
// was refused and left nothing. A caller that gives up before its step began
// leaves nothing either; after that it gets the answer, whatever its context says.
func (w *writer) do(ctx context.Context, step func(*tx) error) error {
	return w.submit(ctx, &job{step: step, done: make(chan struct{})})
}

// doWithoutSavepoint is do for a step that writes nothing before it refuses: it needs no
// savepoint among others. Any other error of it ends the whole group.
func (w *writer) doWithoutSavepoint(ctx context.Context, step func(*tx) error) error {
	return w.submit(ctx, &job{step: step, withoutSavepoint: true, done: make(chan struct{})})
}

func (w *writer) submit(ctx context.Context, j *job) error {
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

// commit runs first and whoever else is waiting, and commits them together.
func (w *writer) commit(first *job) {
	if err := w.tx.control("BEGIN IMMEDIATE"); err != nil {
		first.err = unavailable(err)
		close(first.done)
		return
	}
	// With nothing before it, a step that is refused takes the transaction along, and
	// needs no savepoint.
	w.tx.consumed.added, w.tx.merkle.added = w.tx.consumed.added[:0], w.tx.merkle.added[:0]
	if first.err = unavailable(first.step(&w.tx)); first.err != nil {
		w.tx.undo(memoryMark{})
		_ = w.tx.control("ROLLBACK") // its own error says no more
		close(first.done)
		return
	}
	taken := []*job{first}
	broken := error(nil)
	for j := w.nextWaiting(len(taken)); j != nil; j = w.nextWaiting(len(taken)) {
		taken = append(taken, j)
		if j.err, broken = w.tx.attempt(j); broken != nil {
			break
		}
	}
	var grown treeEdge
	if broken == nil {
		grown, broken = w.tx.merkle.grow(w.tx.exec)
	}
	if broken == nil {
		broken = w.tx.control("COMMIT")
	}
	if broken == nil {
		w.tx.merkle.commit(grown)
	} else {
		w.tx.undo(memoryMark{})
		// The rollback's own error says no more: SQLite may have rolled back by itself (disk full).
		_ = w.tx.control("ROLLBACK")
	}
	for _, j := range taken {
		if broken != nil && j.err == nil {
			j.err = unavailable(broken)
		}
		close(j.done)
	}
}

// nextWaiting returns the next step that is waiting already, if the group has room.
func (w *writer) nextWaiting(taken int) *job {
	if taken >= w.maxGroup {
		return nil
	}
	for range groupYields {
		select {
		case j := <-w.jobs:
			return j
		default:
			// Who is about to ask for a step does so first: on a busy server one commit then
			// carries many, on an idle one nobody waits.
			runtime.Gosched()
		}
	}
	return nil
}

// groupYields is how often a commit lets others go first before it closes.
const groupYields = 3

// attempt runs one step under a savepoint. broken means that the transaction
// itself cannot go on.
func (t *tx) attempt(j *job) (err, broken error) {
	before := t.mark()
	if j.withoutSavepoint {
		if err = j.step(t); err != nil {
			t.undo(before)
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
		t.undo(before)
		if broken := t.control("ROLLBACK TO step"); broken != nil {
			return unavailable(err), broken
		}
		return unavailable(err), t.control("RELEASE step")
	}
	return nil, t.control("RELEASE step")
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

// The statements of a step do not follow its caller's context: an interrupt in
// the middle would end the whole group.
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

// exec runs a statement whose text is constant and returns how many rows it changed.
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

// withSecureDelete runs statements after which nothing of what they replace or delete is to
// be found in the file: what SQLite frees it does not overwrite unless told.
func (t *tx) withSecureDelete(do func() error) (err error) {
	set := func(pragma string) error { // not by tx.exec: it takes effect when it is prepared, and is to do so each time
		_, err := t.conn.ExecContext(context.Background(), pragma)
		return err
	}
	if err := set(`PRAGMA secure_delete = ON`); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set(`PRAGMA secure_delete = OFF`)) }()
	return do()
}
