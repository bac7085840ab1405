package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// PlanPrune returns how far the log is pruned (is) and how far it would be if entries before a time
// were pruned, at most limit tiles further (planned); both are equal where there is nothing to
// prune.
func (s *Store) PlanPrune(ctx context.Context, before time.Time, limit int) (is, planned audit.Pruning, err error) {
	if is, err = readPruning(ctx, s); err != nil {
		return is, is, err
	}
	planned = is
	old, err := queryAll(ctx, s, scanTerms, `SELECT first, last, bits FROM audit_terms WHERE n >= ? ORDER BY n LIMIT ?`, is.Through/ledger.TileWidth, limit)
	if err != nil {
		return is, is, err
	}
	for _, terms := range old {
		if terms.Last >= toMillis(before) {
			break
		}
		rs, err := records(ctx, s, planned.Through, ledger.TileWidth)
		if err == nil {
			_, _, err = planned.Tile(rs)
		}
		if err != nil {
			return is, is, err
		}
	}
	return is, planned, nil
}

// PruneLog removes the bodies of entries up to where p says, and keeps their hashes; entries of
// permanent kinds keep their bodies. Search data of the removed bodies go too. It returns how many
// bodies were removed. Code: conflict where p does not match the log's state.
func (s *Store) PruneLog(ctx context.Context, p audit.Pruning) (int64, error) {
	return write(ctx, s, func(t *tx) (gone int64, err error) {
		now, err := readPruning(ctx, t)
		if err != nil {
			return 0, err
		}
		for now.Through < p.Through {
			var n int64
			if err := t.withSecureDelete(func() (err error) { // removed bodies must not stay readable in the file
				n, err = t.pruneTile(ctx, &now)
				return err
			}); err != nil {
				return 0, err
			}
			gone += n
		}
		if err := now.Reached(p); err != nil {
			return 0, err
		}
		_, err = t.exec(`UPDATE audit_pruned SET through = ?, retained = ?, chain = ?`, p.Through, p.Retained, p.Chain[:])
		return gone, err
	})
}

func readPruning(ctx context.Context, from querier) (audit.Pruning, error) {
	return queryOne(ctx, from, func(r scanner) (p audit.Pruning, err error) {
		var chain []byte
		err = r.Scan(&p.Through, &p.Retained, &chain)
		copy(p.Chain[:], chain)
		return p, err
	}, notFound("pruning", 1), `SELECT through, retained, chain FROM audit_pruned`)
}

// pruneTile prunes the next tile and rebuilds its search terms.
func (t *tx) pruneTile(ctx context.Context, p *audit.Pruning) (gone int64, err error) {
	n := p.Through / ledger.TileWidth
	rs, err := records(ctx, t, p.Through, ledger.TileWidth)
	if err != nil {
		return 0, err
	}
	removed, stays, err := p.Tile(rs)
	if err != nil {
		return 0, err
	}
	for _, seq := range removed {
		if _, err := t.exec(`UPDATE audit_entries SET salt = NULL, body = NULL WHERE seq = ?`, seq); err != nil {
			return 0, err
		}
	}
	_, err = t.exec(`UPDATE audit_terms SET first = ?, last = ?, bits = ? WHERE n = ?`, stays.First, stays.Last, stays.Bits[:], n)
	return int64(len(removed)), err
}
