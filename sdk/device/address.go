package device

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// The address of a server can move. The trust bundle that a root signed names the new one, and every issuer of before: a device that
// has it connects to the new address, and for as long as the server accepts the former one, to that where the new one does not
// answer. The certificate must be for the new name in both cases. The bundle in the folder makes it durable.

// serverURL returns the URL of the server as the trust bundle t names it, or else as it was at the enrollment.
func (d *Device) serverURL(t *token.Trust) string {
	if t != nil && len(t.History) > 0 {
		return t.Issuer
	}
	return d.identity.HTTPS
}

// mqttAddress returns HOST:PORT of the server's MQTT listener over TLS; empty if it has none.
func (d *Device) mqttAddress() string {
	if t := d.trust.Load(); t != nil && len(t.History) > 0 {
		return t.MQTTS
	}
	return d.identity.MQTTS
}

// issuer returns the issuer that the device's own tokens name.
func (d *Device) issuer() string { return d.trust.Load().Issuer }

const (
	// newAddressTimeout limits an attempt to reach the new address while there is another to try.
	newAddressTimeout = 5 * time.Second
	// formerAddressFor is how long the former address is tried first after the new one did not answer.
	formerAddressFor = time.Minute
)

// addressFallback remembers that the new address of a server did not answer. It is safe for concurrent use.
type addressFallback struct {
	mu    sync.Mutex
	until time.Time
}

func (f *addressFallback) set(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = now.Add(formerAddressFor)
}

func (f *addressFallback) active(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return now.Before(f.until) && f.until.Sub(now) <= formerAddressFor
}

// formerAddress returns the address that had the place of address before the server moved, if the server still accepts it; else empty.
func (d *Device) formerAddress(address string) string {
	t := d.trust.Load()
	if t == nil || len(t.History) == 0 {
		return ""
	}
	now := d.bestTime()
	var last token.IssuerPeriod
	for _, p := range t.History {
		if p.Until.After(now) && p.Until.After(last.Until) {
			last = p
		}
	}
	if last.Issuer == "" {
		return ""
	}
	switch address {
	case hostPort(t.Issuer):
		return hostPort(last.Issuer)
	case t.MQTTS:
		host, _, err := net.SplitHostPort(hostPort(last.Issuer))
		_, port, perr := net.SplitHostPort(t.MQTTS)
		if err == nil && perr == nil {
			return net.JoinHostPort(host, port)
		}
	}
	return ""
}

// hostPort returns HOST:PORT of an https URL; empty if it is none.
func hostPort(server string) string {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// connect calls [Options.Dial] within the device's rate of connections, and for the former address of a server where the new one
// does not answer. Code: unavailable above the rate.
func (d *Device) connect(ctx context.Context, network, address string) (net.Conn, error) {
	former := d.formerAddress(address)
	if former == "" {
		return d.dial(ctx, network, address)
	}
	if d.fallback.active(d.opts.Now()) {
		if c, err := d.dial(ctx, network, former); err == nil {
			return c, nil
		}
	}
	bounded, cancel := context.WithTimeoutCause(ctx, newAddressTimeout, watchword.Refuse(watchword.TimedOut, "%s did not answer within %s", address, newAddressTimeout))
	c, err := d.dial(bounded, network, address)
	cancel()
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	d.opts.Log.Info("the new address of the server does not answer: trying the former one", slog.String("address", address), slog.String("former", former), slog.Any("err", err))
	d.fallback.set(d.opts.Now())
	return d.dial(ctx, network, former)
}

// doubtAddress makes the next connections go to the former address first: a peer at the new one is not the server.
func (d *Device) doubtAddress() {
	if t := d.trust.Load(); t != nil && d.formerAddress(hostPort(t.Issuer)) != "" {
		d.fallback.set(d.opts.Now())
	}
}

// updateIdentity writes root and address of a bundle to the identity in the folder, so that they are known if the bundle is lost.
// The bundle on the disk names the old root too, so that the folder can be opened after a power cut between the two writes.
func (d *Device) updateIdentity(t *token.Trust) error {
	id := *d.identity // other goroutines read d.identity; only the next start reads what changes here
	id.Pin = token.TrustPin(t.Roots[len(t.Roots)-1])
	if len(t.History) > 0 {
		id.Issuer, id.HTTPS, id.MQTTS, id.TokenEndpoint = t.Issuer, t.Issuer, t.MQTTS, t.Issuer+"/oauth/token"
		id.FirstIssuer = t.FirstIssuer()
	}
	known := d.identity
	if d.storedIdentity != nil {
		known = d.storedIdentity
	}
	if id.Pin == known.Pin && id.Issuer == known.Issuer && id.HTTPS == known.HTTPS && id.MQTTS == known.MQTTS {
		return nil
	}
	if err := writeIdentity(d.dir, &id); err != nil {
		return err
	}
	d.storedIdentity = &id
	return nil
}
