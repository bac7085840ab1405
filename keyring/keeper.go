package keyring

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// KeeperOptions is what a keeper needs to know beside the store and the ring.
type KeeperOptions struct {
	Rules
	Named
	// Turned, if not nil, is told what has changed: it is in the store and in the
	// ring by then, and whoever asked gets the answer when it returns.
	Turned func(ctx context.Context, n News)
	Log    *slog.Logger // nil means slog.Default
}

// Named is what a bundle says beside the keys.
type Named struct {
	WebPKI    bool     // the server's certificate is one of the public Web PKI
	Witnesses []string // who cosigns the log, as verifier keys
	Quorum    int      // how many of them a device wants
}

// News is what a turn means to others.
type News struct {
	Revoked []Sealed // keys that count no more, for cause
	Anchors bool     // the own authorities are others
	Bundle  bool     // another trust bundle is published
}

// Keeper turns the keys of a ring: by time, by hand, for cause. It signs the
// trust bundle with them, or has it signed elsewhere. It is safe for concurrent use.
type Keeper struct {
	store Store
	ring  *Ring
	o     KeeperOptions

	mu      sync.Mutex // held over a turn
	bundles []SignedBundle
	last    time.Time // when it was last said that a bundle must be signed elsewhere
}

// NewKeeper returns the keeper of ring, with a trust bundle published. Codes: as
// [Keeper.Step].
func NewKeeper(ctx context.Context, st Store, ring *Ring, o KeeperOptions, now time.Time) (*Keeper, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	k := &Keeper{store: st, ring: ring, o: o}
	var err error
	if k.bundles, err = st.Bundles(ctx); err != nil {
		return nil, err
	}
	return k, k.Step(ctx, now)
}

// OpenKeeper returns the keeper of a house that nobody serves: nothing turns, and
// what the bundle says of the server's certificate stays as it was said last.
func OpenKeeper(ctx context.Context, st Store, ring *Ring, now time.Time) (*Keeper, error) {
	k := &Keeper{store: st, ring: ring, o: KeeperOptions{Log: slog.Default()}}
	var err error
	if k.bundles, err = st.Bundles(ctx); err != nil {
		return nil, err
	}
	if t, err := k.published(now); err != nil {
		return nil, err
	} else if t != nil {
		k.o.Named = Named{t.WebPKI, t.Witnesses, int(t.Quorum)}
	}
	return k, nil
}

// Step does what is due: next keys are made and published, begin to sign, and go;
// the bundle is signed anew before its end. Call it each minute or so. Codes:
// conflict where another node was faster, unavailable.
func (k *Keeper) Step(ctx context.Context, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ks := k.ring.now.Load()
	known, err := k.published(now)
	if err != nil {
		return err
	}
	next, moves := k.o.due(ks.sealed, now, ks.offline(), func(id watchword.KeyID) bool {
		i := slices.IndexFunc(ks.sealed, func(s Sealed) bool { return s.ID == id })
		return known != nil && lists(*known, ks.sealed[i])
	})
	t := Turn{Move: moves}
	for _, role := range Roles {
		if at, ok := next[role]; ok {
			s, err := k.make(role, Next, now, at)
			if err != nil {
				return err
			}
			t.Add = append(t.Add, s)
		}
	}
	return k.turn(ctx, audit.Actor{Tenant: watchword.DefaultTenant}, t, "", now)
}

func (k *Keeper) make(role Role, state State, now, starts time.Time) (Sealed, error) {
	return makeKey(k.ring.data, role, state, k.ring.Issuer(), now, starts)
}

// published is the bundle of now, read; nil if there is none yet.
func (k *Keeper) published(now time.Time) (*token.Trust, error) {
	b, ok := current(k.bundles, now)
	if !ok {
		return nil, nil
	}
	t, err := token.ReadTrust(string(b.JWS))
	if err != nil {
		return nil, watchword.Because(err, watchword.KeyDamaged, "the trust bundle of version %d is damaged", b.Version)
	}
	return &t, nil
}

// turn carries t out, signs what it makes necessary, and tells. It is called with mu held.
func (k *Keeper) turn(ctx context.Context, by audit.Actor, t Turn, reason string, now time.Time) error {
	before := k.ring.now.Load()
	after, err := k.ring.open(t.after(before.sealed))
	if err != nil {
		return err
	}
	if err := k.sign(&t, after, now); err != nil {
		return err
	}
	n := News{Anchors: !slices.EqualFunc(before.anchors, after.anchors, slices.Equal)}
	if len(t.Add)+len(t.Move)+len(t.Bundles)+len(t.Drop) > 0 {
		if err := k.store.TurnKeys(ctx, t, entries(by, t, reason, now)...); err != nil {
			return err
		}
		for _, m := range t.Move {
			if m.To == Revoked {
				n.Revoked = append(n.Revoked, Sealed{ID: m.ID, Role: m.Role, State: Revoked})
			}
		}
	}
	k.bundles = slices.DeleteFunc(append(k.bundles, t.Bundles...), func(b SignedBundle) bool { return slices.Contains(t.Drop, b.Version) })
	k.ring.now.Store(after)
	if b, ok := current(k.bundles, now); ok {
		text := string(b.JWS)
		old := k.ring.bundle.Swap(&text)
		n.Bundle = old != nil && *old != text
	}
	k.complain(ctx, after, now)
	if k.o.Turned != nil && (n.Anchors || n.Bundle || len(n.Revoked) > 0) {
		k.o.Turned(context.WithoutCancel(ctx), n)
	}
	return nil
}

// sign adds to t the bundle that the ring needs after it, and drops those signed
// ahead that a turn has overtaken.
func (k *Keeper) sign(t *Turn, after *keys, now time.Time) error {
	all := append(slices.Clone(k.bundles), t.Bundles...)
	version := int64(0)
	for _, b := range all {
		version = max(version, b.Version)
	}
	if after.offline() {
		for _, b := range all {
			if !b.Starts.After(now) {
				continue
			}
			if ahead, err := token.ReadTrust(string(b.JWS)); err != nil || !after.holds(ahead) {
				t.Drop = append(t.Drop, b.Version)
			}
		}
		return nil
	}
	want := after.trust(k.ring.founding, k.o.Named, version+1, now)
	if b, ok := current(all, now); ok && now.Before(b.Expires.Add(-bundleRenew)) {
		if known, err := token.ReadTrust(string(b.JWS)); err == nil && sameTrust(known, want) {
			return nil
		}
	}
	for _, b := range all {
		if b.Starts.After(now) {
			t.Drop = append(t.Drop, b.Version)
		}
	}
	b, err := after.sign(want)
	t.Bundles = append(t.Bundles, b)
	return err
}

// holds reports whether every key that a bundle names counts.
func (k *keys) holds(t token.Trust) bool {
	named := append(slices.Clone(t.Root), t.Issuers...)
	named = append(append(append(named, t.Command...), t.Time...), t.Log...)
	for _, p := range named {
		if !slices.ContainsFunc(k.sealed, func(s Sealed) bool { return s.ID == p.ID() && s.State.Counts() }) {
			return false
		}
	}
	for _, der := range t.CA {
		if !slices.ContainsFunc(k.anchors, func(a []byte) bool { return slices.Equal(a, der) }) {
			return false
		}
	}
	return true
}

// stale says why the published bundle needs a root that is not here; empty if it
// does not.
func (k *Keeper) stale(ks *keys, now time.Time) string {
	if !ks.offline() {
		return ""
	}
	b, ok := current(k.bundles, now)
	if !ok {
		return "no trust bundle was signed"
	}
	t, err := token.ReadTrust(string(b.JWS))
	if err != nil {
		return "the trust bundle is damaged"
	}
	for _, s := range ks.sealed {
		if s.State == Active && s.Role != Data && !lists(t, s) {
			return "it does not name the " + string(s.Role) + " key that signs"
		}
	}
	if !slices.Equal(t.Witnesses, k.o.Witnesses) || t.Quorum != int64(k.o.Quorum) {
		return "it names other witnesses of the log than the configuration"
	}
	for _, s := range ks.sealed {
		if s.State == Revoked && lists(t, s) {
			return "it names the " + string(s.Role) + " key that was revoked"
		}
	}
	if !now.Before(b.Expires.Add(-bundleRenew / 2)) {
		return "it ends soon, and no later one was signed"
	}
	return ""
}

// complain logs, at most each hour, that a root that is not here must sign.
func (k *Keeper) complain(ctx context.Context, ks *keys, now time.Time) {
	why := k.stale(ks, now)
	if why == "" || now.Sub(k.last) < time.Hour {
		return
	}
	k.last = now
	k.o.Log.ErrorContext(ctx, "the root lives offline, and must sign a trust bundle: watchword key plan", slog.String("why", why))
}

// kindOf is what the log calls a step.
var kindOf = map[State]string{Active: audit.KeyActivate, Retiring: audit.KeyRetire, Gone: audit.KeyErase, Revoked: audit.KeyRevoke}

func entries(by audit.Actor, t Turn, reason string, now time.Time) (out []audit.Entry) {
	stamp := func(at time.Time) string { return at.UTC().Format(time.RFC3339) }
	for _, s := range t.Add {
		out = append(out, by.Did(audit.KeyCreate, string(s.ID), now, labels(s, map[string]string{"state": string(s.State), "starts": stamp(s.Starts)})))
	}
	for _, m := range t.Move {
		data := map[string]string{"role": string(m.Role), "before": string(m.From), "after": string(m.To)}
		if !m.Ends.IsZero() {
			data["ends"] = stamp(m.Ends)
		}
		if m.To == Revoked && reason != "" {
			data["reason"] = reason
		}
		kind := kindOf[m.To]
		if m.From == m.To { // a root that goes away, or comes back
			kind, data["private"] = audit.KeyMove, "here"
			if len(m.Private) == 0 {
				data["private"] = "offline"
			}
		}
		out = append(out, by.Did(kind, string(m.ID), now, data))
	}
	for _, b := range t.Bundles {
		out = append(out, by.Did(audit.BundleSign, "", now, map[string]string{
			"version": strconv.FormatInt(b.Version, 10), "sha256": jose.Hash(b.JWS), "starts": stamp(b.Starts),
		}))
	}
	return out
}

// Info is a key as people see it.
type Info struct {
	ID      watchword.KeyID
	Role    Role
	State   State
	Alg     string
	Created time.Time
	Starts  time.Time
	Ends    time.Time // zero: not said yet, or never
	Offline bool
}

func (s Sealed) info() Info {
	alg := jose.ES256
	if s.Role == Log {
		alg = jose.Ed
	}
	return Info{
		ID: s.ID, Role: s.Role, State: s.State, Alg: alg, Created: s.Created, Starts: s.Starts, Ends: s.Ends,
		Offline: s.State.Counts() && len(s.Private) == 0,
	}
}

// Status is the ring as people see it.
type Status struct {
	Keys          []Info
	Pin           string
	Version       int64 // of the published bundle
	BundleExpires time.Time
	Ahead         int    // bundles signed ahead
	Stale         string // why a root that is not here must sign a bundle; empty if it need not
}

// Status returns the keys that count, and those that do not any more, oldest first.
func (k *Keeper) Status(now time.Time) Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	ks := k.ring.now.Load()
	st := Status{Pin: token.Pin(ks.root), Stale: k.stale(ks, now)}
	for _, s := range ks.sealed {
		if s.Role == Data {
			continue
		}
		st.Keys = append(st.Keys, s.info())
	}
	if b, ok := current(k.bundles, now); ok {
		st.Version, st.BundleExpires = b.Version, b.Expires
	}
	for _, b := range k.bundles {
		if b.Starts.After(now) {
			st.Ahead++
		}
	}
	return st
}
