package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	raw, err := d.fetchTrust(ctx)
	if err != nil {
		return err
	}
	known := d.trust.Load()
	t, err := token.VerifyNextTrust(string(raw), *known, d.now())
	if err != nil {
		return err
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
// does not know yet, whoever answers there: a bundle carries its own proof.
func (d *Device) fetchTrust(ctx context.Context) ([]byte, error) {
	r := rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle}
	a, err := (&rest.Client{Base: d.id.HTTPS, HTTP: d.client.HTTP}).Do(ctx, r)
	if _, unknown := errors.AsType[*tls.CertificateVerificationError](err); unknown {
		var shown []*x509.Certificate
		a, err = (&rest.Client{Base: d.id.HTTPS, HTTP: d.stranger(&shown)}).Do(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return a.Body, nil
}

// writeAnchors keeps what other clients may trust the server by.
func (d *Device) writeAnchors(t *token.Trust) error {
	var ca []byte
	for _, der := range t.CA {
		ca = append(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return durable.WriteFile(d.path(caFile), ca, 0o644)
}
