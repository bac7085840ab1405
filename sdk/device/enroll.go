package device

import (
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
	"github.com/watchword-iot/watchword/token"
)

// Enroll generates the device's keys, if it has none, and enrolls them with a one-time link. It sends the code only after
// it has verified the trust bundle by the pin of the link, and the TLS certificate by the bundle. Calling it again with the
// same link, after success or after a crash at any point, has the same result.
//
// Codes: bad_request for an invalid link; conflict if the device is enrolled by another link; pin_mismatch, bundle_invalid,
// peer_untrusted if the server is not the link's; code_invalid, rate_limited, unavailable.
func (d *Device) Enroll(ctx context.Context, link string) error {
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the state folder was opened for reading: the device cannot enroll")
	}
	server, code, pin, err := token.ParseEnrollmentLink(link)
	if err != nil {
		return err
	}
	sum := token.CodeDigest(code)
	hash := base64.RawURLEncoding.EncodeToString(sum[:])
	if d.identity != nil {
		if d.identity.CodeHash == hash {
			return nil
		}
		return watchword.Refuse(watchword.Conflict, "this folder is enrolled as %q already; a new enrollment needs new keys, so a new folder", d.identity.ID)
	}
	if err := d.makeKeys(); err != nil {
		return err
	}
	t, raw, err := d.verifyServer(ctx, server, pin)
	if err != nil {
		return err
	}
	id, err := d.register(ctx, server, code, hash, t)
	if watchword.CodeOf(err) == watchword.ProofInvalid && d.syncFirstTime(ctx, server, t) {
		id, err = d.register(ctx, server, code, hash, t) // only its time was refused
	}
	if err != nil {
		return err
	}
	id.CodeHash, id.Pin = hash, pin
	return d.persist(id, raw, t)
}

func (d *Device) makeKeys() error {
	for _, k := range []struct {
		file, curve string
		use         jose.Use
		have        bool
	}{{signFile, d.opts.SignCurve, jose.ForSigning, d.signer.Load() != nil}, {sealFile, d.opts.SealCurve, jose.ForEncryption, d.decrypter.Load() != nil}} {
		if k.have {
			continue
		}
		if k.curve == "" {
			k.curve = jose.P256
		}
		if err := d.ensureKey(k.file, k.curve, k.use); err != nil {
			return err
		}
	}
	return d.loadKeys()
}

// verifyServer fetches the trust bundle from the unauthenticated server and verifies that it is the server of the link.
func (d *Device) verifyServer(ctx context.Context, server, pin string) (*token.Trust, string, error) {
	c, peerCerts := d.unverifiedClient(server)
	a, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return nil, "", err
	}
	t, err := token.VerifyTrust(string(a.Body), pin, time.Time{})
	if err != nil {
		return nil, "", tlstrust.NotABundle(err)
	}
	if d.nowWithTrust(&t).IsZero() { // no clock, or one that is earlier than times signed by the root
		d.syncFirstTime(ctx, server, &t)
	}
	if at := d.nowWithTrust(&t); !at.IsZero() {
		if t, err = token.VerifyTrust(string(a.Body), pin, at); err != nil {
			return nil, "", err
		}
	}
	return &t, string(a.Body), tlstrust.CheckPeer(peerCerts(), server, &t, d.nowWithTrust(&t))
}

// syncFirstTime requests signed time from a server before enrollment, and reports whether the device's time has changed.
// Without an answer the device continues unchanged.
func (d *Device) syncFirstTime(ctx context.Context, server string, t *token.Trust) bool {
	if !d.clock.requestMu.lock(ctx) {
		return false
	}
	defer d.clock.requestMu.unlock()
	return d.trySyncTime(ctx, server, t)
}

// register sends the code and the public keys, over a connection that the bundle vouches for.
func (d *Device) register(ctx context.Context, server, code, hash string, t *token.Trust) (*identity, error) {
	tr, err := d.transportFor(t)
	if err != nil {
		return nil, err
	}
	defer tr.CloseIdleConnections()
	proof, err := token.SignEnrollment(d.signer.Load(), t.Issuer, hash, d.decrypter.Load().Public().ID(), d.bestTimeWithTrust(t))
	if err != nil {
		return nil, err
	}
	var out api.EnrollResponse
	_, err = rest.New(server, tr, nil).JSON(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/enroll"}, api.EnrollRequest{
		Code: code, Proof: proof, Keys: api.NamedKeys{PublicKeys: api.PublicKeys{Sign: d.signer.Load().Public().JWK(), Seal: d.decrypter.Load().Public().JWK()}},
	}, &out)
	if err != nil {
		return nil, err
	}
	return newIdentity(out, t)
}

// newIdentity returns the identity of a server's answer, if it names the issuer of the trust bundle. Code: issuer_mismatch.
func newIdentity(r api.EnrollResponse, t *token.Trust) (*identity, error) {
	if r.Issuer != t.Issuer || !watchword.ValidName(string(r.ID)) || r.HTTPS == "" {
		return nil, watchword.Refuse(watchword.IssuerMismatch, "issuer of the answer must be the issuer of the trust bundle")
	}
	return &identity{ID: r.ID, Labels: r.Labels, Issuer: r.Issuer, TokenEndpoint: r.TokenEndpoint, HTTPS: r.HTTPS, MQTTS: r.MQTTS}, nil
}

// persist writes all files, the identity last: it marks the device as enrolled.
func (d *Device) persist(id *identity, bundle string, t *token.Trust) error {
	if err := d.writeAnchors(t); err != nil {
		return err
	}
	if err := durable.WriteFile(d.path(trustFile), []byte(bundle), 0o600); err != nil {
		return err
	}
	// A checkpoint of another server's log would make every log of this server look inconsistent.
	if err := os.Remove(d.path(checkpointFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := newJournal(durable.OS{}, d.path(journalFile), d.counters); err != nil {
		return err
	}
	if err := writeIdentity(d.dir, id); err != nil {
		return err
	}
	d.identity = id
	return d.prepare()
}
