package keyring_test

import (
	"slices"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// The trust bundle of another tenant says what the default tenant's says, but for the issuer, under the same root and version; it
// follows each new version, and there is none that an offline root has not signed.
func TestATenantsBundleHasItsIssuer(t *testing.T) {
	h := newRingFixture(t)
	of := func(tenant watchword.TenantID) token.Trust {
		t.Helper()
		raw, err := h.ring.TenantBundle(tenant, h.now)
		h.must(err)
		b, err := token.VerifyTrust(raw, token.TrustPin(h.ring.Root()), h.now)
		h.must(err)
		if again, err := h.ring.TenantBundle(tenant, h.now); err != nil || again != raw {
			t.Errorf("asked for again, the bundle of %s is another one: %v", tenant, err)
		}
		return b
	}
	agree := func() {
		t.Helper()
		stored, own, other := h.bundle(), of(watchword.DefaultTenant), of("other")
		if own.Issuer != issuer || other.Issuer != issuer+"/t/other" {
			t.Errorf("the issuers are %s and %s", own.Issuer, other.Issuer)
		}
		for _, b := range []token.Trust{own, other} {
			if b.Version != stored.Version || b.Epoch != stored.Epoch || !b.Expires.Equal(stored.Expires) || !slices.Equal(ids(b.Issuers), ids(stored.Issuers)) || !slices.Equal(ids(b.Log), ids(stored.Log)) {
				t.Errorf("%s: version %d says %v, want %d and %v", b.Issuer, b.Version, ids(b.Issuers), stored.Version, ids(stored.Issuers))
			}
		}
	}
	agree()
	_, err := h.k.Rotate(t.Context(), by, keyring.Issuer, false, h.now)
	h.must(err)
	agree()
	chain, err := h.k.BundleChain("other", start, h.now, h.now)
	h.must(err)
	for _, raw := range chain {
		if b, err := token.ReadTrust(raw); err != nil || b.Issuer != issuer+"/t/other" {
			t.Errorf("the chain has a bundle of %q: %v", b.Issuer, err)
		}
	}
	h.must(h.k.ExportRoot(t.Context(), by, func([]byte) error { return nil }, h.now))
	h.restart()
	_, err = h.ring.TenantBundle("other", h.now)
	h.wants(watchword.Unavailable, err)
	_, err = h.k.BundleChain("other", start, h.now, h.now)
	h.wants(watchword.Unavailable, err)
	_, err = h.ring.TenantBundle(watchword.DefaultTenant, h.now)
	h.must(err)
}
