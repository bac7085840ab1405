package audit

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Log is what a keeper needs of the cellar.
type Log interface {
	// Number gives each entry that is committed its number.
	Number(ctx context.Context) error
	Tree(ctx context.Context) (ledger.Tree, error)
	Tile(ctx context.Context, level int, n int64, width int) ([]byte, error)
	Commits(ctx context.Context, after int64, limit int) ([]ledger.Hash, error)
	Records(ctx context.Context, after int64, limit int) ([]Record, error)
	AddCheckpoint(ctx context.Context, c Signed) error
	LastCheckpoint(ctx context.Context) (Signed, error)
}

// Keys is the log's keys as they stand at this moment.
type Keys interface {
	LogSigner() ledger.Signer
	// LogKeys is every key that a checkpoint of ours may be signed with, also those that sign no more.
	LogKeys() []ledger.Key
}

// KeeperOptions is what a keeper needs to know beside the store and the keys.
type KeeperOptions struct {
	Every     time.Duration // between checkpoints, while there is something new; 0 means 1 s
	Witnesses []*Witness
	Quorum    int // how many of them must have signed what Cosigned returns
	// Kept is a checkpoint that was kept outside the store, or nil: the log must extend it too.
	Kept []byte
	// Grown, if not nil, is told of each checkpoint that is published. It must not wait.
	Grown func(note []byte)
	Now   func() time.Time
	Log   *slog.Logger
}

// Keeper signs the log's checkpoints. It never signs one that does not follow from
// the last. Make one with [NewKeeper], and run it. It is safe for concurrent use.
type Keeper struct {
	log  Log
	keys Keys
	o    KeeperOptions

	mu   sync.Mutex // held over a step
	last atomic.Pointer[published]
	sure atomic.Pointer[published] // the last with a quorum of cosignatures
	soon chan struct{}

	wait struct {
		sync.Mutex
		grown chan struct{} // closed, and replaced, with each checkpoint
	}
}

// published is the checkpoint of this moment.
type published struct {
	ledger.Checkpoint
	note []byte
}

// NewKeeper returns the keeper of a log, and holds the log against its last
// checkpoint: one that does not extend it is not gone on with. Code: log_invalid.
func NewKeeper(ctx context.Context, log Log, keys Keys, o KeeperOptions) (*Keeper, error) {
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	k := &Keeper{log: log, keys: keys, o: o, soon: make(chan struct{}, 1)}
	k.wait.grown = make(chan struct{})
	last, err := log.LastCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	for _, note := range [][]byte{o.Kept, last.Note} {
		if note == nil {
			continue
		}
		c, err := k.extends(ctx, note)
		if err != nil {
			return nil, err
		}
		k.publish(c, note) // of the two the store's is the later one, as a rule
	}
	return k, nil
}

// extends checks that the log as it stands goes on from a checkpoint of ours.
func (k *Keeper) extends(ctx context.Context, note []byte) (ledger.Checkpoint, error) {
	o, err := ledger.Open(note, k.keys.LogKeys()...)
	if err != nil {
		return o.Checkpoint, err
	}
	c := o.Checkpoint
	tree, err := k.log.Tree(ctx)
	if err != nil {
		return c, err
	}
	if tree.Size() < c.Size {
		return c, watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and its last checkpoint speaks of %d: some were taken away", tree.Size(), c.Size)
	}
	then, err := ledger.At(c.Size, k.Read(ctx))
	if err != nil {
		return c, err
	}
	if then.Root() != c.Root {
		return c, watchword.Refuse(watchword.LogInvalid, "the log's entries up to %d are not those of its last checkpoint: something was changed", c.Size)
	}
	return c, nil
}

// publish makes a checkpoint that of this moment.
func (k *Keeper) publish(c ledger.Checkpoint, note []byte) {
	p := &published{c, note}
	if last := k.last.Load(); last != nil && last.Size > c.Size {
		return
	}
	k.last.Store(p)
	keys := k.keys.LogKeys()
	for _, w := range k.o.Witnesses {
		keys = append(keys, w.Key)
	}
	o, err := ledger.Open(note, keys...)
	if err != nil {
		k.o.Log.Error("a checkpoint of ours does not open", slog.Any("err", err))
	} else if len(o.Cosignatures) >= k.o.Quorum {
		k.sure.Store(p)
	}
}

// LastStep bounds the checkpoint that [Keeper.Run] signs at its end: a store or a witness that
// does not answer holds up no stop of the server.
const LastStep = 5 * time.Second

// Run signs a checkpoint each while, or when somebody waits for one, until ctx ends;
// then, within [LastStep], one of all that was written before ctx ended. It returns an error
// where that one could not be signed: the next start signs it.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(k.o.Every)
	defer tick.Stop()
	k.hurry() // the start itself is in the log
	for {
		select {
		case <-tick.C:
		case <-k.soon:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), LastStep)
			defer cancel()
			if err := k.step(last); err != nil {
				return watchword.Because(err, watchword.CodeOf(err), "the last entries of the log are not signed before the next start")
			}
			return nil
		}
		if err := k.step(ctx); err != nil && ctx.Err() == nil {
			k.o.Log.ErrorContext(ctx, "no checkpoint of the log", slog.Any("err", err))
		}
	}
}

// step publishes a checkpoint if there is something new.
func (k *Keeper) step(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.log.Number(ctx); err != nil {
		return err
	}
	tree, err := k.log.Tree(ctx)
	if err != nil {
		return err
	}
	s := k.keys.LogSigner()
	last := k.last.Load()
	c, note := ledger.Checkpoint{Origin: s.Name(), Size: tree.Size(), Root: tree.Root()}, []byte(nil)
	switch {
	case tree.Size() == 0:
		return nil
	case last != nil && last.Size == tree.Size():
		if k.sure.Load() == last {
			return nil
		}
		// Nothing is new, but somebody may wait for witnesses that were away.
		if note = k.witness(ctx, c, last.note); len(note) == len(last.note) {
			return nil
		}
	default:
		if note, err = c.Sign(s); err != nil {
			return err
		}
		note = k.witness(ctx, c, note)
	}
	// Kept before anybody sees it: what a reader remembers is remembered here.
	if err := k.log.AddCheckpoint(ctx, Signed{Size: c.Size, Note: note, At: k.o.Now()}); err != nil {
		return err
	}
	k.publish(c, note)
	k.wait.Lock()
	close(k.wait.grown)
	k.wait.grown = make(chan struct{})
	k.wait.Unlock()
	if k.o.Grown != nil {
		k.o.Grown(note)
	}
	return nil
}

// Checkpoint returns the last signed checkpoint. Code: unavailable before the first.
func (k *Keeper) Checkpoint() (c ledger.Checkpoint, note []byte, err error) {
	p := k.last.Load()
	if p == nil {
		return c, nil, watchword.Refuse(watchword.Unavailable, "the log has no checkpoint yet")
	}
	return p.Checkpoint, p.note, nil
}

// Grown is closed when the next checkpoint is there.
func (k *Keeper) Grown() <-chan struct{} {
	k.wait.Lock()
	defer k.wait.Unlock()
	return k.wait.grown
}

// Cover returns a signed checkpoint of a log that has an entry of that number; it
// waits for one. Code: timed_out where ctx ends before, not_found for a number that
// no entry has.
func (k *Keeper) Cover(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error) {
	return k.cover(ctx, seq, &k.last)
}

// CoverSure is Cover for a checkpoint that a quorum of witnesses has signed.
func (k *Keeper) CoverSure(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error) {
	return k.cover(ctx, seq, &k.sure)
}

func (k *Keeper) cover(ctx context.Context, seq int64, of *atomic.Pointer[published]) (c ledger.Checkpoint, note []byte, err error) {
	for {
		grown := k.Grown()
		if p := of.Load(); p != nil && p.Size >= seq {
			return p.Checkpoint, p.note, nil
		}
		if tree, err := k.log.Tree(ctx); err == nil && seq > tree.Size() || seq < 1 {
			return c, nil, watchword.Refuse(watchword.NotFound, "entry %d not found", seq)
		}
		k.hurry()
		select {
		case <-grown:
		case <-ctx.Done():
			return c, nil, watchword.Because(ctx.Err(), watchword.TimedOut, "the log's checkpoint did not come in time")
		}
	}
}

// Now returns a signed checkpoint of everything that is in the log by now. Code:
// timed_out.
func (k *Keeper) Now(ctx context.Context) (c ledger.Checkpoint, note []byte, err error) {
	tree, err := k.log.Tree(ctx)
	if err != nil {
		return c, nil, err
	}
	return k.Cover(ctx, tree.Size())
}

// hurry asks for a checkpoint now.
func (k *Keeper) hurry() {
	select {
	case k.soon <- struct{}{}:
	default:
	}
}

// Cosigned returns the last checkpoint that a quorum of witnesses has signed, if it
// has the entry of that number; if not, the next one is signed soon.
func (k *Keeper) Cosigned(seq int64) (c ledger.Checkpoint, note []byte, ok bool) {
	if p := k.sure.Load(); p != nil && p.Size >= seq {
		return p.Checkpoint, p.note, true
	}
	k.hurry()
	return c, nil, false
}

// Read reads the log's tiles.
func (k *Keeper) Read(ctx context.Context) ledger.Read {
	return func(level int, n int64, width int) ([]byte, error) { return k.log.Tile(ctx, level, n, width) }
}

// Prove returns the proof that the entry of that number is in the log, with the
// entry. Codes: not_found, timed_out, log_invalid.
func (k *Keeper) Prove(ctx context.Context, seq int64) (ledger.Proof, error) {
	c, note, err := k.Cover(ctx, seq)
	if err != nil {
		return ledger.Proof{}, err
	}
	return k.ProveIn(ctx, c, note, seq)
}

// ProveIn is Prove for a checkpoint that has the entry.
func (k *Keeper) ProveIn(ctx context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error) {
	rs, err := k.log.Records(ctx, seq-1, 1)
	if err != nil {
		return ledger.Proof{}, err
	}
	if len(rs) == 0 || rs[0].Seq != seq {
		return ledger.Proof{}, watchword.Refuse(watchword.LogInvalid, "entry %d is not there", seq)
	}
	if _, err := rs[0].Entry(); err != nil {
		return ledger.Proof{}, err
	}
	hs, err := ledger.Prove(c, seq-1, k.Read(ctx))
	if err != nil {
		return ledger.Proof{}, err
	}
	// What leaves the house fits: the signature is our own, the body comes from the disk.
	err = ledger.Includes(c, seq-1, ledger.LeafHash(ledger.Commit(rs[0].Salt, rs[0].Body)), hs)
	return ledger.Proof{Index: seq - 1, Salt: rs[0].Salt, Body: rs[0].Body, Hashes: hs, Checkpoint: note}, err
}

// ProveExtends returns the proof that the log of c begins with what it was when it had
// so many entries. Code: log_invalid where it has fewer.
func (k *Keeper) ProveExtends(ctx context.Context, c ledger.Checkpoint, size int64) ([]ledger.Hash, error) {
	return ledger.ProveExtends(c, size, k.Read(ctx))
}

// Tile serves a tile, or a bundle of entries, of the log as its last checkpoint has
// it (C2SP tlog-tiles). Code: not_found for what that log does not have.
func (k *Keeper) Tile(ctx context.Context, level int, n int64, width int) ([]byte, error) {
	c, _, err := k.Checkpoint()
	if err != nil {
		return nil, err
	}
	height := max(level, 0) // of what one hash or entry stands for
	if height > 6 || (n*ledger.TileWidth+int64(width)) > c.Size>>(ledger.TileHeight*height) {
		return nil, watchword.Refuse(watchword.NotFound, "the log has no such tile")
	}
	if level != ledger.EntriesLevel {
		return k.log.Tile(ctx, level, n, width)
	}
	cs, err := k.log.Commits(ctx, n*ledger.TileWidth, width)
	if err != nil {
		return nil, err
	}
	if len(cs) != width {
		return nil, watchword.Refuse(watchword.LogInvalid, "entries are not there")
	}
	var b []byte
	for _, c := range cs {
		b = ledger.AppendBundle(b, c)
	}
	return b, nil
}

// Entries reads up to limit entries after a number; pruned ones are passed over.
func Entries(ctx context.Context, from interface {
	Records(ctx context.Context, after int64, limit int) ([]Record, error)
}, after int64, limit int,
) ([]Entry, error) {
	rs, err := from.Records(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, r := range rs {
		if r.Pruned() {
			continue
		}
		e, err := r.Entry()
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}
