package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/internal/clock"
)

// ClockMark returns the mark that was written last; zero before the first.
func (s *Store) ClockMark(ctx context.Context) (clock.Mark, error) {
	return queryOne(ctx, s, func(r scanner) (m clock.Mark, err error) {
		var certain, newest int64
		err = r.Scan(&certain, &newest)
		m.Certain, m.Newest = fromMillis(certain), fromMillis(newest)
		return m, err
	}, nil, `SELECT certain, newest FROM clock_mark`)
}

// SetClockMark replaces the mark, and writes audit entries in the same transaction.
func (s *Store) SetClockMark(ctx context.Context, m clock.Mark, es ...audit.Entry) error {
	return s.w.doAuthorized(ctx, func(t *tx) error {
		if _, err := t.exec(`UPDATE clock_mark SET certain = ?, newest = ?`, toMillis(m.Certain), toMillis(m.Newest)); err != nil {
			return err
		}
		return t.addEntry(es...)
	}, es...)
}
