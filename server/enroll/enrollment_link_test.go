package enroll

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
)

// A link does not outlive the key that it brings, and no key outlives the bound that its maker's key sets.
func TestLifetimesOfLinkAndKey(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 500_000_000, time.UTC)
	whole := now.Truncate(time.Second)
	for _, c := range []struct {
		name      string
		l         Lifetimes
		link, key time.Time
		want      watchword.Code
	}{
		{"by default a day, and a key without an end", Lifetimes{}, now.Add(DefaultCodeLifetime), time.Time{}, ""},
		{"the longest link", Lifetimes{Link: MaxCodeLifetime}, now.Add(MaxCodeLifetime), time.Time{}, ""},
		{"a longer link", Lifetimes{Link: MaxCodeLifetime + 1}, time.Time{}, time.Time{}, watchword.BadRequest},
		{"a link of less than a second", Lifetimes{Link: time.Second - 1}, time.Time{}, time.Time{}, watchword.BadRequest},
		{"a key that ends before the link", Lifetimes{Key: 2 * time.Second}, whole.Add(2 * time.Second), whole.Add(2 * time.Second), ""},
		{"a key that ends after the link", Lifetimes{Link: time.Hour, Key: 12 * time.Hour}, now.Add(time.Hour), whole.Add(12 * time.Hour), ""},
		{"the longest key", Lifetimes{Key: MaxKeyLifetime}, now.Add(DefaultCodeLifetime), whole.Add(MaxKeyLifetime), ""},
		{"a longer key", Lifetimes{Key: MaxKeyLifetime + 1}, time.Time{}, time.Time{}, watchword.BadRequest},
		{"a key of less than a second", Lifetimes{Key: time.Second - 1}, time.Time{}, time.Time{}, watchword.BadRequest},
		{"the bound alone", Lifetimes{KeyEnds: whole.Add(time.Hour)}, whole.Add(time.Hour), whole.Add(time.Hour), ""},
		{"a key within the bound", Lifetimes{Key: time.Minute, KeyEnds: whole.Add(time.Hour)}, whole.Add(time.Minute), whole.Add(time.Minute), ""},
		{"a key beyond the bound", Lifetimes{Link: time.Minute, Key: 2 * time.Hour, KeyEnds: whole.Add(time.Hour)}, now.Add(time.Minute), whole.Add(time.Hour), ""},
	} {
		link, key, err := c.l.ends(now)
		if watchword.CodeOf(err) != c.want || err == nil && (!link.Equal(c.link) || !key.Equal(c.key)) {
			t.Errorf("%s: link until %s, key until %s, %v", c.name, link, key, err)
		}
	}
}
