package keyring

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// RotatorOptions are the options of [NewRotator].
type RotatorOptions struct {
	Schedule
	BundleInfo
	Log *slog.Logger // nil means slog.Default
}

// BundleInfo is the content of a bundle besides the keys.
type BundleInfo struct {
	WebPKI    bool     // the server's certificate is of the public Web PKI
	TLSProxy  bool     // TLS ends at a proxy, with that certificate
	Witnesses []string // witnesses that cosign the log, as verifier keys
	Quorum    int      // number of cosignatures that a device requires
	// MQTTS returns HOST:PORT of MQTT over TLS for a public URL, and empty without it. Bundles have it after a move; nil: none.
	MQTTS func(publicURL string) string
}

// Live passes a change to all receivers: the ring first. It is a [session.Live].
type Live interface {
	Apply(ctx context.Context, c watchword.Change) error
}

// Rotator rotates the keys of a ring: by schedule, by command, and on revocation. It signs the trust bundle, or accepts one
// that was signed elsewhere. It is safe for concurrent use.
type Rotator struct {
	store Store
	ring  *Ring
	live  Live
	opts  RotatorOptions

	mu         sync.Mutex // held during a rotation, until all receivers have processed it
	bundle     string     // the published bundle of the last notification
	lastWarned time.Time  // time of the last warning that a bundle must be signed elsewhere
}

// NewRotator returns the rotator of ring, after it has published a trust bundle. While the clock is not trusted it publishes
// none: a later [Rotator.Step] does what is due. Codes: as Step.
func NewRotator(ctx context.Context, st Store, ring *Ring, live Live, o RotatorOptions, now time.Time) (*Rotator, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	k := &Rotator{store: st, ring: ring, live: live, opts: o, bundle: ring.Bundle(now)}
	if err := k.Step(ctx, now); watchword.CodeOf(err) != watchword.ClockUntrusted {
		return k, err
	}
	return k, nil
}

// OpenRotator returns the rotator of a server that does not run: it rotates nothing by schedule, and bundles state the
// server's certificate as the last one did.
func OpenRotator(st Store, ring *Ring, live Live, now time.Time) (*Rotator, error) {
	k := &Rotator{store: st, ring: ring, live: live, opts: RotatorOptions{Log: slog.Default()}, bundle: ring.Bundle(now)}
	if t, err := k.currentBundle(now); err != nil {
		return nil, err
	} else if t != nil {
		k.opts.BundleInfo = bundleInfo(*t)
	}
	return k, nil
}

// bundleInfo returns what a bundle states besides the keys.
func bundleInfo(t token.Trust) BundleInfo {
	return BundleInfo{WebPKI: t.WebPKI, TLSProxy: t.TLSProxy, Witnesses: t.Witnesses, Quorum: int(t.Quorum), MQTTS: func(string) string { return t.MQTTS }}
}

// Step does what is due: it creates and publishes next keys, activates and retires keys, and signs the bundle again before
// its end, or if one starts in the future because the clock was ahead when it was signed. It replaces the key of an authority
// whose certificate is not valid now at once. While the clock is not trusted it does nothing. Call it about once a minute, and
// after each step of the clock. Codes: conflict if another node was faster, unavailable, clock_untrusted.
func (r *Rotator) Step(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ring.missed.Load() {
		if err := r.notifyKeysChanged(ctx, r.ring.state.Load().version()); err != nil {
			return err
		}
	}
	if r.ring.clock != nil {
		if err := r.ring.clock.Check(); err != nil {
			return err
		}
	}
	ks := r.ring.state.Load()
	known, err := r.currentBundle(now)
	if err != nil {
		return err
	}
	next, changes := r.opts.due(ks.all, now, ks.rootOffline(), func(id watchword.KeyID) bool {
		i := slices.IndexFunc(ks.all, func(s SealedKey) bool { return s.ID == id })
		return known != nil && bundleHasKey(*known, ks.all[i])
	})
	t := KeyUpdate{Change: changes}
	for _, role := range Roles {
		if at, ok := next[role]; ok {
			s, err := r.newKey(role, Next, now, at)
			if err != nil {
				return err
			}
			t.Add = append(t.Add, s)
		}
	}
	if !ks.ca.validAt(now) && !slices.ContainsFunc(changes, func(c StateChange) bool { return c.Role == CA && c.To == Active }) {
		s, err := r.newKey(CA, Active, now, now)
		if err != nil {
			return err
		}
		t.Add, t.Change = append(t.Add, s), append(t.Change, retire(ks.all, CA, now)...)
	}
	return r.apply(ctx, audit.Actor{Tenant: watchword.DefaultTenant}, t, "", now)
}

func (r *Rotator) newKey(role Role, state State, now, starts time.Time) (SealedKey, error) {
	return makeKey(r.ring.dataKey, role, state, r.ring.instance, r.ring.clock, now, starts)
}

// currentBundle returns the newest published bundle, verified; nil if there is none yet.
func (r *Rotator) currentBundle(now time.Time) (*token.Trust, error) {
	b, ok := currentBundle(r.ring.state.Load().bundles, now)
	if !ok {
		return nil, nil
	}
	t, err := token.ReadTrust(string(b.JWS))
	if err != nil {
		return nil, watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is damaged", b.Version)
	}
	return &t, nil
}

// apply writes t, signs the bundle that it makes necessary, and notifies the receivers. It is called with mu held.
func (r *Rotator) apply(ctx context.Context, by audit.Actor, t KeyUpdate, reason string, now time.Time) error {
	before := r.ring.state.Load()
	after, err := r.ring.open(t.after(before.all)) // before the write: keys that cannot be opened are not written
	if err != nil {
		return err
	}
	if after.addresses = before.addresses; t.Issuers != nil {
		after.addresses = newAddresses(r.ring.instance.Issuer, t.Issuers)
	}
	if err := r.signBundles(&t, after, now); err != nil {
		return err
	}
	turns := len(t.Add)+len(t.Change)+len(t.Bundles)+len(t.DropBundles)+len(t.Issuers) > 0
	if turns {
		if err := r.store.RotateKeys(ctx, t, append(auditMove(by, t, r.ring.Issuer(), now), auditEntries(by, t, reason, now)...)...); err != nil {
			return err
		}
		after.bundles = slices.DeleteFunc(append(slices.Clone(before.bundles), t.Bundles...), func(b SignedBundle) bool { return slices.Contains(t.DropBundles, b.Version) })
		r.ring.written.Store(after)
	}
	// A bundle that was signed in advance starts without a write.
	if bundle := r.ring.Bundle(now); turns || bundle != r.bundle {
		if err := r.notifyKeysChanged(ctx, after.version()); err != nil {
			return err
		}
		r.bundle = r.ring.Bundle(now)
	}
	r.warnStale(ctx, r.ring.state.Load(), now)
	return nil
}

// notifyKeysChanged passes the stored keys to the ring and the other receivers. version is that of the keys.
func (r *Rotator) notifyKeysChanged(ctx context.Context, version int64) error {
	return r.live.Apply(ctx, watchword.Change{Kind: watchword.ServerKeysChanged, Version: version})
}

// signBundles adds to t the bundle that the ring needs after it, and drops bundles signed in advance that no longer match.
func (r *Rotator) signBundles(t *KeyUpdate, after *keyState, now time.Time) error {
	all := append(slices.Clone(r.ring.state.Load().bundles), t.Bundles...)
	if after.rootOffline() {
		for _, b := range all {
			if !b.Starts.After(now) {
				continue
			}
			if ahead, err := token.ReadTrust(string(b.JWS)); err != nil || !after.trusts(ahead) {
				t.DropBundles = append(t.DropBundles, b.Version)
			}
		}
		return nil
	}
	want := after.bundle(r.ring.instance, r.opts.BundleInfo, lastNumber(all, r.ring.instance.Epoch)+1, now)
	// With the root here nothing is signed ahead: a bundle of the future was signed while the clock was ahead, or the root lived
	// offline. Devices that have it take a later one only by its version.
	ahead := slices.ContainsFunc(all, func(b SignedBundle) bool { return b.Starts.After(now.Add(token.Skew)) })
	if b, ok := currentBundle(all, now); ok && !ahead && now.Before(b.Expires.Add(-bundleRenewAfter)) {
		if known, err := token.ReadTrust(string(b.JWS)); err == nil && sameTrust(known, want) {
			return nil
		}
	}
	for _, b := range all {
		if b.Starts.After(now) {
			t.DropBundles = append(t.DropBundles, b.Version)
		}
	}
	b, err := after.signBundle(want)
	t.Bundles = append(t.Bundles, b)
	return err
}

// trusts reports whether every key that a bundle contains is valid.
func (k *keyState) trusts(t token.Trust) bool {
	named := append(slices.Clone(t.Roots), t.Issuers...)
	named = append(append(append(named, t.Command...), t.Time...), t.Log...)
	for _, p := range named {
		if !slices.ContainsFunc(k.all, func(s SealedKey) bool { return s.ID == p.ID() && s.State.Valid() }) {
			return false
		}
	}
	for _, der := range t.CAs {
		if !slices.ContainsFunc(k.anchors, func(a []byte) bool { return slices.Equal(a, der) }) {
			return false
		}
	}
	return true
}

// staleReason returns why the published bundle must be replaced by one of an offline root; empty if it need not.
func (r *Rotator) staleReason(ks *keyState, now time.Time) string {
	if !ks.rootOffline() {
		return ""
	}
	b, ok := currentBundle(r.ring.state.Load().bundles, now)
	if !ok {
		return "no trust bundle was signed"
	}
	t, err := token.ReadTrust(string(b.JWS))
	if err != nil {
		return "the trust bundle is damaged"
	}
	for _, s := range ks.all {
		if s.State == Active && s.Role != Data && !bundleHasKey(t, s) {
			return "it does not name the " + string(s.Role) + " key that signs"
		}
	}
	if !slices.Equal(t.Witnesses, r.opts.Witnesses) || t.Quorum != int64(r.opts.Quorum) {
		return "it names other witnesses of the log than the configuration"
	}
	for _, s := range ks.all {
		if s.State == Revoked && bundleHasKey(t, s) {
			return "it names the " + string(s.Role) + " key that was revoked"
		}
	}
	if !now.Before(b.Expires.Add(-bundleRenewAfter / 2)) {
		return "it ends soon, and no later one was signed"
	}
	return ""
}

// warnStale logs, at most once an hour, that an offline root must sign.
func (r *Rotator) warnStale(ctx context.Context, ks *keyState, now time.Time) {
	why := r.staleReason(ks, now)
	if why == "" || now.Sub(r.lastWarned) < time.Hour {
		return
	}
	r.lastWarned = now
	r.opts.Log.ErrorContext(ctx, "the root lives offline, and must sign a trust bundle: watchword key plan", slog.String("why", why))
}

// auditKind is the kind of audit entry of each step.
var auditKind = map[State]string{Active: audit.KeyActivate, Retiring: audit.KeyRetire, Gone: audit.KeyErase, Revoked: audit.KeyRevoke}

func auditEntries(by audit.Actor, t KeyUpdate, reason string, now time.Time) (out []audit.Entry) {
	stamp := func(at time.Time) string { return at.UTC().Format(time.RFC3339) }
	for _, s := range t.Add {
		out = append(out, by.DoneEntry(audit.KeyCreate, string(s.ID), now, auditData(s, map[string]string{"state": string(s.State), "starts": stamp(s.Starts)})))
	}
	for _, m := range t.Change {
		data := map[string]string{"role": string(m.Role), "before": string(m.From), "after": string(m.To)}
		if !m.Ends.IsZero() {
			data["ends"] = stamp(m.Ends)
		}
		if m.To == Revoked && reason != "" {
			data["reason"] = reason
		}
		kind := auditKind[m.To]
		if m.From == m.To { // a root that is exported or imported
			kind, data["private"] = audit.KeyMove, "here"
			if len(m.Private) == 0 {
				data["private"] = "offline"
			}
		}
		out = append(out, by.DoneEntry(kind, string(m.ID), now, data))
	}
	for _, b := range t.Bundles {
		out = append(out, by.DoneEntry(audit.BundleSign, "", now, map[string]string{
			"version": strconv.FormatInt(b.Version.Number, 10), "sha256": jose.Hash(b.JWS), "starts": stamp(b.Starts),
		}))
	}
	return out
}

// Info describes a key for display.
type Info struct {
	ID      watchword.KeyID
	Role    Role
	State   State
	Alg     string
	Created time.Time
	Starts  time.Time
	Ends    time.Time // zero: not known yet, or never
	Offline bool
}

func (s SealedKey) info() Info {
	alg := jose.ES256
	if s.Role == Log {
		alg = jose.Ed
	}
	return Info{
		ID: s.ID, Role: s.Role, State: s.State, Alg: alg, Created: s.Created, Starts: s.Starts, Ends: s.Ends,
		Offline: s.State.Valid() && len(s.Private) == 0,
	}
}

// Status describes the ring for display.
type Status struct {
	Keys           []Info
	Pin            string
	Version        token.BundleVersion // of the published bundle
	BundleExpires  time.Time
	PlannedBundles int    // bundles signed in advance
	Stale          string // why an offline root must sign a bundle; empty if it need not
}

// Status returns the valid keys, and those that are not valid any more, oldest first.
func (r *Rotator) Status(now time.Time) Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	st := Status{Pin: token.TrustPin(ks.root), Stale: r.staleReason(ks, now)}
	for _, s := range ks.all {
		if s.Role == Data {
			continue
		}
		st.Keys = append(st.Keys, s.info())
	}
	if b, ok := currentBundle(r.ring.state.Load().bundles, now); ok {
		st.Version, st.BundleExpires = b.Version, b.Expires
	}
	for _, b := range r.ring.state.Load().bundles {
		if b.Starts.After(now) {
			st.PlannedBundles++
		}
	}
	return st
}
