package keyring

import (
	"bytes"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// How long before its end a bundle is replaced. Bundles that were signed in advance overlap by the same time.
const (
	bundleRenewAfter  = 60 * 24 * time.Hour
	bundleRenewBefore = token.TrustLifetime - bundleRenewAfter
)

// bundle returns the bundle with the keys of k, valid from at on.
func (k *keyState) bundle(f Instance, n BundleInfo, version int64, at time.Time) token.Trust {
	issuer, mqtts := k.addresses.set.URL(), ""
	if n.MQTTS != nil {
		mqtts = n.MQTTS(issuer)
	}
	return token.Trust{
		Issuer: issuer, History: k.addresses.history, MQTTS: mqtts, Version: version, Epoch: f.Epoch, LogOrigin: f.LogOrigin, Roots: k.public[Root], Issuers: k.public[Issuer],
		Command: k.public[Command], Time: k.public[Time], Log: k.public[Log],
		CAs: k.anchors, WebPKI: n.WebPKI, TLSProxy: n.TLSProxy, Witnesses: n.Witnesses, Quorum: int64(n.Quorum), Issued: at, Expires: at.Add(token.TrustLifetime),
	}
}

// signBundle signs a bundle with every root that it names. Code: key_missing if one is offline.
func (k *keyState) signBundle(t token.Trust) (SignedBundle, error) {
	var roots []*jose.Signer
	for _, r := range t.Roots {
		s, err := k.signer(r.ID())
		if err != nil {
			return SignedBundle{}, err
		}
		roots = append(roots, s)
	}
	raw, err := token.SignTrust(t, roots...)
	return SignedBundle{Version: t.BundleVersion(), JWS: []byte(raw), Starts: t.Issued, Expires: t.Expires}, err
}

// rootOffline reports whether the private key of a root that must sign bundles is not here.
func (k *keyState) rootOffline() bool {
	for _, r := range k.public[Root] {
		if k.private[r.ID()] == nil {
			return true
		}
	}
	return false
}

// currentBundle returns the newest of bundles, which are sorted, that has started.
func currentBundle(bundles []SignedBundle, now time.Time) (SignedBundle, bool) {
	for _, b := range slices.Backward(bundles) {
		if !now.Before(b.Starts) {
			return b, true
		}
	}
	return SignedBundle{}, false
}

// lastNumber returns the highest number among the bundles of an epoch; 0 for none.
func lastNumber(bundles []SignedBundle, epoch int64) (n int64) {
	for _, b := range bundles {
		if b.Version.Epoch == epoch {
			n = max(n, b.Version.Number)
		}
	}
	return n
}

// BundleChain returns the bundles that a later reader needs to verify what was signed from one time to another, and what is
// signed now: those of that time, the current one, and between them each that names other roots, so that each can be
// verified with the one before. For another tenant than the default one they are signed now, with its issuer in them.
// Codes: not_found; unavailable if a root that must sign is offline or erased.
func (r *Rotator) BundleChain(tenant watchword.TenantID, from, until, now time.Time) (out []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first, ok := currentBundle(r.ring.state.Load().bundles, from)
	last, ok2 := currentBundle(r.ring.state.Load().bundles, now)
	if !ok || !ok2 {
		return nil, watchword.Refuse(watchword.NotFound, "no trust bundle of that time exists")
	}
	var roots []*jose.PublicKey
	for _, b := range r.ring.state.Load().bundles {
		if first.Version.NewerThan(b.Version) || b.Version.NewerThan(last.Version) {
			continue
		}
		t, err := token.ReadTrust(string(b.JWS))
		if err != nil {
			return nil, err
		}
		rotated := !slices.EqualFunc(t.Roots, roots, func(a, b *jose.PublicKey) bool { return a.ID() == b.ID() })
		if roots = t.Roots; rotated || b.Version == last.Version || !b.Starts.After(until) {
			if b, err = r.ring.forTenant(r.ring.state.Load(), b, tenant); err != nil {
				return nil, err
			}
			out = append(out, string(b.JWS))
		}
	}
	return out, nil
}

func sameTrust(a, b token.Trust) bool {
	same := func(x, y []*jose.PublicKey) bool {
		return slices.EqualFunc(x, y, func(k, l *jose.PublicKey) bool { return k.ID() == l.ID() })
	}
	return a.Issuer == b.Issuer && sameHistory(a, b) && a.Epoch == b.Epoch && a.Origin() == b.Origin() && a.WebPKI == b.WebPKI && a.TLSProxy == b.TLSProxy && a.Quorum == b.Quorum && slices.Equal(a.Witnesses, b.Witnesses) &&
		same(a.Roots, b.Roots) && same(a.Issuers, b.Issuers) && same(a.Command, b.Command) && same(a.Time, b.Time) && same(a.Log, b.Log) &&
		slices.EqualFunc(a.CAs, b.CAs, bytes.Equal)
}

// bundleHasKey reports whether a bundle contains a key. A certificate authority's key is contained as its certificate.
func bundleHasKey(t token.Trust, k SealedKey) bool {
	if k.Role == CA {
		return slices.ContainsFunc(t.CAs, func(der []byte) bool { return bytes.Equal(der, k.Cert) })
	}
	named := map[Role][]*jose.PublicKey{Root: t.Roots, Issuer: t.Issuers, Command: t.Command, Time: t.Time, Log: t.Log}[k.Role]
	return slices.ContainsFunc(named, func(p *jose.PublicKey) bool { return p.ID() == k.ID })
}

// PlannedBundle is a bundle for an offline root to sign. Each root signs exactly the bytes of Payload.
type PlannedBundle struct {
	Epoch   int64             `json:"epoch"`
	Version int64             `json:"ver"`
	Starts  time.Time         `json:"starts"`
	Expires time.Time         `json:"expires"`
	Roots   []watchword.KeyID `json:"roots"`   // roots that must sign
	Payload string            `json:"payload"` // claims as JSON
}

// planBundles returns a sequence of future bundles: each names the keys that sign while it is published, those that are
// still valid, and those that sign within a refresh interval after it.
func (k *keyState) planBundles(f Instance, r Schedule, n BundleInfo, first int64, count int, now time.Time) ([]PlannedBundle, error) {
	var out []PlannedBundle
	for i := range count {
		at := now.Add(time.Duration(i) * bundleRenewBefore)
		until := at.Add(bundleRenewBefore)
		t := (&keyState{addresses: k.addresses}).bundle(f, n, first+int64(i), at)
		for role, to := range map[Role]*[]*jose.PublicKey{Root: &t.Roots, Issuer: &t.Issuers, Command: &t.Command, Time: &t.Time, Log: &t.Log} {
			for _, s := range k.all {
				if s.Role == role && s.State.Valid() && validBetween(k.all, s, at, until.Add(r.Overlap)) {
					pub, err := jose.ParseJWK(s.Public, jose.ForSigning)
					if err != nil {
						return nil, err
					}
					*to = append(*to, pub)
				}
			}
		}
		for _, s := range k.all {
			if s.Role == CA && s.State.Valid() && validBetween(k.all, s, at, until.Add(r.Overlap)) {
				t.CAs = append(t.CAs, s.Cert)
			}
		}
		payload, err := token.TrustPayload(t)
		if err != nil {
			return nil, err
		}
		p := PlannedBundle{Epoch: t.Epoch, Version: t.Version, Starts: t.Issued, Expires: t.Expires, Payload: string(payload)}
		for _, root := range t.Roots {
			p.Roots = append(p.Roots, root.ID())
		}
		out = append(out, p)
	}
	return out, nil
}

// validBetween reports whether s signs, or its signatures are valid, at some time between from and to, if every next key
// begins to sign at its scheduled time.
func validBetween(ks []SealedKey, s SealedKey, from, to time.Time) bool {
	if s.State == Next && !s.Starts.Before(to) {
		return false
	}
	ends := s.Ends
	if s.State != Retiring {
		for _, n := range keysOf(ks, s.Role, Next) { // the key that replaces it
			if n.ID != s.ID && n.Starts.After(s.Starts) {
				ends = removalTime(s.Role, n.Starts)
				break
			}
		}
	}
	return ends.IsZero() || ends.After(from)
}
