package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// Enhanced authentication with proof of possession (RFC 9431 §2.2.4, §4): the
// token names a key, and the client proves it, by the TLS connection's exporter
// or by a challenge. In session it is the challenge, always a fresh one.
const (
	aceMethod      = "ace"
	exporterLabel  = "EXPORTER-ACE-MQTT-Sign-Challenge"
	challengeBytes = 8
)

// matches is policy's, under a name that reads here.
func matches(filter, topic string) bool { return policy.Match(filter, topic) }

// challenge is an exchange that waits for the client's answer.
type challenge struct {
	connect *packet.Connect // nil in session
	papers  session.Papers
	nonce   [challengeBytes]byte
}

// lengthThen cuts what has its length before it, in two bytes, off b.
func lengthThen(b []byte) (first, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

var errAce = watchword.Refuse(watchword.TokenMalformed, "the authentication data must be the token with its length before it, and the proof after it or nothing")

// aceToken takes a token and what stands behind it out of the authentication data.
func (c *conn) aceToken(ctx context.Context, now time.Time, p *packet.Properties) (papers session.Papers, proof []byte, err error) {
	data, _ := p.Data(packet.AuthData)
	token, proof, ok := lengthThen(data)
	if !ok || len(token) == 0 {
		return papers, nil, errAce
	}
	papers, err = c.broker.deps.Office.AdmitToProve(ctx, watchword.DefaultTenant, string(token), now)
	return papers, proof, err
}

// beginAce is CONNECT with the method: done by the exporter, or the beginning of
// a challenge.
func (c *conn) beginAce(ctx context.Context, now time.Time, method string, p *packet.Connect) error {
	switch {
	case method != aceMethod:
		return wrong(packet.BadAuthMethod, packet.CONNECT, "ace is the one authentication method here")
	case p.HasUser || p.HasPass:
		return wrong(packet.ProtocolError, packet.CONNECT, "a user name or password beside the authentication data (RFC 9431 §2.2.3)")
	}
	papers, proof, err := c.aceToken(ctx, now, &p.Properties)
	if err != nil {
		return err
	}
	c.byAce = true
	if len(proof) == 0 {
		return c.challenge(&challenge{connect: p, papers: papers})
	}
	secret, ok := c.nc.(*tls.Conn)
	if !ok {
		return watchword.Refuse(watchword.Denied, "a proof by the exporter needs TLS: ask for a challenge")
	}
	state := secret.ConnectionState()
	material, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return watchword.Because(err, watchword.Denied, "this TLS connection exports nothing: ask for a challenge")
	}
	if err := c.broker.deps.Office.Proves(ctx, papers, material, proof); err != nil {
		return err
	}
	papers.Proved = true
	return c.admitAndOpen(ctx, now, p, papers)
}

// admitAndOpen is for a token that was proved, which is not spent.
func (c *conn) admitAndOpen(ctx context.Context, now time.Time, p *packet.Connect, papers session.Papers) error {
	if err := c.admit(ctx, p, papers); err != nil {
		return err
	}
	return c.open(ctx, now, p, papers)
}

func (c *conn) challenge(ch *challenge) error {
	_, _ = rand.Read(ch.nonce[:]) // never fails
	c.ace = ch
	a := &packet.Auth{Reason: packet.ContinueAuth}
	a.Properties.SetText(packet.AuthMethod, aceMethod)
	a.Properties.SetData(packet.AuthData, ch.nonce[:])
	c.answer(a)
	return nil
}

// proved checks the answer to the challenge that is under way, and ends it.
func (c *conn) proved(ctx context.Context, p *packet.Auth) (*challenge, error) {
	ch := c.ace
	c.ace = nil
	if method, _ := p.Properties.Text(packet.AuthMethod); method != aceMethod || p.Reason != packet.ContinueAuth {
		return ch, wrong(packet.ProtocolError, packet.AUTH, "the exchange goes on with the same method and 0x18")
	}
	data, _ := p.Properties.Data(packet.AuthData)
	nonce, sig, ok := lengthThen(data)
	if !ok || len(nonce) < challengeBytes || len(nonce) > 64 {
		return ch, watchword.Refuse(watchword.TokenMalformed, "the authentication data must be a nonce of 8 to 64 bytes with its length before it, and the signature")
	}
	err := c.broker.deps.Office.Proves(ctx, ch.papers, append(ch.nonce[:], nonce...), sig)
	ch.papers.Proved = err == nil
	return ch, err
}

// answered is AUTH before the session stands.
func (c *conn) answered(ctx context.Context, now time.Time, p *packet.Auth) error {
	ch, err := c.proved(ctx, p)
	if err == nil {
		err = c.admitAndOpen(ctx, now, ch.connect, ch.papers)
	}
	if err != nil {
		return c.turnAway(err)
	}
	return nil
}

// reauthenticate is AUTH in session (MQTT 5.0 §4.12.1). The client begins it; its
// subscriptions stay; where it fails, the connection ends.
func (c *conn) reauthenticate(ctx context.Context, p *packet.Auth, now time.Time) error {
	if !c.byAce {
		return wrong(packet.ProtocolError, packet.AUTH, "CONNECT named no authentication method")
	}
	if c.ace == nil {
		if method, _ := p.Properties.Text(packet.AuthMethod); method != aceMethod || p.Reason != packet.Reauthenticate {
			return wrong(packet.ProtocolError, packet.AUTH, "re-authentication begins with the same method and 0x19")
		}
		papers, proof, err := c.aceToken(ctx, now, &p.Properties)
		if err != nil {
			return err
		}
		if len(proof) > 0 {
			return watchword.Refuse(watchword.Denied, "in session the proof answers a fresh challenge (RFC 9431 §4)")
		}
		return c.challenge(&challenge{papers: papers})
	}
	ch, err := c.proved(ctx, p)
	if err == nil {
		err = c.live().Refresh(ctx, ch.papers)
	}
	if err != nil {
		return err
	}
	a := &packet.Auth{Reason: packet.Success}
	a.Properties.SetText(packet.AuthMethod, aceMethod)
	c.answer(a)
	c.refreshed()
	return nil
}
