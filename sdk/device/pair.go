package device

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
	"github.com/watchword-iot/watchword/token"
)

// pairingFile (0600) stores the device code while an operator decides, so that the pairing survives a restart of the
// device.
const pairingFile = "pairing.json"

// PairOptions are the options of [Device.Pair]. The zero value is ready to use.
type PairOptions struct {
	// ID is the ID that the device requests; the operator decides. Empty requests none.
	ID watchword.SubjectID
	// Pin is the pin of the server's root, as in enrollment links. Empty means that
	// the public Web PKI vouches for the server, under the host of its current issuer.
	Pin string
	// Show is called with the values that a person must see: once when the pairing begins, and once when it continues after
	// a restart. It must not block.
	Show func(Pairing)
	// Wait waits between two polls; nil means a timer.
	Wait func(ctx context.Context, d time.Duration) error
}

// Pairing is what a device shows while it waits for approval. The operator compares all of Sign with the thumbprint that
// the server shows.
type Pairing struct {
	UserCode    string // XXXX-XXXX
	URI         string // page on which the operator approves
	URIComplete string // the same with the code in it, for a QR code
	Sign, Seal  watchword.KeyID
	Expires     time.Time // by the device's clock
}

// pairingState is a pairing in progress, as stored in the folder.
type pairingState struct {
	Server      string              `json:"server"`
	RequestedID watchword.SubjectID `json:"wish,omitempty"`
	Sign        watchword.KeyID     `json:"sign"`
	Seal        watchword.KeyID     `json:"seal"`
	DeviceCode  string              `json:"device_code"`
	UserCode    string              `json:"user_code"`
	URI         string              `json:"verification_uri"`
	URIComplete string              `json:"verification_uri_complete,omitempty"`
	Interval    *int64              `json:"interval,omitempty"` // seconds
	Expires     time.Time           `json:"expires"`
}

// Polling (RFC 8628 §3.5).
const (
	pairInterval = 5 * time.Second // default, and the increment of slow_down
	pairPollMin  = time.Second     // minimum, even if the server allows less
	pairPollMax  = 5 * time.Minute
)

// Pair generates the device's keys, if it has none, shows a code, and waits until an operator has approved the keys: then
// the device is enrolled, as after [Device.Enroll]. It verifies the server before it sends the request. Calling it again,
// after success or after a crash at any point, continues the pairing.
//
// Codes: bad_request; conflict if the device is enrolled elsewhere, or its keys were used before; pin_mismatch,
// bundle_invalid, peer_untrusted if the server is not the expected one; pairing_rejected, pairing_expired; rate_limited,
// busy, unavailable before the pairing has begun: after that it keeps polling.
func (d *Device) Pair(ctx context.Context, server string, o PairOptions) error {
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the state folder was opened for reading: the device cannot enroll")
	}
	server, err := pairServer(server, &o)
	if err != nil {
		return err
	}
	if d.identity != nil {
		if d.Server() == server {
			return d.forgetPairing()
		}
		return watchword.Refuse(watchword.Conflict, "this folder is enrolled as %q at %s already; a new enrollment needs new keys, so a new folder", d.identity.ID, d.Server())
	}
	if err := d.makeKeys(); err != nil {
		return err
	}
	t, raw, pin, err := d.verifyServerToPair(ctx, server, o.Pin)
	if err != nil {
		return err
	}
	tr, err := d.transportFor(t)
	if err != nil {
		return err
	}
	defer tr.CloseIdleConnections()
	p := pairer{d: d, o: o, trust: t, prover: &rest.Prover{Sign: func(method, uri, nonce, access string) (string, error) {
		return token.SignDPoP(d.signer.Load(), method, uri, nonce, access, d.bestTimeWithTrust(t))
	}}, client: rest.New(server, tr, nil)}
	if err := p.begin(ctx); err != nil {
		return err
	}
	id, err := p.wait(ctx)
	switch watchword.CodeOf(err) {
	case "":
	case watchword.PairingExpired, watchword.PairingRejected:
		return errors.Join(err, d.forgetPairing())
	default:
		return err
	}
	id.CodeHash, id.Pin = token.CodeHashClaim(p.DeviceCode), pin
	if err := d.persist(id, raw, t); err != nil {
		return err
	}
	return d.forgetPairing()
}

// pairServer checks Pair's arguments, and returns the URL without a trailing slash.
func pairServer(server string, o *PairOptions) (string, error) {
	u, err := url.Parse(strings.TrimSpace(server))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", watchword.RefuseField("url", "must be https://HOST:PORT")
	}
	if o.Pin != "" && len(o.Pin) != 43 {
		return "", watchword.RefuseField("pin", "must be 43 characters of base64url; watchword trust pin prints it")
	}
	if o.ID != "" {
		if err := watchword.CheckSubjectID(string(o.ID)); err != nil {
			return "", err
		}
	}
	if o.Show == nil {
		o.Show = func(Pairing) {}
	}
	if o.Wait == nil {
		o.Wait = pause
	}
	return "https://" + u.Host + strings.TrimRight(u.Path, "/"), nil
}

func pause(ctx context.Context, d time.Duration) error {
	sleep(ctx, d)
	return ctx.Err()
}

// verifyServerToPair is [Device.verifyServer]; without a pin it authenticates the server by the public Web PKI, and trusts
// the root that the server names, if the host is that of the issuer.
func (d *Device) verifyServerToPair(ctx context.Context, server, pin string) (*token.Trust, string, string, error) {
	if pin != "" {
		t, raw, err := d.verifyServer(ctx, server, pin)
		return t, raw, pin, err
	}
	if d.opts.NoClock {
		return nil, "", "", watchword.RefuseField("pin", "is required, since this device has no clock to check a public certificate; watchword trust pin prints it")
	}
	c, peerCerts := d.insecureClient(server, &tls.Config{MinVersion: tls.VersionTLS13})
	a, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if tlstrust.IsUnknownAuthority(err) {
		err = watchword.Wrap(err, watchword.PeerUntrusted, "no public CA has certified %s: give the pin of its root, which watchword trust pin prints on the server", server)
	}
	if err != nil {
		return nil, "", "", err
	}
	raw := string(a.Body)
	if pin, err = token.TrustPinOfBundle(raw); err != nil {
		return nil, "", "", err
	}
	t, err := token.VerifyTrust(raw, pin, d.now())
	if err != nil {
		return nil, "", "", err
	}
	if err := tlstrust.CheckPeer(peerCerts(), server, &t, d.now()); err != nil {
		return nil, "", "", err
	}
	// No pin ties the bundle to a server: another host can send its own, with an authority of its own and the issuer of the server
	// that it passes the proofs on to. So the host must be that of the issuer which the proofs name; a former one does not count.
	current := token.Trust{Issuer: t.Issuer}
	return &t, raw, pin, tlstrust.CheckHost(server, &current, d.now())
}

func (d *Device) forgetPairing() error {
	err := os.Remove(d.path(pairingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// pairer sends the requests of a pairing to one server, over connections that its bundle vouches for.
type pairer struct {
	pairingState
	d      *Device
	o      PairOptions
	trust  *token.Trust
	client *rest.Client
	prover *rest.Prover // so that a policy that requires proofs does not prevent pairing
}

func (p *pairer) now() time.Time { return p.d.bestTimeWithTrust(p.trust) }

func (p *pairer) proof(codeHash string) (string, error) {
	return token.SignEnrollment(p.d.signer.Load(), p.trust.Issuer, codeHash, p.d.decrypter.Load().Public().ID(), p.now())
}

// clientID is the requested ID, or else the signing key's thumbprint (RFC 8628 §3.1 requires one).
func (p *pairer) clientID() string {
	if p.RequestedID == "" {
		return string(p.Sign)
	}
	return string(p.RequestedID)
}

// begin continues the folder's pairing, if it is for this server, or starts a new one.
func (p *pairer) begin(ctx context.Context) error {
	known, err := p.d.readPairing()
	if err != nil {
		return err
	}
	sign, seal := p.d.Keys()
	if known != nil && known.Server == p.client.Base() && known.Sign == sign.ID() && known.Seal == seal.ID() && (p.o.ID == "" || p.o.ID == known.RequestedID) {
		p.pairingState = *known
	} else if err := p.requestPairing(ctx, sign.JWK(), seal.JWK()); err != nil {
		return err
	}
	p.o.Show(Pairing{UserCode: p.UserCode, URI: p.URI, URIComplete: p.URIComplete, Sign: p.Sign, Seal: p.Seal, Expires: p.Expires})
	return nil
}

func (d *Device) readPairing() (*pairingState, error) {
	b, err := durable.ReadPrivate(d.path(pairingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p pairingState
	if err := json.Unmarshal(b, &p); err != nil {
		d.opts.Log.Warn("the pairing that was begun is damaged; it begins anew", slog.String("path", d.path(pairingFile)))
		return nil, nil
	}
	return &p, nil
}

func (p *pairer) requestPairing(ctx context.Context, sign, seal []byte) error {
	proof, err := p.proof(token.PairingHashClaim())
	if err != nil {
		return err
	}
	p.pairingState = pairingState{Server: p.client.Base(), RequestedID: p.o.ID, Sign: p.d.signer.Load().Public().ID(), Seal: p.d.decrypter.Load().Public().ID()}
	var out api.DeviceAuthorization
	if err := p.post(ctx, "/oauth/device_authorization", url.Values{
		"client_id": {p.clientID()}, "sign": {string(sign)}, "seal": {string(seal)}, "proof": {proof},
	}, &out); err != nil {
		return err
	}
	if !token.WellFormedCode(out.DeviceCode) || out.UserCode == "" || strings.ContainsFunc(out.UserCode+out.VerificationURI+out.VerificationURIComplete, func(r rune) bool { return r < ' ' || r > '~' }) {
		return watchword.Refuse(watchword.Internal, "the server's answer must be a pairing")
	}
	p.DeviceCode, p.UserCode, p.URI, p.URIComplete, p.Interval = out.DeviceCode, out.UserCode, out.VerificationURI, out.VerificationURIComplete, out.Interval
	p.Expires = p.now().Add(time.Duration(min(max(out.ExpiresIn, 0), 86400)) * time.Second).UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(p.pairingState, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(p.d.path(pairingFile), append(b, '\n'), 0o600)
}

func (p *pairer) post(ctx context.Context, path string, form url.Values, out any) error {
	_, err := p.client.JSON(ctx, rest.Request{
		Method: http.MethodPost, Path: path, Type: "application/x-www-form-urlencoded", Body: []byte(form.Encode()), Prover: p.prover,
	}, nil, out)
	return err
}

// wait polls until an operator has decided. The server decides when the pairing expires: an approval at the last moment
// still counts.
func (p *pairer) wait(ctx context.Context) (*identity, error) {
	interval := pairInterval
	if p.Interval != nil {
		interval = time.Duration(min(max(*p.Interval, 0), 3600)) * time.Second
	}
	for failures := 0; ; {
		id, err := p.poll(ctx)
		gap := max(interval, pairPollMin)
		switch watchword.CodeOf(err) {
		case watchword.PairingPending:
			failures = 0
		case watchword.PairingSlow: // RFC 8628 §3.5: for this and all further polls
			interval += pairInterval
			gap, failures = interval, 0
		case watchword.Unavailable, watchword.ClockUntrusted, watchword.Superseded, watchword.RateLimited, watchword.Busy, watchword.TimedOut:
			gap = min(max(interval, time.Second)<<min(failures, 8), pairPollMax)
			if e, ok := errors.AsType[*watchword.Error](err); ok {
				gap = max(gap, min(e.RetryAfter, pairPollMax))
			}
			failures++
			p.d.opts.Log.WarnContext(ctx, "the pairing waits; the server cannot be asked now", "err", err)
		default:
			return id, err
		}
		if err := p.o.Wait(ctx, gap); err != nil {
			return nil, err
		}
	}
}

func (p *pairer) poll(ctx context.Context) (*identity, error) {
	proof, err := p.proof(token.CodeHashClaim(p.DeviceCode))
	if err != nil {
		return nil, err
	}
	var out api.PairingResponse
	if err := p.post(ctx, "/oauth/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {p.DeviceCode}, "client_id": {p.clientID()}, "proof": {proof},
	}, &out); err != nil {
		return nil, err
	}
	return newIdentity(out.EnrollResponse, p.trust)
}
