package sqlite

import (
	"context"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// PruneLog takes the bodies of entries that are older, tile by tile, at most limit
// tiles, and leaves their hashes; those of kinds that last stay whole. What a search
// knows of them goes too. The entry says how far that is, in the same step. It returns
// how many bodies went.
func (s *Store) PruneLog(ctx context.Context, before time.Time, limit int, e audit.Entry) (gone int64, err error) {
	err = s.w.do(ctx, func(t *tx) error {
		gone = 0
		through, kept, err := t.pruned()
		if err != nil {
			return err
		}
		old, err := all(ctx, t, scanTerms, `SELECT first, last, bits FROM audit_terms WHERE n >= ? ORDER BY n LIMIT ?`, through/ledger.TileWidth, limit)
		if err != nil {
			return err
		}
		from := through
		for _, terms := range old {
			if terms.Last >= stamp(before) {
				break
			}
			var g, k int64
			err := t.overwriting(func() (err error) {
				g, k, err = t.pruneTile(ctx, through)
				return err
			})
			if err != nil {
				return err
			}
			gone, kept, through = gone+g, kept+k, through+ledger.TileWidth
		}
		if through == from {
			return nil
		}
		if _, err := t.exec(`UPDATE audit_pruned SET through = ?, kept = ?`, through, kept); err != nil {
			return err
		}
		return t.enter(e.With("through", strconv.FormatInt(through, 10), "kept", strconv.FormatInt(kept, 10)))
	})
	return gone, err
}

func (t *tx) pruned() (through, kept int64, err error) {
	_, err = all(context.Background(), t, func(r scanner) (none struct{}, err error) { return none, r.Scan(&through, &kept) }, `SELECT through, kept FROM audit_pruned`)
	return through, kept, err
}

// pruneTile prunes the tile after a number, and makes its terms anew.
func (t *tx) pruneTile(ctx context.Context, after int64) (gone, kept int64, err error) {
	rs, err := records(ctx, t, after, ledger.TileWidth)
	if err != nil {
		return 0, 0, err
	}
	var terms audit.Terms
	for _, r := range rs {
		e, err := r.Entry()
		if err != nil {
			return 0, 0, err
		}
		if audit.Lasting(e.Kind) {
			kept++
			terms.Add(e)
			continue
		}
		if _, err = t.exec(`UPDATE audit_entries SET salt = NULL, body = NULL WHERE seq = ?`, r.Seq); err != nil {
			return 0, 0, err
		}
		gone++
	}
	_, err = t.exec(`UPDATE audit_terms SET first = ?, last = ?, bits = ? WHERE n = ?`, terms.First, terms.Last, terms.Bits[:], after/ledger.TileWidth)
	return gone, kept, err
}
