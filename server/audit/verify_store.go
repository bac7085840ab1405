package audit

import (
	"bytes"
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// StoredLog is a log in a store, at one moment.
type StoredLog interface {
	// Each calls f for every entry, sorted by number, until it returns an error.
	Each(ctx context.Context, f func(Record) error) error
	// FullTile returns the hashes of a full tile, and their root; not_found.
	FullTile(ctx context.Context, level int, n int64) (hashes []byte, root ledger.Hash, err error)
	// TileFilter returns the search filter of a full tile's entries; not_found.
	TileFilter(ctx context.Context, n int64) (TileFilter, error)
	// Counts returns the numbers of full tiles and of search filters.
	Counts(ctx context.Context) (tiles, terms int64, err error)
	// Checkpoints returns every checkpoint, sorted by size.
	Checkpoints(ctx context.Context) ([]SignedCheckpoint, error)
}

// VerifyStore recomputes the log of a store: every entry's body against its hash, the leaves against the tiles, the tiles
// against each other, the whole against every checkpoint in the store, and against those that were stored elsewhere. It
// also verifies that each missing body is covered by a log.prune entry. Code: log_invalid.
func VerifyStore(ctx context.Context, k StoredLog, keys []ledger.Key, against ...[]byte) (VerifyResult, error) {
	signed, err := k.Checkpoints(ctx)
	if err != nil {
		return VerifyResult{}, err
	}
	var own [][]byte
	for _, s := range signed {
		o, err := ledger.VerifyCheckpoint(s.Note, keys...)
		switch {
		case err != nil:
			return VerifyResult{}, watchword.Wrap(err, watchword.LogInvalid, "the checkpoint of %d entries is damaged, or not signed by the log's key", s.Size)
		case o.Size != s.Size:
			return VerifyResult{}, watchword.Refuse(watchword.LogInvalid, "the checkpoint of %d entries was changed", s.Size)
		case o.UnknownSignatures > 0:
			return VerifyResult{}, watchword.Refuse(watchword.LogInvalid, "the checkpoint of %d entries was changed, or signed by a witness that no trust bundle names", s.Size)
		}
		own = append(own, s.Note)
	}
	c, err := NewLogVerifier(keys, own, against)
	if err != nil {
		return VerifyResult{}, err
	}
	w := storeCheck{c: c, k: k}
	if err := k.Each(ctx, func(r Record) error { return w.record(ctx, r) }); err != nil {
		return c.result, err
	}
	v, err := c.Finish()
	if err != nil {
		return v, err
	}
	if err := c.CheckPruning(); err != nil {
		return v, err
	}
	tiles, terms, err := k.Counts(ctx)
	if err == nil && (tiles != w.tiles || terms != v.Entries/ledger.TileWidth) {
		err = watchword.Refuse(watchword.LogInvalid, "the store has %d tiles and %d search terms; the entries need %d and %d", tiles, terms, w.tiles, v.Entries/ledger.TileWidth)
	}
	return v, err
}

// storeCheck is the state of a verification.
type storeCheck struct {
	c      *LogVerifier
	k      StoredLog
	filter TileFilter
	tiles  int64
	stored []byte // the tile of the current entry; nil if that is not full
}

func (w *storeCheck) record(ctx context.Context, r Record) error {
	// The tile is compared first: a mismatch there names the changed entry, while a checkpoint only shows up to which size
	// the log is valid.
	if err := w.inTile(ctx, r); err != nil {
		return err
	}
	full, err := w.c.Record(r)
	if err != nil {
		return err
	}
	if !r.Pruned() { // pruned entries are not searched
		e, err := r.Entry()
		if err != nil {
			return err
		}
		w.c.CheckEntry(e)
		w.filter.Add(e)
	}
	for _, t := range full {
		if err := w.tile(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (w *storeCheck) inTile(ctx context.Context, r Record) error {
	at := w.c.result.Entries // its index, if it is in order
	if at%ledger.TileWidth == 0 {
		b, _, err := w.k.FullTile(ctx, 0, at/ledger.TileWidth)
		if w.stored = b; err != nil && watchword.CodeOf(err) != watchword.NotFound {
			return err
		}
	}
	leaf := ledger.LeafHash(r.Hash)
	from := int(at%ledger.TileWidth) * len(leaf)
	if r.Seq != at+1 || !r.MatchesHash() || len(w.stored) < from+len(leaf) || bytes.Equal(w.stored[from:from+len(leaf)], leaf[:]) {
		return nil // Record reports the error, if there is one
	}
	return watchword.Refuse(watchword.LogInvalid, "entry %d does not match the hash in its tile", r.Seq)
}

func (w *storeCheck) tile(ctx context.Context, t ledger.Tile) error {
	w.tiles++
	b, root, err := w.k.FullTile(ctx, t.Level, t.N)
	first := t.N<<(ledger.TileHeight*(t.Level+1)) + 1
	if err != nil {
		return missingFile(err, ledger.Path(t.Level, t.N, ledger.TileWidth), first-1)
	}
	if err := CompareTile(b, t.Level, t.N, t.Hashes); err != nil {
		return err
	}
	if root != t.Root {
		return watchword.Refuse(watchword.LogInvalid, "entry %d: the root of %s was changed", first, ledger.Path(t.Level, t.N, ledger.TileWidth))
	}
	if t.Level > 0 {
		return nil
	}
	terms, err := w.k.TileFilter(ctx, t.N)
	if err != nil {
		return missingFile(err, "what searches know of its tile", first-1)
	}
	if terms != w.filter {
		return watchword.Refuse(watchword.LogInvalid, "entry %d: the search terms of its tile were changed", first)
	}
	w.filter = TileFilter{}
	return nil
}
