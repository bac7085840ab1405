package keyring

import (
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Schedule determines when keys are rotated. Its methods depend on their arguments only.
type Schedule struct {
	RotateEvery time.Duration // how long an issuer, command or time key signs; 0: until an operator rotates it
	Overlap     time.Duration // how long a key is published before it signs: at least one refresh interval of verifiers
}

// caRotateAfter is how long a certificate authority signs before it is replaced.
const caRotateAfter = caLifetime - 365*24*time.Hour

// maxAccessLifetime is the maximum lifetime of an access token (server.Config).
const maxAccessLifetime = 24 * time.Hour

// maxCodeLifetime is the maximum lifetime of an enrollment link, which contains the pin of a root.
const maxCodeLifetime = 30 * 24 * time.Hour

// signingPeriod returns how long a key of a role signs; 0: until an operator rotates it.
func (r Schedule) signingPeriod(role Role) time.Duration {
	switch role {
	case Issuer, Command, Time:
		return r.RotateEvery
	case CA:
		return caRotateAfter
	default:
		return 0
	}
}

// validAfterLastUse returns how long the last signature of a key of a role can be valid; 0: forever.
func validAfterLastUse(role Role) time.Duration {
	switch role {
	case Issuer:
		return maxAccessLifetime + token.Skew
	case Command:
		return max(token.CommandLifetime, token.ConfigLifetime) + token.Skew
	case Time:
		return token.TimeLifetime + token.Skew
	case CA:
		return leafLifetime
	case Root:
		return token.TrustLifetime + maxCodeLifetime
	default:
		return 0
	}
}

// removalTime returns when a key that stops signing now becomes invalid; zero: never.
func removalTime(role Role, now time.Time) time.Time {
	if t := validAfterLastUse(role); t > 0 {
		return now.Add(t)
	}
	return time.Time{}
}

func keysOf(ks []SealedKey, role Role, state State) (out []SealedKey) {
	for _, k := range ks {
		if k.Role == role && k.State == state {
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b SealedKey) int { return a.Starts.Compare(b.Starts) })
	return out
}

// due returns what the schedule requires: which role needs a next key, to start when, and which keys change their state.
// listed reports whether a key is in the published bundle; a key that is not does not begin to sign. offline means that no
// bundle can be signed here, so that no key is created either.
func (r Schedule) due(ks []SealedKey, now time.Time, offline bool, listed func(watchword.KeyID) bool) (next map[Role]time.Time, changes []StateChange) {
	next = map[Role]time.Time{}
	for _, role := range Roles {
		rotation := r.activate(ks, role, now, listed)
		changes = append(changes, rotation...)
		if every := r.signingPeriod(role); every > 0 && !offline && len(rotation) == 0 && len(keysOf(ks, role, Next)) == 0 {
			at := keysOf(ks, role, Active)[0].Starts.Add(every)
			if !now.Before(at.Add(-r.Overlap)) {
				next[role] = latest(at, now.Add(r.Overlap))
			}
		}
		for _, k := range keysOf(ks, role, Retiring) {
			if !k.Ends.IsZero() && !now.Before(k.Ends) {
				changes = append(changes, StateChange{Role: role, ID: k.ID, From: Retiring, To: Gone, Starts: k.Starts, Ends: k.Ends})
			}
		}
	}
	return next, changes
}

// activate activates the latest next key whose start time has passed, instead of the active one. Earlier next keys are
// skipped; they have signed nothing.
func (r Schedule) activate(ks []SealedKey, role Role, now time.Time, listed func(watchword.KeyID) bool) (changes []StateChange) {
	var ready []SealedKey
	for _, k := range keysOf(ks, role, Next) {
		if !now.Before(k.Starts) && listed(k.ID) {
			ready = append(ready, k)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	for _, k := range ready[:len(ready)-1] {
		changes = append(changes, StateChange{Role: role, ID: k.ID, From: Next, To: Gone, Starts: k.Starts, Ends: now})
	}
	return append(changes, replaceActive(ks, ready[len(ready)-1], now)...)
}

// replaceActive makes k its role's active key.
func replaceActive(ks []SealedKey, k SealedKey, now time.Time) []StateChange {
	changes := retire(ks, k.Role, now)
	return append(changes, StateChange{Role: k.Role, ID: k.ID, From: k.State, To: Active, Starts: now})
}

// retire retires a role's active key.
func retire(ks []SealedKey, role Role, now time.Time) (changes []StateChange) {
	for _, old := range keysOf(ks, role, Active) {
		changes = append(changes, StateChange{Role: role, ID: old.ID, From: Active, To: Retiring, Starts: old.Starts, Ends: removalTime(role, now)})
	}
	return changes
}

// Apply returns the keys after the update, in the order of ks and then of t.Add. Code: conflict if a key has changed since
// the update was decided, or a bundle's version is not greater than all others.
func (t KeyUpdate) Apply(ks []SealedKey, bundles []SignedBundle) ([]SealedKey, error) {
	standing := append(slices.Clone(ks), t.Add...)
	for i, m := range t.Change {
		if !slices.ContainsFunc(KeyUpdate{Change: t.Change[:i]}.after(standing), func(k SealedKey) bool { return k.ID == m.ID && k.Role == m.Role && k.State == m.From }) {
			return nil, watchword.Refuse(watchword.Conflict, "the %s key %s is not %s any more", m.Role, m.ID, m.From)
		}
	}
	var version token.BundleVersion
	for _, b := range bundles {
		if !slices.Contains(t.DropBundles, b.Version) && b.Version.NewerThan(version) {
			version = b.Version
		}
	}
	for _, b := range t.Bundles {
		if !b.Version.NewerThan(version) {
			return nil, watchword.Refuse(watchword.Conflict, "a trust bundle of this version or a later one exists")
		}
		version = b.Version
	}
	return t.after(ks), nil
}

// after returns the keys after an update.
func (t KeyUpdate) after(ks []SealedKey) []SealedKey {
	out := append(slices.Clone(ks), t.Add...)
	for _, m := range t.Change {
		for i := range out {
			k := &out[i]
			if k.ID != m.ID || k.Role != m.Role {
				continue
			}
			k.State, k.Starts, k.Ends = m.To, m.Starts, m.Ends
			if m.Private != nil {
				k.Private = m.Private
			}
			if !m.To.Valid() {
				k.Private = nil
			}
		}
	}
	return out
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
