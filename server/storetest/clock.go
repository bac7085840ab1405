package storetest

import (
	"time"

	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/internal/clock"
)

// clockMark: the mark is zero at first, and is replaced as a whole, also by an earlier one, with its entry.
func clockMark(t *T) {
	m, err := t.ClockMark(t.ctx)
	t.must(err)
	equal(t, "the first mark", m, clock.Mark{})
	for _, want := range []clock.Mark{{Newest: t.now}, {Certain: t.now.Add(time.Hour), Newest: t.now.Add(2 * time.Hour)}, {Certain: t.now, Newest: t.now}} {
		t.must(t.SetClockMark(t.ctx, want, t.entry(audit.ClockAccept, "")))
		m, err := t.ClockMark(t.ctx)
		t.must(err)
		equal(t, "certain", m.Certain.Equal(want.Certain), true)
		equal(t, "newest", m.Newest.Equal(want.Newest), true)
	}
	t.must(t.SetClockMark(t.ctx, clock.Mark{}))
}
