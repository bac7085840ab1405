package keyring_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword/server/keyring"
)

// Whatever epoch is handed in, a restore can choose a higher one, and the server before accepts the bundle of that one.
func TestEpochsCannotBeUsedUp(t *testing.T) {
	now := time.Date(2026, 11, 28, 18, 0, 0, 0, time.UTC)
	year := keyring.EpochAt(now.AddDate(1, 0, 0))
	for _, tc := range []struct {
		name        string
		known       int64
		least, most int64
	}{
		{"by the clock", 1, year, keyring.EpochAt(now.AddDate(1, 0, 2))},
		{"a known one above the clock", 1 << 39, 1<<39 + keyring.EpochsAfterKnown, 1<<39 + 16*keyring.EpochsAfterKnown},
		{"the highest", keyring.MaxEpoch, keyring.MaxEpoch - 16*keyring.EpochsAfterKnown, keyring.MaxEpoch - 16*keyring.EpochsAfterKnown},
	} {
		if got := keyring.HighestEpoch(tc.known, now); got < tc.least || got > tc.most {
			t.Errorf("%s: %d, want from %d to %d", tc.name, got, tc.least, tc.most)
		}
	}
	known := int64(1) // a bundle of the highest epoch that is accepted, ten times
	for range 10 {
		known = keyring.HighestEpoch(known, now)
	}
	if known > keyring.MaxEpoch/8 {
		t.Errorf("bundles reach epoch %d of %d", known, int64(keyring.MaxEpoch))
	}
}
