package enroll

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/token"
)

// bundleRenew is how long before its end a bundle is signed anew.
const bundleRenew = 60 * 24 * time.Hour

// Bundle returns the trust bundle of ring as it shall be published now: the
// stored one while it says what the ring says and lasts, else a new one with the
// next version, signed by the root and stored first. webPKI says whether the
// server's certificate is one of the public Web PKI.
func Bundle(ctx context.Context, st keyring.Store, ring *keyring.Ring, webPKI bool, now time.Time) (string, error) {
	want := token.Trust{
		Issuer: ring.Issuer(), Version: 1, Epoch: ring.Epoch(), Root: ring.Public(keyring.Root), Issuers: ring.Public(keyring.Issuer),
		Command: ring.Public(keyring.Command), Time: ring.Public(keyring.Time), Log: ring.Public(keyring.Log),
		CA: [][]byte{ring.CA()}, WebPKI: webPKI, Issued: now, Expires: now.Add(token.TrustLife),
	}
	stored, err := st.Bundle(ctx)
	switch code := watchword.CodeOf(err); {
	case code == watchword.NotFound:
	case code != "":
		return "", err
	default:
		want.Version = stored.Version + 1
		known, err := token.VerifyTrust(string(stored.JWS), token.Pin(ring.Signer(keyring.Root).Public()), now)
		if err == nil && sameTrust(known, want) && now.Before(stored.Expires.Add(-bundleRenew)) {
			return string(stored.JWS), nil
		}
	}
	jws, err := token.SignTrust(ring.Signer(keyring.Root), want)
	if err != nil {
		return "", err
	}
	e := audit.Actor{Tenant: watchword.DefaultTenant}.Did(audit.BundleSign, "", now, map[string]string{
		"version": strconv.FormatInt(want.Version, 10), "sha256": jose.Hash([]byte(jws)),
	})
	return jws, st.SaveBundle(ctx, keyring.SignedBundle{Version: want.Version, JWS: []byte(jws), Expires: want.Expires}, e)
}

func sameTrust(a, b token.Trust) bool {
	same := func(x, y []*jose.PublicKey) bool {
		return slices.EqualFunc(x, y, func(k, l *jose.PublicKey) bool { return k.ID() == l.ID() })
	}
	return a.Issuer == b.Issuer && a.Epoch == b.Epoch && a.WebPKI == b.WebPKI &&
		same(a.Root, b.Root) && same(a.Issuers, b.Issuers) && same(a.Command, b.Command) && same(a.Time, b.Time) && same(a.Log, b.Log) &&
		slices.EqualFunc(a.CA, b.CA, bytes.Equal)
}
