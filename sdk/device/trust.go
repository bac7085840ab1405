package device

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// renewTrust asks for the newest trust bundle, which a root that this device
// knows must have signed, beside every root that it names.
func (d *Device) renewTrust(ctx context.Context) error {
	raw, proved, err := d.fetchTrust(ctx)
	if err != nil {
		return err
	}
	known := d.trust.Load()
	t, err := token.VerifyNextTrust(string(raw), *known, d.now())
	switch {
	case proved && err != nil:
		return err
	case err != nil:
		return watchword.Because(err, watchword.Unavailable, "who answers there has no certificate that counts, and shows no trust bundle that does (%s)", watchword.CodeOf(err))
	case !proved && t.Version <= known.Version: // anybody may show what is public
		return watchword.Refuse(watchword.Unavailable, "who answers there has no certificate that counts, and shows no newer trust bundle")
	}
	if t.Version > known.Version {
		if d.over(t.Expires) {
			return watchword.Refuse(watchword.BundleInvalid, "the trust bundle was over before this device started")
		}
		if err := durable.WriteFile(d.path(trustFile), raw, 0o600); err != nil {
			return err
		}
		if err := d.writeAnchors(&t); err != nil {
			return err
		}
		if err := d.use(&t); err != nil {
			return err
		}
		d.o.Log.Info("a newer trust bundle", slog.Int64("version", t.Version))
	}
	return d.repin(d.trust.Load()) // by the bundle that is kept: another of the same version is not
}

// repin goes by the newest root from now on. The bundle on the disk names the old
// one too, so that a power cut between leaves a folder that opens.
func (d *Device) repin(t *token.Trust) error {
	pin := token.Pin(t.Root[len(t.Root)-1])
	if pin == d.id.Pin || pin == d.pinned {
		return nil
	}
	id := *d.id // others read d.id meanwhile; nobody but the next start reads its pin
	id.Pin = pin
	if err := writeIdentity(d.dir, &id); err != nil {
		return err
	}
	d.pinned = pin
	return nil
}

// fetchTrust asks the server; and, where its authority is one that this device
// does not know yet, whoever answers there: a bundle carries its own proof. proved
// reports whether the server's certificate counts.
func (d *Device) fetchTrust(ctx context.Context) (raw []byte, proved bool, err error) {
	proved = true
	r := rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle}
	a, err := d.client.Bare().Do(ctx, r)
	if uncertified(err) {
		c, _ := d.stranger(d.id.HTTPS)
		a, err = c.Do(ctx, r)
		proved = false
	}
	if err != nil {
		return nil, proved, err
	}
	return a.Body, proved, nil
}

// uncertified reports whether an error says that who answers has no certificate that
// the trust bundle vouches for: the server's authority may have changed.
func uncertified(err error) bool {
	_, is := errors.AsType[*tls.CertificateVerificationError](err)
	return is
}

// writeAnchors keeps what other clients may trust the server by.
func (d *Device) writeAnchors(t *token.Trust) error {
	var ca []byte
	for _, der := range t.CA {
		ca = append(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return durable.WriteFile(d.path(caFile), ca, 0o644)
}
