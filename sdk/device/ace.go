package device

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"net"
	"slices"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Constants of the proof of possession towards the MQTT endpoint (RFC 9431 §2.2.4): at CONNECT the device signs a value
// that only this TLS connection exports, or a challenge where TLS ends at a proxy; in a session it signs a new challenge of the server.
const (
	aceMethod     = "ace"
	exporterLabel = "EXPORTER-ACE-MQTT-Sign-Challenge"
	authPackets   = 2 // AUTH packets of an exchange: the challenge and the final one
)

// lengthPrefixed returns the length of first in two bytes, then first, then rest.
func lengthPrefixed(first, rest []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(len(first)))
	return append(append(out, first...), rest...)
}

// proveConnection adds a new token, and the proof of possession for this connection, to CONNECT. To a proxy at which TLS ends it adds
// no proof, and challenge is true: the server sends one. A peer that was sent a proof and sends a challenge is not the server: it would
// pass on the signature over the challenge of a connection of its own.
func (d *Device) proveConnection(ctx context.Context, hello *paho.Connect, nc net.Conn, t *token.Trust) (challenge bool, err error) {
	raw, err := d.tokens.Renew(ctx)
	if err != nil {
		return false, err
	}
	secret, ok := nc.(*tls.Conn)
	if !ok {
		return false, watchword.Refuse(watchword.Internal, "the connection is not TLS")
	}
	state := secret.ConnectionState()
	if t.TLSProxy && !ownAuthority(state, t) {
		hello.Properties.AuthMethod, hello.Properties.AuthData = aceMethod, lengthPrefixed([]byte(raw), nil)
		return true, nil
	}
	material, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return false, err
	}
	sig, err := d.signer.Load().SignBytes(material)
	if err != nil {
		return false, err
	}
	hello.Properties.AuthMethod, hello.Properties.AuthData = aceMethod, lengthPrefixed([]byte(raw), sig)
	return false, nil
}

// ownAuthority reports whether the peer's certificate is of one of the server's own authorities: then it is the server itself.
func ownAuthority(s tls.ConnectionState, t *token.Trust) bool {
	return slices.ContainsFunc(s.VerifiedChains, func(chain []*x509.Certificate) bool {
		return slices.ContainsFunc(t.CAs, func(der []byte) bool { return bytes.Equal(der, chain[len(chain)-1].Raw) })
	})
}

// reauthenticate refreshes the session by AUTH (MQTT 5.0 §4.12.1). Subscriptions are not affected.
func (c *mqttConn) reauthenticate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mqttTimeout)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)()
	raw, err := c.run.tokens.Renew(ctx)
	if err != nil {
		return err
	}
	c.conn.auths.Store(authPackets)
	r, err := c.client.Authenticate(ctx, &paho.Auth{
		ReasonCode: packets.AuthReauthenticate, Properties: &paho.AuthProperties{AuthMethod: aceMethod, AuthData: lengthPrefixed([]byte(raw), nil)},
	})
	switch {
	case err != nil:
		return &mqttUnavailable{err}
	case r.Success:
		return nil
	case r.Properties == nil:
		return refusalOf("", errors.New("the server took no proof"))
	}
	return refusalOf(r.Properties.ReasonString, errors.New("the server took no proof"))
}

// aceAuther answers the server's challenge.
type aceAuther struct{ w *mqttConn }

// Authenticate signs the server's nonce and a nonce of the device.
func (p aceAuther) Authenticate(a *paho.Auth) *paho.Auth {
	out := &paho.Auth{ReasonCode: packets.AuthContinueAuthentication, Properties: &paho.AuthProperties{AuthMethod: aceMethod}}
	if a.Properties == nil || len(a.Properties.AuthData) == 0 {
		return out // the server will refuse it
	}
	own := make([]byte, 16)
	_, _ = rand.Read(own) // Read never returns an error
	sig, err := p.w.run.signer.Load().SignBytes(append(append([]byte{}, a.Properties.AuthData...), own...))
	if err != nil {
		p.w.fail(err)
		return out
	}
	out.Properties.AuthData = lengthPrefixed(own, sig)
	return out
}

// Authenticated does nothing: the device reads the result of authentication from CONNACK and from the answer to AUTH.
func (aceAuther) Authenticated() {}
