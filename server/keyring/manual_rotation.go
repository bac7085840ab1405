package keyring

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// Rotate creates a role's next key, which is published now and signs after the overlap. With atOnce the next key, which is
// created if there is none, signs now, and verifiers must fetch the newest keys. A root always replaces the old one at
// once, and the old one signs bundles beside it for a time. It returns the key that is next, or active.
//
// Codes: not_found for an unknown role; conflict if a next key waits already, two roots sign, or the root that would have
// to sign the bundle is offline.
func (r *Rotator) Rotate(ctx context.Context, by audit.Actor, role Role, atOnce bool, now time.Time) (Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	if !slices.Contains(Roles, role) {
		return Info{}, watchword.Refuse(watchword.NotFound, "role must be root, ca, issuer, command, time or log, not %q", role)
	}
	if ks.rootOffline() {
		return Info{}, watchword.Refuse(watchword.Conflict, "the root key is offline: bundles that it signs in advance publish a new key (watchword key plan)")
	}
	waiting := keysOf(ks.all, role, Next)
	switch {
	case role == Root && len(keysOf(ks.all, Root, Retiring)) > 0:
		return Info{}, watchword.Refuse(watchword.Conflict, "two roots sign already: revoke the older one first (watchword key revoke), or wait until it has expired")
	case len(waiting) > 0 && !atOnce:
		return Info{}, watchword.Refuse(watchword.Conflict, "a next %s key exists already, and signs from %s; --now activates it at once", role, waiting[0].Starts.UTC().Format(time.RFC3339))
	}
	var t KeyUpdate
	var rotated SealedKey
	switch {
	case len(waiting) > 0:
		rotated = waiting[0]
		t.Change = replaceActive(ks.all, rotated, now)
	case atOnce || role == Root:
		s, err := r.newKey(role, Active, now, now)
		if err != nil {
			return Info{}, err
		}
		rotated, t.Add, t.Change = s, []SealedKey{s}, retire(ks.all, role, now)
	default:
		s, err := r.newKey(role, Next, now, now.Add(r.opts.Overlap))
		if err != nil {
			return Info{}, err
		}
		rotated, t.Add = s, []SealedKey{s}
	}
	if err := r.apply(ctx, by, t, "", now); err != nil {
		return Info{}, err
	}
	return r.info(rotated.ID, role), nil
}

// Revoke invalidates a key at once, and everything that it signed. If it was the active key, the next key signs now, or a
// new one is created. An active root cannot be revoked, because devices verify by it: rotate it first, and revoke the old
// one when devices know the new one.
//
// Codes: not_found; conflict for the active root and for a key that is not valid any more.
func (r *Rotator) Revoke(ctx context.Context, by audit.Actor, id watchword.KeyID, reason string, now time.Time) (Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	i := slices.IndexFunc(ks.all, func(s SealedKey) bool { return s.ID == id && s.Role != Data })
	if i < 0 {
		return Info{}, watchword.Refuse(watchword.NotFound, "key %q not found", id)
	}
	key := ks.all[i]
	switch {
	case !key.State.Valid():
		return Info{}, watchword.Refuse(watchword.Conflict, "the key is %s already", key.State)
	case key.Role == Root && key.State == Active:
		return Info{}, watchword.Refuse(watchword.Conflict, "devices trust the active root: rotate it first, and revoke the old one when they have the new bundle")
	}
	t := KeyUpdate{Change: []StateChange{{Role: key.Role, ID: id, From: key.State, To: Revoked, Starts: key.Starts, Ends: now}}}
	if key.State == Active {
		if waiting := keysOf(ks.all, key.Role, Next); len(waiting) > 0 {
			t.Change = append(t.Change, StateChange{Role: key.Role, ID: waiting[0].ID, From: Next, To: Active, Starts: now})
		} else {
			s, err := r.newKey(key.Role, Active, now, now)
			if err != nil {
				return Info{}, err
			}
			t.Add = []SealedKey{s}
		}
	}
	if err := r.apply(ctx, by, t, reason, now); err != nil {
		return Info{}, err
	}
	return r.info(id, key.Role), nil
}

func (r *Rotator) info(id watchword.KeyID, role Role) Info {
	for _, s := range r.ring.state.Load().all {
		if s.ID == id && s.Role == role {
			return s.info()
		}
	}
	return Info{}
}

// MaxPlannedBundles is the maximum number of bundles that may be signed in advance: two years.
const MaxPlannedBundles = 24

// PlanBundles returns the future trust bundles for an offline root to sign, and creates the keys that will sign during
// them. Every root that a bundle names must sign its payload unchanged; [Rotator.ImportBundles] imports the result. A later
// plan replaces an earlier one.
//
// Codes: bad_request for an invalid count; conflict if the root is not offline.
func (r *Rotator) PlanBundles(ctx context.Context, by audit.Actor, count int, now time.Time) ([]PlannedBundle, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	if count < 1 || count > MaxPlannedBundles {
		return nil, watchword.RefuseField("count", "must lie between 1 and %d", MaxPlannedBundles)
	}
	if !ks.rootOffline() {
		return nil, watchword.Refuse(watchword.Conflict, "the root key is on this server, which signs bundles when they are needed")
	}
	until := now.Add(time.Duration(count)*bundleRenewBefore + r.opts.Overlap)
	var t KeyUpdate
	for _, role := range Roles {
		every := r.opts.signingPeriod(role)
		if every == 0 {
			continue
		}
		last := append(keysOf(ks.all, role, Active), keysOf(ks.all, role, Next)...)
		at := latest(last[len(last)-1].Starts.Add(every), now.Add(r.opts.Overlap))
		for ; at.Before(until); at = at.Add(every) {
			s, err := r.newKey(role, Next, now, at)
			if err != nil {
				return nil, err
			}
			t.Add = append(t.Add, s)
		}
	}
	if err := r.apply(ctx, by, t, "", now); err != nil {
		return nil, err
	}
	first := lastNumber(r.ring.state.Load().bundles, r.ring.Epoch()) + 1
	return r.ring.state.Load().planBundles(r.ring.instance, r.opts.Schedule, r.opts.BundleInfo, first, count, now)
}

// ImportBundles imports bundles that were signed offline: each signed by every root that it names, with valid keys of this
// ring, and with a greater version than the one before. The first must name every key that signs now. If one is invalid,
// none is imported.
//
// Codes: those of [token.VerifyNextTrust]; bundle_invalid; conflict.
func (r *Rotator) ImportBundles(ctx context.Context, by audit.Actor, raws []string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	if len(raws) == 0 || len(raws) > MaxPlannedBundles {
		return watchword.RefuseField("bundles", "must be 1 to %d", MaxPlannedBundles)
	}
	known := token.Trust{Issuer: r.ring.Issuer(), Epoch: r.ring.Epoch(), Roots: ks.public[Root]}
	known.Version = lastNumber(r.ring.state.Load().bundles, known.Epoch)
	var t KeyUpdate
	for _, b := range r.ring.state.Load().bundles {
		if b.Starts.After(now) {
			t.DropBundles = append(t.DropBundles, b.Version)
		}
	}
	for i, raw := range raws {
		next, err := token.ReadTrust(raw)
		if err != nil {
			return err
		}
		if !next.BundleVersion().NewerThan(known.BundleVersion()) {
			return watchword.Refuse(watchword.Conflict, "bundle %d has version %s, and version %s exists already: make a new plan", i+1, next.BundleVersion(), known.BundleVersion())
		}
		if next, err = token.VerifyNextTrust(raw, known, time.Time{}); err != nil {
			return err
		}
		switch {
		case next.Epoch != r.ring.Epoch() || next.Origin() != r.ring.LogOrigin():
			return watchword.Refuse(watchword.BundleInvalid, "bundle %d must be of epoch %d and name the log %s", i+1, r.ring.Epoch(), r.ring.LogOrigin())
		case next.Issuer != r.ring.Issuer() || !sameHistory(next, token.Trust{Issuer: next.Issuer, History: ks.addresses.history, MQTTS: next.MQTTS}):
			return watchword.Refuse(watchword.BundleInvalid, "bundle %d must name the issuer %s and the former ones: make a new plan", i+1, r.ring.Issuer())
		case !ks.trusts(next):
			return watchword.Refuse(watchword.BundleInvalid, "bundle %d names a key that is not an active key of this server", i+1)
		case !next.Expires.After(now):
			return watchword.Refuse(watchword.BundleInvalid, "bundle %d has expired", i+1)
		case i == 0 && next.Issued.After(now.Add(token.Skew)):
			return watchword.Refuse(watchword.BundleInvalid, "the first bundle must not start in the future: no bundle would be published until then")
		case next.Issued.Before(known.Issued):
			return watchword.Refuse(watchword.BundleInvalid, "bundle %d must not start before the previous one", i+1)
		}
		for _, s := range ks.all {
			if i == 0 && s.State == Active && s.Role != Data && !bundleHasKey(next, s) {
				return watchword.Refuse(watchword.BundleInvalid, "the first bundle must name the active %s key", s.Role)
			}
		}
		known = next
		starts := next.Issued
		if i == 0 && starts.After(now) {
			starts = now
		}
		t.Bundles = append(t.Bundles, SignedBundle{Version: next.BundleVersion(), JWS: []byte(raw), Starts: starts, Expires: next.Expires})
	}
	return r.apply(ctx, by, t, "", now)
}

// ExportRoot removes the root's private key from the store. write must store it permanently elsewhere before it returns
// nil. Code: conflict if two roots sign, or it is not here.
func (r *Rotator) ExportRoot(ctx context.Context, by audit.Actor, write func(jwk []byte) error, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	if len(ks.public[Root]) > 1 {
		return watchword.Refuse(watchword.Conflict, "two roots sign: revoke the older one first")
	}
	p := ks.private[ks.root.ID()]
	if p == nil {
		return watchword.Refuse(watchword.Conflict, "the root key is offline already")
	}
	if err := write(append(p.key.JWK(), '\n')); err != nil {
		return err
	}
	at := keysOf(ks.all, Root, Active)[0].Starts
	return r.apply(ctx, by, KeyUpdate{Change: []StateChange{{Role: Root, ID: ks.root.ID(), From: Active, To: Active, Starts: at, Private: []byte{}}}}, "", now)
}

// ImportRoot stores the root's private key again. Code: conflict for another key.
func (r *Rotator) ImportRoot(ctx context.Context, by audit.Actor, jwk []byte, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	key, err := jose.ParsePrivateJWK(jwk, jose.ForSigning)
	if err != nil {
		return err
	}
	old := keysOf(ks.all, Root, Active)[0]
	if key.Public().ID() != old.ID {
		return watchword.Refuse(watchword.Conflict, "the key is %s, and must be the root %s", key.Public().ID(), old.ID)
	}
	sealed, err := sealBytes(r.ring.dataKey, sealContext(old), key.JWK())
	if err != nil {
		return err
	}
	return r.apply(ctx, by, KeyUpdate{Change: []StateChange{{Role: Root, ID: old.ID, From: Active, To: Active, Starts: old.Starts, Private: sealed}}}, "", now)
}
