package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Find returns up to limit entries that q chooses, with numbers above after, oldest
// first; or, where newest is set, with numbers below before (0: all), newest first.
func (s *Store) Find(ctx context.Context, q audit.Query, p audit.Page) ([]audit.Record, error) {
	tree, err := s.Tree(ctx)
	if err != nil {
		return nil, err
	}
	var out []audit.Record
	full := tree.Size() / ledger.TileWidth // what follows fills no tile, and has no terms
	look := func(n int64) error {
		if n < full && !q.All() {
			if may, err := s.may(ctx, n, q); err != nil || !may {
				return err
			}
		}
		rs, err := records(ctx, s, n*ledger.TileWidth, ledger.TileWidth)
		if err != nil {
			return err
		}
		out = append(out, p.Choose(q, rs, p.Limit-len(out))...)
		return nil
	}
	if p.Newest {
		for n := (p.Last(tree.Size()) - 1) / ledger.TileWidth; n >= 0 && len(out) < p.Limit && err == nil; n-- {
			err = look(n)
		}
		return out, err
	}
	for n := p.After / ledger.TileWidth; n*ledger.TileWidth < tree.Size() && len(out) < p.Limit && err == nil; n++ {
		err = look(n)
	}
	return out, err
}

// may reports whether an entry of the n-th tile may be one that q chooses.
func (s *Store) may(ctx context.Context, n int64, q audit.Query) (bool, error) {
	ts, err := all(ctx, s, scanTerms, `SELECT first, last, bits FROM audit_terms WHERE n = ?`, n)
	if err != nil || len(ts) == 0 {
		return true, err // without terms the entries themselves are looked at
	}
	return ts[0].May(q), nil
}

func scanTerms(r scanner) (t audit.Terms, err error) {
	var bits []byte
	err = r.Scan(&t.First, &t.Last, &bits)
	copy(t.Bits[:], bits)
	if err == nil && len(bits) != len(t.Bits) {
		err = watchword.Refuse(watchword.LogInvalid, "what searches know of a tile was changed")
	}
	return t, err
}
