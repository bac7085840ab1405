package device

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
	"github.com/watchword-iot/watchword/token"
)

// renewTrust fetches the newest trust bundle. A root that this device knows must have signed it, and so must every root
// that it names.
func (d *Device) renewTrust(ctx context.Context) error {
	raw, proved, err := d.fetchTrust(ctx)
	if err != nil {
		return err
	}
	known := d.trust.Load()
	lost := isLostTrust(known)
	t, err := d.verifyNext(string(raw), known)
	switch {
	case proved && err != nil:
		return errors.Join(err, d.handInTrust(ctx, string(raw), known))
	case err != nil:
		return watchword.Wrap(err, watchword.Unavailable, "the server has no valid certificate, and returned no valid trust bundle (%s)", watchword.CodeOf(err))
	case !proved && !isNewer(&t, known) && !lost: // any peer can send what is public
		return watchword.Refuse(watchword.Unavailable, "the server has no valid certificate, and returned no newer trust bundle")
	}
	if isNewer(&t, known) || lost {
		// A newer bundle counts more than a time that a server signed; only the device's own clock, if it is not plainly wrong,
		// counts more than the bundle.
		if (!isNewer(&t, known) || d.usesOwnClock()) && d.hasExpired(t.Expires) {
			return watchword.Refuse(watchword.BundleInvalid, "the trust bundle expired before this device started")
		}
		if d.lock != nil { // a folder that another process has locked is repaired by that process
			if err := d.storeTrust(raw, &t); err != nil {
				return err
			}
		}
		if err := d.useTrust(&t); err != nil {
			return err
		}
		d.opts.Log.Info("a newer trust bundle", slog.String("version", t.BundleVersion().String()))
		if err := d.dropTimeOutside(&t); err != nil {
			return err
		}
	}
	return d.updateIdentity(d.trust.Load()) // by the stored bundle: another one of the same version is not used
}

// handInTrust hands the device's own bundle to a server whose bundle is of a lower epoch: another server was restored from a
// backup of it, and the bundle, which the root of both signed, stops the old one. It does nothing in any other case.
func (d *Device) handInTrust(ctx context.Context, theirs string, known *token.Trust) error {
	t, err := token.ReadTrust(theirs)
	if err != nil || !known.HasIssuer(t.Issuer) || t.Epoch >= known.Epoch || isLostTrust(known) {
		return nil
	}
	own, err := durable.ReadTrusted(d.path(trustFile), 2*watchword.MaxBundle)
	if err != nil {
		return err
	}
	d.opts.Log.Warn("the server has an older epoch than this device: another server was restored from its backup; it gets the trust bundle of this device",
		slog.Int64("epoch", t.Epoch), slog.Int64("known", known.Epoch))
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPut, Path: "/v1/self/trust", Type: "application/jose", Body: own})
	return err
}

// readTrust returns the folder's trust bundle. If it is missing, damaged, or older than the device has seen, it is lost:
// readTrust then returns one without keys and authorities. Under it nothing is valid except the next bundle that matches
// the pin and is not older than the last one seen.
func (d *Device) readTrust() (t token.Trust, err error) {
	stored := d.counters.values()
	raw, err := durable.ReadTrusted(d.path(trustFile), 2*watchword.MaxBundle)
	if isUntrustedFile(err) {
		return t, err
	}
	if err == nil {
		// It was verified before it was stored; an expired bundle must still lead to the next one.
		t, err = token.VerifyTrust(string(raw), d.identity.Pin, time.Time{})
	}
	if err == nil && stored.bundleVersion().NewerThan(t.BundleVersion()) {
		err = watchword.Refuse(watchword.BundleInvalid, "the version is %s, and must be at least the known version, %s", t.BundleVersion(), stored.bundleVersion())
	}
	if err == nil {
		d.restoreAnchors(&t)
		return t, nil
	}
	d.opts.Log.Error("the trust bundle of the folder is lost; the next one is asked for under the pin, and nothing is obeyed until it came", slog.Any("err", err))
	t = token.Trust{Issuer: d.identity.Issuer, Version: stored.TrustVersion, Epoch: stored.TrustEpoch}
	if first := d.identity.FirstIssuer; first != "" {
		t.History, t.MQTTS = []token.IssuerPeriod{{Issuer: first}, {Issuer: t.Issuer}}, d.identity.MQTTS
	}
	return t, nil
}

// isNewer reports whether a bundle is newer than a known one. The epoch counts first: [token.BundleVersion].
func isNewer(t, known *token.Trust) bool { return t.BundleVersion().NewerThan(known.BundleVersion()) }

// isLostTrust reports whether a bundle is the placeholder of a lost one.
func isLostTrust(t *token.Trust) bool { return t != nil && len(t.Roots) == 0 }

// verifyNext verifies the bundle that follows known. One with a higher version may be outside the time that a server signed, but
// not outside that of the device's own clock.
func (d *Device) verifyNext(raw string, known *token.Trust) (token.Trust, error) {
	if !isLostTrust(known) {
		t, err := token.VerifyNextTrust(raw, *known, d.now())
		if watchword.CodeOf(err) == watchword.BundleInvalid && !d.usesOwnClock() {
			if newer, nerr := token.VerifyNextTrust(raw, *known, time.Time{}); nerr == nil && isNewer(&newer, known) {
				return newer, nil
			}
		}
		return t, err
	}
	t, err := token.VerifyTrust(raw, d.identity.Pin, d.now())
	if err == nil {
		err = t.CheckFollows(*known)
	}
	return t, err
}

// storeTrust writes a bundle, and its number last: the counters are never ahead of the file.
func (d *Device) storeTrust(raw []byte, t *token.Trust) error {
	if err := durable.WriteFile(d.path(trustFile), raw, 0o600); err != nil {
		return err
	}
	if err := d.writeAnchors(t); err != nil {
		return err
	}
	return d.counters.update(func(c *counters) { c.setBundleVersion(t.BundleVersion()) })
}

// restoreAnchors writes the file of certificate authorities if it is missing or differs.
func (d *Device) restoreAnchors(t *token.Trust) {
	if d.lock == nil {
		return
	}
	if b, err := durable.ReadTrusted(d.path(caFile), 4*watchword.MaxBundle); err == nil && bytes.Equal(b, tlstrust.AnchorsPEM(t)) {
		return
	}
	if err := d.writeAnchors(t); err != nil {
		d.opts.Log.Error("the file of the server's authority cannot be mended", slog.Any("err", err))
	}
}

// fetchTrust requests the bundle from the server. If the server's certificate authority is unknown, it requests it without
// authentication, since a bundle proves its own authenticity. proved reports whether the server was authenticated.
func (d *Device) fetchTrust(ctx context.Context) (raw []byte, proved bool, err error) {
	proved = true
	r := rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle}
	a, err := d.client.WithoutTokens().Do(ctx, r)
	if tlstrust.IsUnknownAuthority(err) {
		c, _ := d.unverifiedClient(d.Server())
		a, err = c.Do(ctx, r)
		proved = false
	}
	if err != nil {
		return nil, proved, err
	}
	return a.Body, proved, nil
}

// writeAnchors writes the file of certificate authorities, for other clients of the server.
func (d *Device) writeAnchors(t *token.Trust) error {
	return durable.WriteFile(d.path(caFile), tlstrust.AnchorsPEM(t), 0o644)
}
