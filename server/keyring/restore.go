package keyring

import (
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// restoredRoles are the roles whose keys are replaced when a server is restored from a backup: the disk with the old ones may
// be in other hands. The log key is replaced since the restored log is another log. Devices know the root and the TLS
// authority, which stay; an operator rotates them if the disk was stolen.
var restoredRoles = []Role{Issuer, Command, Time, Log}

// RestoreReplaces reports whether a restore replaces all keys of a role, so that it does not matter which ones there were.
func RestoreReplaces(r Role) bool { return slices.Contains(restoredRoles, r) }

// RestoredState is the server's own state after a restore from a backup.
type RestoredState struct {
	Instance Instance
	KeyUpdate
	Entries []audit.Entry
	// Plan is the bundle that an offline root must sign before the server can serve; nil if the root is here, and has signed it.
	Plan *PlannedBundle
}

// RestoredState returns the state of the server after a restore with a higher epoch: keys of the issuer, commands, time and
// log are revoked and replaced, the log has a new origin, and the first bundle of the epoch names only the new keys. It
// changes nothing; by is the actor of its entries. Codes: clock_untrusted; conflict for an epoch that is not higher.
func (r *Ring) RestoredState(by audit.Actor, epoch int64, now time.Time) (out RestoredState, err error) {
	if epoch <= r.NewestEpoch() {
		return out, watchword.Refuse(watchword.Conflict, "the epoch must be higher than %d", r.NewestEpoch())
	}
	if epoch > MaxEpoch {
		return out, watchword.Refuse(watchword.Conflict, "the epoch must be at most %d", int64(MaxEpoch))
	}
	ks := r.state.Load()
	out.Instance = r.instance
	out.Instance.Epoch, out.Instance.LogOrigin, out.Instance.SupersededBy = epoch, restoredLogOrigin(r.instance.Issuer, epoch), 0
	out.Instance.RestoredAt = now.Truncate(time.Second).Add(time.Second) // iat has seconds
	for _, role := range restoredRoles {
		for _, k := range ks.all {
			if k.Role == role && k.State.Valid() {
				out.Change = append(out.Change, StateChange{Role: role, ID: k.ID, From: k.State, To: Revoked, Starts: k.Starts, Ends: now})
			}
		}
		s, err := makeKey(r.dataKey, role, Active, out.Instance, r.clock, now, now)
		if err != nil {
			return out, err
		}
		out.Add = append(out.Add, s)
	}
	for _, b := range ks.bundles {
		if b.Starts.After(now) { // signed in advance for keys that are revoked
			out.DropBundles = append(out.DropBundles, b.Version)
		}
	}
	if len(ks.bundles) == 0 {
		return out, watchword.Refuse(watchword.KeyMissing, "the server has no trust bundle that another could follow: its first start did not end")
	}
	b, ok := currentBundle(ks.bundles, now)
	if !ok {
		b = ks.bundles[0]
	}
	known, err := token.ReadTrust(string(b.JWS)) // what devices have
	if err != nil {
		return out, watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is damaged", b.Version)
	}
	info := bundleInfo(known)
	after, err := r.open(out.after(ks.all))
	if err != nil {
		return out, err
	}
	after.addresses = ks.addresses
	if after.rootOffline() {
		planned, err := after.planBundles(out.Instance, Schedule{}, info, 1, 1, now)
		if err != nil {
			return out, err
		}
		out.Plan = &planned[0]
		if err := token.CheckTrustPayload([]byte(out.Plan.Payload), known); err != nil {
			return out, watchword.Wrap(err, watchword.KeyDamaged, "devices would refuse the trust bundle of the restored server")
		}
	} else {
		b, err := after.signBundle(after.bundle(out.Instance, info, 1, now))
		if err != nil {
			return out, err
		}
		if _, err := token.VerifyNextTrust(string(b.JWS), known, now); err != nil { // now, and not by the first device
			return out, watchword.Wrap(err, watchword.KeyDamaged, "devices would refuse the trust bundle of the restored server")
		}
		out.Bundles = append(out.Bundles, b)
	}
	out.Entries = auditEntries(by, out.KeyUpdate, "restored from a backup", now)
	return out, nil
}

// restoredLogOrigin returns the origin of the log from a restore on. Its end is random: two restores that were given the same epoch
// have different logs.
func restoredLogOrigin(issuer string, epoch int64) string {
	const letters = 8 // 40 bits
	return watchword.RestoredLogOrigin(issuer, epoch) + "-" + strings.ToLower(rand.Text()[:letters])
}

// CheckBundle returns an error if no bundle of the current epoch was published: the server was restored, and its offline root
// has not signed the bundle that names the new keys. Such a server must serve nothing. Code: key_missing.
func (r *Ring) CheckBundle(now time.Time) error {
	b, ok := currentBundle(r.state.Load().bundles, now)
	if ok && b.Version.Epoch == r.instance.Epoch || !r.state.Load().rootOffline() {
		return nil
	}
	return watchword.Refuse(watchword.KeyMissing, "no trust bundle of epoch %d exists: the server was restored from a backup, and its root key is offline. Sign the plan that the restore wrote (watchword key sign PLAN --key FILE) and import the result (watchword key import FILE --stopped)", r.instance.Epoch)
}
