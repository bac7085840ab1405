package keyring

import (
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// tenantBundles caches the last signed trust bundles for the issuers of other tenants than the default one.
type tenantBundles struct {
	mu   sync.Mutex
	last map[watchword.TenantID]SignedBundle
}

// TenantBundle returns the current trust bundle of a tenant. The bundle of another tenant than the default one is not
// stored: it is the bundle of the default tenant with the tenant's issuer in it, signed when it is first requested. The
// tenant must exist, since its bundle is cached. Code: unavailable if a root that must sign it is offline.
func (r *Ring) TenantBundle(t watchword.TenantID, now time.Time) (string, error) {
	k := r.state.Load()
	b, _ := currentBundle(k.bundles, now)
	if len(b.JWS) == 0 || t == watchword.DefaultTenant {
		return string(b.JWS), nil
	}
	r.tenantBundles.mu.Lock()
	defer r.tenantBundles.mu.Unlock()
	if last, ok := r.tenantBundles.last[t]; ok && last.Version == b.Version {
		return string(last.JWS), nil
	}
	own, err := r.forTenant(k, b, t)
	if err != nil {
		return "", err
	}
	if r.tenantBundles.last == nil {
		r.tenantBundles.last = map[watchword.TenantID]SignedBundle{}
	}
	r.tenantBundles.last[t] = own
	return string(own.JWS), nil
}

// forTenant returns b for a tenant: signed again with the tenant's issuer in it, unless that is the default tenant's. Code:
// unavailable.
func (r *Ring) forTenant(k *keyState, b SignedBundle, t watchword.TenantID) (SignedBundle, error) {
	if t == watchword.DefaultTenant {
		return b, nil
	}
	trust, err := token.ReadTrust(string(b.JWS))
	if err != nil {
		return b, watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is damaged", b.Version)
	}
	trust = ofTenant(trust, t)
	var roots []*jose.Signer
	for _, root := range trust.Roots {
		s, err := k.signer(root.ID())
		if err != nil {
			return b, watchword.Wrap(err, watchword.Unavailable, "the trust bundle of this tenant cannot be signed: a root that must sign it is offline, or was erased")
		}
		roots = append(roots, s)
	}
	raw, err := token.SignTrust(trust, roots...)
	return SignedBundle{Version: b.Version, JWS: []byte(raw), Starts: b.Starts, Expires: b.Expires}, err
}
