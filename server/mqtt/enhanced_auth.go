package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/session"
)

// Enhanced authentication with proof of possession (RFC 9431 §2.2.4, §4): the token names a key,
// and the client proves it, by the exporter of the TLS connection or by a challenge. In
// re-authentication it is always a fresh challenge.
const (
	authMethodACE  = "ace"
	exporterLabel  = "EXPORTER-ACE-MQTT-Sign-Challenge"
	challengeBytes = 8
)

// challenge is an authentication exchange that waits for the client's answer.
type challenge struct {
	connect     *packet.Connect // nil during re-authentication
	credentials session.Credentials
	nonce       [challengeBytes]byte
}

// cutLengthPrefixed splits a field with a two-byte length prefix off b.
func cutLengthPrefixed(b []byte) (first, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

var errAuthData = watchword.Refuse(watchword.TokenMalformed, "Authentication Data must be the access token with its length before it, followed by the proof or nothing")

// parseAuthData parses the Authentication Data into the token and the proof that follows it.
func (c *conn) parseAuthData(ctx context.Context, now time.Time, p *packet.Properties) (credentials session.Credentials, proof []byte, err error) {
	data, _ := p.Data(packet.AuthenticationData)
	token, proof, ok := cutLengthPrefixed(data)
	if !ok || len(token) == 0 {
		return credentials, nil, errAuthData
	}
	t, err := c.resolveTenant(string(token), now)
	if err != nil {
		return credentials, nil, err
	}
	credentials, err = c.broker.deps.Auth.VerifyPoP(ctx, t, string(token), now)
	return credentials, proof, err
}

// beginEnhancedAuth handles CONNECT with an Authentication Method: it verifies a proof by exporter,
// or sends a challenge.
func (c *conn) beginEnhancedAuth(ctx context.Context, now time.Time, method string, p *packet.Connect) error {
	switch {
	case method != authMethodACE:
		return protocolError(packet.BadAuthenticationMethod, packet.CONNECT, "the Authentication Method must be ace")
	case p.HasUser || p.HasPass:
		return protocolError(packet.ProtocolError, packet.CONNECT, "User Name and Password must be absent with Authentication Data (RFC 9431 §2.2.3)")
	}
	credentials, proof, err := c.parseAuthData(ctx, now, &p.Properties)
	if err != nil {
		return err
	}
	c.enhancedAuth = true
	if len(proof) == 0 {
		return c.sendChallenge(&challenge{connect: p, credentials: credentials})
	}
	secret, ok := c.nc.(*tls.Conn)
	if !ok {
		return watchword.Refuse(watchword.Denied, "a proof by TLS exporter requires TLS: use a challenge")
	}
	state := secret.ConnectionState()
	material, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return watchword.Wrap(err, watchword.Denied, "this TLS connection has no exporter: use a challenge")
	}
	if err := c.broker.deps.Auth.VerifyPossession(ctx, credentials, material, proof, c.broker.options.Now()); err != nil {
		return err
	}
	credentials.KeyProved = true
	return c.admitAndStart(ctx, now, p, credentials)
}

// admitAndStart admits a connection whose token was proved.
func (c *conn) admitAndStart(ctx context.Context, now time.Time, p *packet.Connect, credentials session.Credentials) error {
	if err := c.admit(ctx, p, credentials); err != nil {
		return err
	}
	return c.startSession(ctx, now, p, credentials)
}

func (c *conn) sendChallenge(ch *challenge) error {
	_, _ = rand.Read(ch.nonce[:]) // never fails
	c.pendingChallenge = ch
	a := &packet.Auth{Reason: packet.ContinueAuthentication}
	a.Properties.SetText(packet.AuthenticationMethod, authMethodACE)
	a.Properties.SetData(packet.AuthenticationData, ch.nonce[:])
	c.respond(a)
	return nil
}

// verifyChallengeResponse verifies the answer to the pending challenge and ends it.
func (c *conn) verifyChallengeResponse(ctx context.Context, p *packet.Auth) (*challenge, error) {
	ch := c.pendingChallenge
	c.pendingChallenge = nil
	if method, _ := p.Properties.Text(packet.AuthenticationMethod); method != authMethodACE || p.Reason != packet.ContinueAuthentication {
		return ch, protocolError(packet.ProtocolError, packet.AUTH, "AUTH must continue the exchange with the same Authentication Method and reason code 0x18")
	}
	data, _ := p.Properties.Data(packet.AuthenticationData)
	nonce, sig, ok := cutLengthPrefixed(data)
	if !ok || len(nonce) < challengeBytes || len(nonce) > 64 {
		return ch, watchword.Refuse(watchword.TokenMalformed, "Authentication Data must be a nonce of 8 to 64 bytes with its length before it, and the signature")
	}
	err := c.broker.deps.Auth.VerifyPossession(ctx, ch.credentials, append(ch.nonce[:], nonce...), sig, c.broker.options.Now())
	ch.credentials.KeyProved = err == nil
	return ch, err
}

// handleConnectAuth handles AUTH before the session starts.
func (c *conn) handleConnectAuth(ctx context.Context, now time.Time, p *packet.Auth) error {
	ch, err := c.verifyChallengeResponse(ctx, p)
	if err == nil {
		err = c.admitAndStart(ctx, now, ch.connect, ch.credentials)
	}
	if err != nil {
		return c.rejectConnect(err)
	}
	return nil
}

// reauthenticate handles AUTH of a started session (MQTT 5.0 §4.12.1). The client starts it; its
// subscriptions stay; if it fails, the connection ends.
func (c *conn) reauthenticate(ctx context.Context, p *packet.Auth, now time.Time) error {
	if !c.enhancedAuth {
		return protocolError(packet.ProtocolError, packet.AUTH, "AUTH requires an Authentication Method in CONNECT")
	}
	if c.pendingChallenge == nil {
		if method, _ := p.Properties.Text(packet.AuthenticationMethod); method != authMethodACE || p.Reason != packet.ReAuthenticate {
			return protocolError(packet.ProtocolError, packet.AUTH, "re-authentication must start with the same Authentication Method and reason code 0x19")
		}
		credentials, proof, err := c.parseAuthData(ctx, now, &p.Properties)
		if err != nil {
			return err
		}
		if len(proof) > 0 {
			return watchword.Refuse(watchword.Denied, "re-authentication requires a new challenge (RFC 9431 §4)")
		}
		return c.sendChallenge(&challenge{credentials: credentials})
	}
	ch, err := c.verifyChallengeResponse(ctx, p)
	if err == nil {
		err = c.live().Refresh(ctx, ch.credentials)
	}
	if err != nil {
		return err
	}
	a := &packet.Auth{Reason: packet.Success}
	a.Properties.SetText(packet.AuthenticationMethod, authMethodACE)
	c.respond(a)
	c.scheduleRefreshRequest()
	return nil
}
