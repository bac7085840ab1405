package keyring

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

const (
	// MaxEpoch is the highest epoch that a restore chooses. Epochs are 64 for each second, so it leaves room for 500 years, and stays
	// below the largest integer of JSON (2^53).
	MaxEpoch = 1 << 40
	// EpochsPerSecond is how many epochs a restore chooses among that does not have to pass over a higher one.
	EpochsPerSecond = 64
	// EpochsAfterKnown is how many it chooses among otherwise.
	EpochsAfterKnown = 4096

	// epochsAhead is how far above the epoch of now one may be that was not chosen here.
	epochsAhead = int64(366*24*time.Hour/time.Second) * EpochsPerSecond
)

// EpochsSince is the time from which epochs are counted.
var EpochsSince = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// EpochAt returns the lowest epoch that a restore at a time chooses, if none that is known is higher.
func EpochAt(now time.Time) int64 {
	return int64(now.Sub(EpochsSince)/time.Second) * EpochsPerSecond
}

// HighestEpoch returns the highest epoch that a bundle which a subject hands in, or an operator, may name at a time: that of a year
// later, or what 16 restores can choose above the known one. Those above it, up to [MaxEpoch], are left for restores, so no bundle and no
// option can take all epochs away.
func HighestEpoch(known int64, now time.Time) int64 {
	const restores = 16
	return min(max(EpochAt(now)+epochsAhead, known+restores*EpochsAfterKnown), MaxEpoch-restores*EpochsAfterKnown)
}

// CheckNotSuperseded returns an error if another server was restored from a backup of this one: a bundle of a higher epoch,
// signed by a root of this server, was shown to it. Such a server orders and delivers no commands: the devices belong to the
// restored one. Only a restore with a higher epoch ends that. Code: superseded.
func (r *Ring) CheckNotSuperseded() error {
	if epoch := r.supersededBy.Load(); epoch > r.instance.Epoch {
		return watchword.Refuse(watchword.Superseded, "this server was restored elsewhere: a device has a trust bundle of epoch %d, and this server has epoch %d", epoch, r.instance.Epoch)
	}
	return nil
}

// NewestEpoch returns the highest epoch that this server knows: its own, or that of the bundle that superseded it.
func (r *Ring) NewestEpoch() int64 { return max(r.instance.Epoch, r.supersededBy.Load()) }

// CheckEpoch returns an error if this server was superseded, or a peer states a higher epoch than this server's. The word of
// one peer concerns that peer alone: it stops its own commands, and no others. Code: superseded.
func (r *Ring) CheckEpoch(epoch int64) error {
	if epoch > r.instance.Epoch {
		return watchword.Refuse(watchword.Superseded, "epoch %d is higher than this server's, %d: another server was restored from a backup of this one", epoch, r.instance.Epoch)
	}
	return r.CheckNotSuperseded()
}

// ReceiveBundle takes a trust bundle that a subject of a tenant hands in. One that follows this server's own, by the
// signature of its root, and has a higher epoch proves that another server was restored from a backup: from then on, also
// after a restart, [Ring.CheckNotSuperseded] returns an error. Any other valid bundle changes nothing.
//
// Codes: bundle_invalid, unavailable.
func (r *Rotator) ReceiveBundle(ctx context.Context, by audit.Actor, raw string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := token.Trust{Issuer: watchword.Issuers(r.ring.Issuer()).Of(by.Tenant), Roots: r.ring.Public(Root)} // any version follows
	t, err := token.VerifyNextTrust(raw, own, time.Time{})
	if err != nil {
		return watchword.WrapRefusal(err, watchword.BundleInvalid, "the trust bundle is not valid, or not of this server")
	}
	if highest := HighestEpoch(r.ring.NewestEpoch(), now); t.Epoch > highest {
		return watchword.Refuse(watchword.BundleInvalid, "the trust bundle has epoch %d, and the highest that is accepted now is %d", t.Epoch, highest)
	}
	if t.Epoch <= max(r.ring.Epoch(), r.ring.supersededBy.Load()) {
		return nil
	}
	e := by.DoneEntry(audit.ServerSuperseded, "", now, map[string]string{
		"epoch": strconv.FormatInt(r.ring.Epoch(), 10), "superseded_by": strconv.FormatInt(t.Epoch, 10), "version": strconv.FormatInt(t.Version, 10),
	})
	if err := r.store.SetSuperseded(ctx, t.Epoch, e); err != nil {
		return err
	}
	r.opts.Log.ErrorContext(ctx, "another server was restored from a backup of this one: no commands are ordered or delivered here; stop this server",
		slog.Int64("epoch", r.ring.Epoch()), slog.Int64("superseded_by", t.Epoch), slog.String("device", string(by.Subject)))
	return r.notifyKeysChanged(ctx, r.ring.state.Load().version())
}
