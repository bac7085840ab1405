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

// Log is the part of the store that a CheckpointSigner uses.
type Log interface {
	// Sequence assigns a number to each committed entry.
	Sequence(ctx context.Context) error
	Tree(ctx context.Context) (ledger.Tree, error)
	Tile(ctx context.Context, level int, n int64, width int) ([]byte, error)
	Commitments(ctx context.Context, after int64, limit int) ([]ledger.Hash, error)
	Records(ctx context.Context, after int64, limit int) ([]Record, error)
	AddCheckpoint(ctx context.Context, c SignedCheckpoint) error
	LastCheckpoint(ctx context.Context) (SignedCheckpoint, error)
}

// Keys returns the current keys of the log.
type Keys interface {
	LogSigner() ledger.Signer
	// LogKeys returns every key that may have signed a checkpoint of this log, including those that no longer sign.
	LogKeys() []ledger.Key
}

// CheckpointOptions are the options of [NewCheckpointSigner].
type CheckpointOptions struct {
	Every     time.Duration // interval of checkpoints while there are new entries; 0 means 1 s
	Witnesses []*Witness
	Quorum    int // number of witnesses that must have cosigned what Cosigned returns
	// Saved is a checkpoint that was stored outside the store, or nil: the log must extend it too.
	Saved []byte
	// OnCheckpoint, if not nil, is called with each published checkpoint. It must not block.
	OnCheckpoint func(note []byte)
	Now          func() time.Time
	Log          *slog.Logger
}

// CheckpointSigner signs the log's checkpoints. It signs only a checkpoint that extends the last one. Create it with
// [NewCheckpointSigner], and call Run. It is safe for concurrent use.
type CheckpointSigner struct {
	log  Log
	keys Keys
	opts CheckpointOptions

	mu       sync.Mutex // held during a step
	latest   atomic.Pointer[publishedCheckpoint]
	cosigned atomic.Pointer[publishedCheckpoint] // the last one with a quorum of cosignatures
	wake     chan struct{}

	waiters struct {
		sync.Mutex
		grown chan struct{} // closed, and replaced, with each checkpoint
	}
}

// publishedCheckpoint is the latest checkpoint.
type publishedCheckpoint struct {
	ledger.Checkpoint
	note []byte
}

// NewCheckpointSigner returns the signer of a log. It verifies that the log extends its last checkpoints, and fails if it
// does not. Code: log_invalid.
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
		k.publish(c, note) // usually the store's is the later one
	}
	return k, nil
}

// checkExtends verifies that the log extends a signed checkpoint.
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
		return c, watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and its last checkpoint was signed for %d: entries are missing", tree.Size(), c.Size)
	}
	then, err := ledger.TreeAt(c.Size, signer.TileReader(ctx))
	if err != nil {
		return c, err
	}
	if then.Root() != c.Root {
		return c, watchword.Refuse(watchword.LogInvalid, "the log's entries up to %d do not match its last checkpoint: entries were changed", c.Size)
	}
	return c, nil
}

// publish makes a checkpoint the latest one.
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

// FinalCheckpointTimeout is the maximum time for the checkpoint that [CheckpointSigner.Run] signs at its end, so that a
// store or a witness that does not answer does not delay the stop of the server.
const FinalCheckpointTimeout = 5 * time.Second

// Run signs checkpoints at intervals, and when a caller waits for one, until ctx ends. Then, within
// [FinalCheckpointTimeout], it signs one of all entries that were written before ctx ended. It returns an error if that one
// could not be signed: the next start signs it.
func (signer *CheckpointSigner) Run(ctx context.Context) error {
	tick := time.NewTicker(signer.opts.Every)
	defer tick.Stop()
	signer.signSoon() // the start itself is an entry
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

// Sign signs a checkpoint of all entries, without [CheckpointSigner.Run], and returns it.
func (signer *CheckpointSigner) Sign(ctx context.Context) ([]byte, error) {
	if err := signer.signNext(ctx); err != nil {
		return nil, err
	}
	_, note, err := signer.Checkpoint()
	return note, err
}

// signNext publishes a checkpoint if there are new entries.
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
		// There is no new entry, but a caller may wait for witnesses that did not answer.
		if note = signer.collectCosignatures(ctx, c, last.note); len(note) == len(last.note) {
			return nil
		}
	default:
		if note, err = c.Sign(s); err != nil {
			return err
		}
		note = signer.collectCosignatures(ctx, c, note)
	}
	// Stored before it is published, so that this log never contradicts a checkpoint that a reader has seen.
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

// Sizes returns how many entries the last signed checkpoint covers, and the last one that a quorum of witnesses has cosigned.
func (signer *CheckpointSigner) Sizes() (signed, cosigned int64) {
	if p := signer.latest.Load(); p != nil {
		signed = p.Size
	}
	if p := signer.cosigned.Load(); p != nil {
		cosigned = p.Size
	}
	return signed, cosigned
}

// NextCheckpoint returns a channel that is closed when the next checkpoint is published.
func (signer *CheckpointSigner) NextCheckpoint() <-chan struct{} {
	signer.waiters.Lock()
	defer signer.waiters.Unlock()
	return signer.waiters.grown
}

// WaitCheckpoint returns a signed checkpoint of a log that contains the entry with number seq, and waits for one if
// necessary. Code: timed_out if ctx ends before, not_found if there is no such entry.
func (signer *CheckpointSigner) WaitCheckpoint(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error) {
	return signer.waitFor(ctx, seq, &signer.latest)
}

// WaitCosigned is WaitCheckpoint for a checkpoint that a quorum of witnesses has cosigned.
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
			return c, nil, watchword.Wrap(ctx.Err(), watchword.TimedOut, "the log's checkpoint was not signed in time")
		}
	}
}

// CheckpointNow returns a signed checkpoint of all current entries. Code: timed_out.
func (signer *CheckpointSigner) CheckpointNow(ctx context.Context) (c ledger.Checkpoint, note []byte, err error) {
	tree, err := signer.log.Tree(ctx)
	if err != nil {
		return c, nil, err
	}
	return signer.WaitCheckpoint(ctx, tree.Size())
}

// signSoon requests a checkpoint now.
func (signer *CheckpointSigner) signSoon() {
	select {
	case signer.wake <- struct{}{}:
	default:
	}
}

// LatestCosigned returns the last checkpoint that a quorum of witnesses has cosigned, if it contains the entry with number
// seq; otherwise the next one is signed soon.
func (signer *CheckpointSigner) LatestCosigned(seq int64) (c ledger.Checkpoint, note []byte, ok bool) {
	if p := signer.cosigned.Load(); p != nil && p.Size >= seq {
		return p.Checkpoint, p.note, true
	}
	signer.signSoon()
	return c, nil, false
}

// TileReader returns a function that reads the log's tiles.
func (signer *CheckpointSigner) TileReader(ctx context.Context) ledger.TileReader {
	return func(level int, n int64, width int) ([]byte, error) { return signer.log.Tile(ctx, level, n, width) }
}

// Prove returns the proof that the log contains the entry with number seq, and the entry. Codes: not_found, timed_out,
// log_invalid.
func (signer *CheckpointSigner) Prove(ctx context.Context, seq int64) (ledger.Proof, error) {
	c, note, err := signer.WaitCheckpoint(ctx, seq)
	if err != nil {
		return ledger.Proof{}, err
	}
	return signer.ProveAt(ctx, c, note, seq)
}

// ProveAt is Prove for a checkpoint that contains the entry.
func (signer *CheckpointSigner) ProveAt(ctx context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error) {
	rs, err := signer.log.Records(ctx, seq-1, 1)
	if err != nil {
		return ledger.Proof{}, err
	}
	if len(rs) == 0 || rs[0].Seq != seq {
		return ledger.Proof{}, watchword.Refuse(watchword.LogInvalid, "entry %d is missing", seq)
	}
	if _, err := rs[0].Entry(); err != nil {
		return ledger.Proof{}, err
	}
	hs, err := ledger.InclusionProof(c, seq-1, signer.TileReader(ctx))
	if err != nil {
		return ledger.Proof{}, err
	}
	// The result is verified before it is returned: the body is from the disk.
	err = ledger.VerifyInclusion(c, seq-1, ledger.LeafHash(ledger.Commitment(rs[0].Salt, rs[0].Body)), hs)
	return ledger.Proof{Index: seq - 1, Salt: rs[0].Salt, Body: rs[0].Body, Hashes: hs, Checkpoint: note}, err
}

// ConsistencyProof returns the proof that the log of c extends its first size entries. Code: log_invalid if it has fewer.
func (signer *CheckpointSigner) ConsistencyProof(ctx context.Context, c ledger.Checkpoint, size int64) ([]ledger.Hash, error) {
	return ledger.ConsistencyProof(c, size, signer.TileReader(ctx))
}

// Tile returns a tile, or a bundle of entries, of the log at its last checkpoint (C2SP tlog-tiles). Code: not_found for a
// tile that this log does not have.
func (signer *CheckpointSigner) Tile(ctx context.Context, level int, n int64, width int) ([]byte, error) {
	c, _, err := signer.Checkpoint()
	if err != nil {
		return nil, err
	}
	height := max(level, 0) // height of the subtree of one hash or entry
	if height > 6 || (n*ledger.TileWidth+int64(width)) > c.Size>>(ledger.TileHeight*height) {
		return nil, watchword.Refuse(watchword.NotFound, "the log has no tile at this path")
	}
	if level != ledger.EntriesLevel {
		return signer.log.Tile(ctx, level, n, width)
	}
	cs, err := signer.log.Commitments(ctx, n*ledger.TileWidth, width)
	if err != nil {
		return nil, err
	}
	if len(cs) != width {
		return nil, watchword.Refuse(watchword.LogInvalid, "entries of a tile are missing")
	}
	var b []byte
	for _, c := range cs {
		b = ledger.AppendBundle(b, c)
	}
	return b, nil
}

// Entries reads up to limit entries after a number; pruned ones are skipped.
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
