package device

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
)

// How a device proves its key to the MQTT door (RFC 9431 §2.2.4): at CONNECT by
// what this TLS connection alone exports, in session by a fresh challenge.
const (
	aceMethod     = "ace"
	exporterLabel = "EXPORTER-ACE-MQTT-Sign-Challenge"
	authsAsked    = 2 // AUTH packets that an exchange takes: the challenge, and its end
)

// behindLength puts the length of first, in two bytes, before it, and rest behind.
func behindLength(first, rest []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(len(first)))
	return append(append(out, first...), rest...)
}

// proveConnection puts a new token and the proof for this connection into CONNECT.
func (d *Device) proveConnection(ctx context.Context, hello *paho.Connect, nc net.Conn) error {
	raw, err := d.tokens.Renew(ctx)
	if err != nil {
		return err
	}
	secret, ok := nc.(*tls.Conn)
	if !ok {
		return watchword.Refuse(watchword.Internal, "the connection is not TLS")
	}
	state := secret.ConnectionState()
	material, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return err
	}
	sig, err := d.signer.Load().Prove(material)
	if err != nil {
		return err
	}
	hello.Properties.AuthMethod, hello.Properties.AuthData = aceMethod, behindLength([]byte(raw), sig)
	return nil
}

// reauthenticate refreshes the session by AUTH; its subscriptions stay.
func (w *wire) reauthenticate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, wireTimeout)
	defer cancel()
	defer context.AfterFunc(w.over, cancel)()
	raw, err := w.d.tokens.Renew(ctx)
	if err != nil {
		return err
	}
	w.conn.auths.Store(authsAsked)
	r, err := w.client.Authenticate(ctx, &paho.Auth{
		ReasonCode: packets.AuthReauthenticate, Properties: &paho.AuthProperties{AuthMethod: aceMethod, AuthData: behindLength([]byte(raw), nil)},
	})
	switch {
	case err != nil:
		return &noWire{err}
	case r.Success:
		return nil
	case r.Properties == nil:
		return said("", errors.New("the server took no proof"))
	}
	return said(r.Properties.ReasonString, errors.New("the server took no proof"))
}

// prover answers the server's challenge.
type prover struct{ w *wire }

// Authenticate signs the server's nonce and one of our own.
func (p prover) Authenticate(a *paho.Auth) *paho.Auth {
	out := &paho.Auth{ReasonCode: packets.AuthContinueAuthentication, Properties: &paho.AuthProperties{AuthMethod: aceMethod}}
	if a.Properties == nil || len(a.Properties.AuthData) == 0 {
		return out // the server will not take it
	}
	own := make([]byte, 16)
	_, _ = rand.Read(own) // never fails
	sig, err := p.w.d.signer.Load().Prove(append(append([]byte{}, a.Properties.AuthData...), own...))
	if err != nil {
		p.w.fail(err)
		return out
	}
	out.Properties.AuthData = behindLength(own, sig)
	return out
}

// Authenticated is paho's to tell; CONNACK and the answer to AUTH say it too.
func (prover) Authenticated() {}
