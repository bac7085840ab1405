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

// Log is what it needs from the store.
type Log interface {
	// Sequence gives each entry that is committed its number.
	Sequence(ctx context.Context) error
	Tree(ctx context.Context) (ledger.Tree, error)
	Tile(ctx context.Context, level int, n int64, width int) ([]byte, error)
	Commitments(ctx context.Context, after int64, limit int) ([]ledger.Hash, error)
	Records(ctx context.Context, after int64, limit int) ([]Record, error)
	AddCheckpoint(ctx context.Context, c SignedCheckpoint) error
	LastCheckpoint(ctx context.Context) (SignedCheckpoint, error)
}

// Keys is the log's keys as they are now.
type Keys interface {
	LogSigner() ledger.Signer
	// LogKeys is every key that a checkpoint of ours may be signed with, also those that sign no more.
	LogKeys() []ledger.Key
}

// CheckpointOptions is what it needs to know beside the store and the keys.
type CheckpointOptions struct {
	Every     time.Duration // between checkpoints, while there is something new; 0 means 1 s
	Witnesses []*Witness
	Quorum    int // how many of them must have signed what Cosigned returns
	// Saved is a checkpoint that was kept outside the store, or nil: the log must extend it too.
	Saved []byte
	// OnCheckpoint, if not nil, is told of each checkpoint that is published. It must not wait.
	OnCheckpoint func(note []byte)
	Now          func() time.Time
	Log          *slog.Logger
}

// CheckpointSigner signs the log's checkpoints. It never signs one that does not follow from
// the last. Make one with [NewCheckpointSigner], and run it. It is safe for concurrent use.
type CheckpointSigner struct {
	log  Log
	keys Keys
	opts CheckpointOptions

	mu       sync.Mutex // held over a step
	latest   atomic.Pointer[publishedCheckpoint]
	cosigned atomic.Pointer[publishedCheckpoint] // the last with a quorum of cosignatures
	wake     chan struct{}

	waiters struct {
		sync.Mutex
		grown chan struct{} // closed, and replaced, with each checkpoint
	}
}

// publishedCheckpoint is the checkpoint of this moment.
type publishedCheckpoint struct {
	ledger.Checkpoint
	note []byte
}

// NewCheckpointSigner returns the keeper of a log, and holds the log against its last
// checkpoint: one that does not extend it is not gone on with. Code: log_invalid.
func NewCheckpointSigner(ctx context.Context, log Log, keys Keys, o CheckpointOptions) (*CheckpointSigner, error) {
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	k := &CheckpointSigner{log: log, keys: keys, opts: o, wake: make(chan struct{}, 1)}
	k.waiters.grown = make(chan struct{})
	last, err := log.LastCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	for _, note := range [][]byte{o.Saved, last.Note} {
		if note == nil {
			continue
		}
		c, err := k.checkExtends(ctx, note)
		if err != nil {
			return nil, err
		}
		k.publish(c, note) // of the two the store's is the later one, as a rule
	}
	return k, nil
}

// checkExtends checks that the log as it stands goes on from a checkpoint of ours.
func (signer *CheckpointSigner) checkExtends(ctx context.Context, note []byte) (ledger.Checkpoint, error) {
	o, err := ledger.VerifyCheckpoint(note, signer.keys.LogKeys()...)
	if err != nil {
		return o.Checkpoint, err
	}
	c := o.Checkpoint
	tree, err := signer.log.Tree(ctx)
	if err != nil {
		return c, err
	}
	if tree.Size() < c.Size {
		return c, watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and its last checkpoint speaks of %d: some were taken away", tree.Size(), c.Size)
	}
	then, err := ledger.TreeAt(c.Size, signer.TileReader(ctx))
	if err != nil {
		return c, err
	}
	if then.Root() != c.Root {
		return c, watchword.Refuse(watchword.LogInvalid, "the log's entries up to %d are not those of its last checkpoint: something was changed", c.Size)
	}
	return c, nil
}

// publish makes a checkpoint that of this moment.
func (signer *CheckpointSigner) publish(c ledger.Checkpoint, note []byte) {
	p := &publishedCheckpoint{c, note}
	if last := signer.latest.Load(); last != nil && last.Size > c.Size {
		return
	}
	signer.latest.Store(p)
	keys := signer.keys.LogKeys()
	for _, w := range signer.opts.Witnesses {
		keys = append(keys, w.Key)
	}
	o, err := ledger.VerifyCheckpoint(note, keys...)
	if err != nil {
		signer.opts.Log.Error("a checkpoint of ours does not open", slog.Any("err", err))
	} else if len(o.Cosignatures) >= signer.opts.Quorum {
		signer.cosigned.Store(p)
	}
}

// FinalCheckpointTimeout bounds the checkpoint that [CheckpointSigner.Run] signs at its end: a store or a witness that
// does not answer holds up no stop of the server.
const FinalCheckpointTimeout = 5 * time.Second

// Run signs a checkpoint each while, or when somebody waits for one, until ctx ends;
// then, within [FinalCheckpointTimeout], one of all that was written before ctx ended. It returns an error
// where that one could not be signed: the next start signs it.
func (signer *CheckpointSigner) Run(ctx context.Context) error {
	tick := time.NewTicker(signer.opts.Every)
	defer tick.Stop()
	signer.signSoon() // the start itself is in the log
	for {
		select {
		case <-tick.C:
		case <-signer.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), FinalCheckpointTimeout)
			defer cancel()
			if err := signer.signNext(last); err != nil {
				return watchword.Wrap(err, watchword.CodeOf(err), "the last entries of the log are not signed before the next start")
			}
			return nil
		}
		if err := signer.signNext(ctx); err != nil && ctx.Err() == nil {
			signer.opts.Log.ErrorContext(ctx, "no checkpoint of the log", slog.Any("err", err))
		}
	}
}

// signNext publishes a checkpoint if there is something new.
func (signer *CheckpointSigner) signNext(ctx context.Context) error {
	signer.mu.Lock()
	defer signer.mu.Unlock()
	if err := signer.log.Sequence(ctx); err != nil {
		return err
	}
	tree, err := signer.log.Tree(ctx)
	if err != nil {
		return err
	}
	s := signer.keys.LogSigner()
	last := signer.latest.Load()
	c, note := ledger.Checkpoint{Origin: s.Name(), Size: tree.Size(), Root: tree.Root()}, []byte(nil)
	switch {
	case tree.Size() == 0:
		return nil
	case last != nil && last.Size == tree.Size():
		if signer.cosigned.Load() == last {
			return nil
		}
		// Nothing is new, but somebody may wait for witnesses that were away.
		if note = signer.collectCosignatures(ctx, c, last.note); len(note) == len(last.note) {
			return nil
		}
	default:
		if note, err = c.Sign(s); err != nil {
			return err
		}
		note = signer.collectCosignatures(ctx, c, note)
	}
	// Kept before anybody sees it: what a reader remembers is remembered here.
	if err := signer.log.AddCheckpoint(ctx, SignedCheckpoint{Size: c.Size, Note: note, At: signer.opts.Now()}); err != nil {
		return err
	}
	signer.publish(c, note)
	signer.waiters.Lock()
	close(signer.waiters.grown)
	signer.waiters.grown = make(chan struct{})
	signer.waiters.Unlock()
	if signer.opts.OnCheckpoint != nil {
		signer.opts.OnCheckpoint(note)
	}
	return nil
}

// Checkpoint returns the last signed checkpoint. Code: unavailable before the first.
func (signer *CheckpointSigner) Checkpoint() (c ledger.Checkpoint, note []byte, err error) {
	p := signer.latest.Load()
	if p == nil {
		return c, nil, watchword.Refuse(watchword.Unavailable, "the log has no checkpoint yet")
	}
	return p.Checkpoint, p.note, nil
}

// NextCheckpoint is closed when the next checkpoint is there.
func (signer *CheckpointSigner) NextCheckpoint() <-chan struct{} {
	signer.waiters.Lock()
	defer signer.waiters.Unlock()
	return signer.waiters.grown
}

// WaitCheckpoint returns a signed checkpoint of a log that has an entry of that number; it
// waits for one. Code: timed_out where ctx ends before, not_found for a number that
// no entry has.
func (signer *CheckpointSigner) WaitCheckpoint(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error) {
	return signer.waitFor(ctx, seq, &signer.latest)
}

// WaitCosigned is WaitCheckpoint for a checkpoint that a quorum of witnesses has signed.
func (signer *CheckpointSigner) WaitCosigned(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error) {
	return signer.waitFor(ctx, seq, &signer.cosigned)
}

func (signer *CheckpointSigner) waitFor(ctx context.Context, seq int64, of *atomic.Pointer[publishedCheckpoint]) (c ledger.Checkpoint, note []byte, err error) {
	for {
		grown := signer.NextCheckpoint()
		if p := of.Load(); p != nil && p.Size >= seq {
			return p.Checkpoint, p.note, nil
		}
		if tree, err := signer.log.Tree(ctx); err == nil && seq > tree.Size() || seq < 1 {
			return c, nil, watchword.Refuse(watchword.NotFound, "entry %d not found", seq)
		}
		signer.signSoon()
		select {
		case <-grown:
		case <-ctx.Done():
			return c, nil, watchword.Wrap(ctx.Err(), watchword.TimedOut, "the log's checkpoint did not come in time")
		}
	}
}

// CheckpointNow returns a signed checkpoint of everything that is in the log by now. Code:
// timed_out.
func (signer *CheckpointSigner) CheckpointNow(ctx context.Context) (c ledger.Checkpoint, note []byte, err error) {
	tree, err := signer.log.Tree(ctx)
	if err != nil {
		return c, nil, err
	}
	return signer.WaitCheckpoint(ctx, tree.Size())
}

// signSoon asks for a checkpoint now.
func (signer *CheckpointSigner) signSoon() {
	select {
	case signer.wake <- struct{}{}:
	default:
	}
}

// LatestCosigned returns the last checkpoint that a quorum of witnesses has signed, if it
// has the entry of that number; if not, the next one is signed soon.
func (signer *CheckpointSigner) LatestCosigned(seq int64) (c ledger.Checkpoint, note []byte, ok bool) {
	if p := signer.cosigned.Load(); p != nil && p.Size >= seq {
		return p.Checkpoint, p.note, true
	}
	signer.signSoon()
	return c, nil, false
}

// TileReader reads the log's tiles.
func (signer *CheckpointSigner) TileReader(ctx context.Context) ledger.TileReader {
	return func(level int, n int64, width int) ([]byte, error) { return signer.log.Tile(ctx, level, n, width) }
}

// Prove returns the proof that the entry of that number is in the log, with the
// entry. Codes: not_found, timed_out, log_invalid.
func (signer *CheckpointSigner) Prove(ctx context.Context, seq int64) (ledger.Proof, error) {
	c, note, err := signer.WaitCheckpoint(ctx, seq)
	if err != nil {
		return ledger.Proof{}, err
	}
	return signer.ProveAt(ctx, c, note, seq)
}

// ProveAt is Prove for a checkpoint that has the entry.
func (signer *CheckpointSigner) ProveAt(ctx context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error) {
	rs, err := signer.log.Records(ctx, seq-1, 1)
	if err != nil {
		return ledger.Proof{}, err
	}
	if len(rs) == 0 || rs[0].Seq != seq {
		return ledger.Proof{}, watchword.Refuse(watchword.LogInvalid, "entry %d is not there", seq)
	}
	if _, err := rs[0].Entry(); err != nil {
		return ledger.Proof{}, err
	}
	hs, err := ledger.InclusionProof(c, seq-1, signer.TileReader(ctx))
	if err != nil {
		return ledger.Proof{}, err
	}
	// What is handed over fits: the signature is our own, the body comes from the disk.
	err = ledger.VerifyInclusion(c, seq-1, ledger.LeafHash(ledger.Commitment(rs[0].Salt, rs[0].Body)), hs)
	return ledger.Proof{Index: seq - 1, Salt: rs[0].Salt, Body: rs[0].Body, Hashes: hs, Checkpoint: note}, err
}

// ConsistencyProof returns the proof that the log of c begins with what it was when it had
// so many entries. Code: log_invalid where it has fewer.
func (signer *CheckpointSigner) ConsistencyProof(ctx context.Context, c ledger.Checkpoint, size int64) ([]ledger.Hash, error) {
	return ledger.ConsistencyProof(c, size, signer.TileReader(ctx))
}

// Tile serves a tile, or a bundle of entries, of the log as its last checkpoint has
// it (C2SP tlog-tiles). Code: not_found for what that log does not have.
func (signer *CheckpointSigner) Tile(ctx context.Context, level int, n int64, width int) ([]byte, error) {
	c, _, err := signer.Checkpoint()
	if err != nil {
		return nil, err
	}
	height := max(level, 0) // of what one hash or entry stands for
	if height > 6 || (n*ledger.TileWidth+int64(width)) > c.Size>>(ledger.TileHeight*height) {
		return nil, watchword.Refuse(watchword.NotFound, "the log has no such tile")
	}
	if level != ledger.EntriesLevel {
		return signer.log.Tile(ctx, level, n, width)
	}
	cs, err := signer.log.Commitments(ctx, n*ledger.TileWidth, width)
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
