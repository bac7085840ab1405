package sqlite

import (
	"context"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// Find returns up to limit entries that match q, with numbers above after, oldest first; or, if
// newest is set, with numbers below before (0: all), newest first.
func (s *Store) Find(ctx context.Context, q audit.Query, p audit.Page) (out []audit.Record, err error) {
	tree, err := s.Tree(ctx)
	if err != nil {
		return nil, err
	}
	look := func(n int64) error {
		rs, err := records(ctx, s, n*ledger.TileWidth, ledger.TileWidth)
		out = append(out, p.Filter(q, rs, p.Limit-len(out))...)
		return err
	}
	// Pages of search terms are read from the first tile that may match to the last.
	from, to := p.After/ledger.TileWidth, (p.MaxSeq(tree.Size())+ledger.TileWidth-1)/ledger.TileWidth
	for from < to && len(out) < p.Limit {
		first, next := from, min(from+termsPage, to)
		if p.Newest {
			first, next = max(to-termsPage, from), to
		}
		ns, err := s.searchCandidates(ctx, q, first, next, tree.Size()/ledger.TileWidth)
		if err != nil {
			return nil, err
		}
		if p.Newest {
			slices.Reverse(ns)
			to = first
		} else {
			from = next
		}
		for _, n := range ns {
			if len(out) == p.Limit {
				break
			}
			if err := look(n); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// termsPage is how many tiles one query reads: 512 KiB of terms.
const termsPage = 256

// searchCandidates returns the tiles from first to before next that may contain a matching entry. full is
// the number of full tiles; later entries have no terms.
func (s *Store) searchCandidates(ctx context.Context, q audit.Query, first, next, full int64) (ns []int64, err error) {
	if q.IsEmpty() {
		for n := first; n < next; n++ {
			ns = append(ns, n)
		}
		return ns, nil
	}
	at := first
	_, err = queryAll(ctx, s, func(r scanner) (none struct{}, err error) {
		var n int64
		t, err := scanTerms(extraColumns{r, []any{&n}})
		for ; err == nil && at < n; at++ {
			ns = append(ns, at) // without terms the entries themselves are read
		}
		if err == nil && t.MayMatch(q) {
			ns = append(ns, n)
		}
		at = n + 1
		return none, err
	}, `SELECT first, last, bits, n FROM audit_terms WHERE n >= ? AND n < ? ORDER BY n`, first, min(next, full))
	for ; at < next; at++ {
		ns = append(ns, at)
	}
	return ns, err
}

func scanTerms(r scanner) (t audit.TileFilter, err error) {
	var bits []byte
	err = r.Scan(&t.First, &t.Last, &bits)
	copy(t.Bits[:], bits)
	if err == nil && len(bits) != len(t.Bits) {
		err = watchword.Refuse(watchword.LogInvalid, "the search terms of a tile were changed")
	}
	return t, err
}
