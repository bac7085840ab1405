package server_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/keyring"
)

// Restores of one backup differ, also at the same moment; a later one has a higher epoch, and none is below what is known, the minutes
// since 2025, or what the operator chose.
func TestEpochsOfRestores(t *testing.T) {
	now := time.Date(2026, 11, 28, 18, 0, 0, 0, time.UTC)
	minutes := int64(now.Sub(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)) / time.Minute)
	seconds := minutes * 60
	const rounds = 500
	for _, tc := range []struct {
		name             string
		known, least     int64
		from, to, differ int64 // from ≤ epoch < to
	}{
		{"by the clock", 1, 0, seconds * 64, seconds*64 + 64, 2},
		{"an epoch that was chosen", 1, minutes, minutes, minutes + 1, 1},
		{"an epoch above the clock", 1, 1 << 39, 1 << 39, 1<<39 + 1, 1},
		{"an epoch below the clock", 1, minutes - 1, seconds * 64, seconds*64 + 64, 2},
		{"a known epoch above the clock", 1 << 39, 0, 1<<39 + 1, 1<<39 + 4097, 2},
		{"a known epoch above the one that was chosen", 1 << 39, 1 << 39, 1<<39 + 1, 1<<39 + 4097, 2},
		{"a known epoch of the same second", seconds*64 + 63, 0, seconds*64 + 64, seconds*64 + 64 + 4096, 2},
		{"the highest but one", keyring.MaxEpoch - 1, 0, keyring.MaxEpoch, keyring.MaxEpoch + 1, 1},
		{"the highest", keyring.MaxEpoch, 0, keyring.MaxEpoch + 1, keyring.MaxEpoch + 2, 1}, // which the keyring refuses
	} {
		got := map[int64]bool{}
		for range rounds {
			n := server.NextEpoch(tc.known, tc.least, now)
			if n < tc.from || n >= tc.to {
				t.Fatalf("%s: %d, want from %d to below %d", tc.name, n, tc.from, tc.to)
			}
			got[n] = true
		}
		if int64(len(got)) < tc.differ {
			t.Errorf("%s: %d restores have %d epochs", tc.name, rounds, len(got))
		}
	}
	if a, b := server.NextEpoch(1, 0, now), server.NextEpoch(1, 0, now.Add(time.Second)); a >= b {
		t.Errorf("a second later the epoch is %d, and before it was %d", b, a)
	}
}
