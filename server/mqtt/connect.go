package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// handleConnect handles the packets before CONNACK: CONNECT, and AUTH where enhanced authentication needs
// a second step. Its phases: parse, authenticate and admit (nothing is changed or spent yet where it is
// refused), then [conn.startSession].
func (c *conn) handleConnect(ctx context.Context, w *workBatch, first byte, body []byte) error {
	switch t := packet.Type(first >> 4); {
	case t == packet.CONNECT && c.pendingChallenge == nil:
	case t == packet.AUTH && c.pendingChallenge != nil:
		p, err := packet.Parse(first, body, c.version)
		if err != nil {
			return c.rejectConnect(err)
		}
		return c.handleConnectAuth(ctx, w.now, p.(*packet.Auth))
	default:
		return protocolError(packet.ProtocolError, t, "the first packet must be CONNECT")
	}
	if err := c.broker.connectRates.Take(addressPrefix(c.remote), w.now); err != nil {
		c.isVersion5(body) // the rest is not parsed
		return c.rejectConnect(err)
	}
	p, err := packet.Parse(first, bytes.Clone(body), packet.V5) // it may be kept until the challenge is answered
	if err != nil {
		if e, ok := errors.AsType[*packet.Error](err); ok && e.Reason == packet.UnsupportedProtocolVersion || c.isVersion5(body) {
			return c.rejectConnect(err)
		}
		return err // MQTT 3.1.1 §3.1.4: closed without CONNACK
	}
	cp := p.(*packet.Connect)
	c.version = cp.Version
	if err := c.parseConnectOptions(cp); err != nil {
		return c.rejectConnect(err)
	}
	if method, ok := cp.Properties.Text(packet.AuthenticationMethod); ok {
		err = c.beginEnhancedAuth(ctx, w.now, method, cp)
	} else {
		var credentials session.Credentials
		may := func(credentials session.Credentials) error { return c.admit(ctx, cp, credentials) }
		if credentials, err = c.authenticate(ctx, w.now, string(cp.Password), may); err == nil {
			err = c.startSession(ctx, w.now, cp, credentials)
		}
	}
	if err != nil {
		return c.rejectConnect(err)
	}
	return nil
}

// isVersion5 reports whether the body of an unparsed CONNECT is of version 5. Its client gets the reason of a refusal (MQTT
// 5.0 §3.1.4), in the shortest CONNACK.
func (c *conn) isVersion5(body []byte) bool {
	if !bytes.HasPrefix(body, []byte("\x00\x04MQTT\x05")) {
		return false
	}
	c.version, c.out.maxPacket = packet.V5, minConnackBytes
	return true
}

// rejectFrame closes a connection for a malformed or too large packet. A CONNECT of version 5 is answered
// with CONNACK.
func (c *conn) rejectFrame(b []byte, err error) {
	if c.live() == nil && c.pendingChallenge == nil && packet.Type(b[0]>>4) == packet.CONNECT {
		at := 1
		for at < len(b) && b[at] >= 128 && at < 4 { // remaining length
			at++
		}
		if at+1 < len(b) && c.isVersion5(b[at+1:]) {
			_ = c.rejectConnect(err) // always nil
			return
		}
	}
	c.close(err)
}

// addressPrefix returns the network that a remote address counts for; the zero value if it has no port.
func addressPrefix(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	return fair.Network(ap.Addr().Unmap())
}

// parseConnectOptions notes the limits of the client that CONNECT states.
func (c *conn) parseConnectOptions(p *packet.Connect) error {
	c.wantsReasonStrings = true
	if n, ok := p.Properties.Number(packet.RequestProblemInformation); ok {
		c.wantsReasonStrings = n == 1
	}
	c.session.mu.Lock()
	if n, ok := p.Properties.Number(packet.ReceiveMaximum); ok {
		c.out.receiveMaximum = min(int(n), maxInflight)
	}
	if n, ok := p.Properties.Number(packet.MaximumPacketSize); ok {
		c.out.maxPacket = int(n)
	}
	if n, ok := p.Properties.Number(packet.TopicAliasMaximum); ok {
		c.out.maxOutboundAliases = min(int(n), maxAliases)
	}
	c.session.mu.Unlock()
	return nil
}

// authenticate verifies a password: an access token, or a client assertion, for which it issues an access
// token. may is called with the credentials before the assertion is spent; its error is returned.
func (c *conn) authenticate(ctx context.Context, now time.Time, password string, may func(session.Credentials) error) (session.Credentials, error) {
	t, err := c.resolveTenant(password, now)
	if err != nil {
		return session.Credentials{}, err
	}
	if password == "" {
		return session.Credentials{}, watchword.Refuse(watchword.Unauthenticated, "an access token or a client assertion is required as Password")
	}
	if token.LooksLikeAssertion(password) {
		return c.broker.deps.Auth.AuthenticateAssertion(ctx, t, password, may, watchword.NewID("", now), now)
	}
	credentials, err := c.broker.deps.Auth.VerifyBearer(ctx, t, password, now)
	if err == nil {
		err = may(credentials)
	}
	return credentials, err
}

// startSession is the second half of CONNECT, after [conn.admit]: it gives the connection its Session
// State, starts its authority, stores the will, resumes subscriptions and sends CONNACK.
func (c *conn) startSession(ctx context.Context, now time.Time, p *packet.Connect, credentials session.Credentials) error {
	ad := c.admission
	c.session.tenant = c.broker.tenant(credentials.Tenant)
	present, err := c.attachSession(ad)
	if err != nil {
		return err
	}
	s := ad.reserved
	if err := s.Start(ctx); err != nil {
		return err
	}
	c.admission = nil // from here on conn.finishServing closes the session
	written, err := c.storeWill(ad.will, s)
	if err != nil {
		s.End(nil)
		return err
	}
	c.broker.wills.clientReturned(c.session, s.Authority(), present, now)
	c.startKeepAlive(p)
	lost, dropped, at := c.resumeSubscriptions(s.Authority(), &present)
	if at == nil {
		at = written // else at is that commit, or a later one
	}
	c.joinRates(time.Now())
	c.liveSession.Store(s)
	c.session.reads.Store(s)
	c.broker.markAuthenticated(c)
	c.sendConnack(at, c.buildConnack(p, ad, s, present, lost, dropped))
	if cause := s.Cause(); cause != nil || s.Ended() { // it ended before liveSession was set
		c.close(cause)
		return nil
	}
	c.extendReadDeadline(now)
	c.broker.stats.connects.Add(1)
	return nil
}

// assignClientID returns the client identifier of the connection: the one of CONNECT, which must be the
// subject's id alone or with a suffix, or an assigned one. Reason: client identifier not valid.
func (c *conn) assignClientID(p *packet.Connect, subject watchword.SubjectID) (id string, assigned bool, err error) {
	id = p.ClientID
	if id == "" {
		if c.version == packet.V311 && !p.CleanStart {
			return "", false, protocolError(packet.ClientIdentifierNotValid, packet.CONNECT, "an empty client identifier requires Clean Session 1")
		}
		return string(subject) + "/" + strconv.FormatInt(c.session.number, 36) + "-" + watchword.NewNonce()[:6], true, nil
	}
	name, suffix, more := strings.Cut(id, "/")
	if name != string(subject) || more && watchword.CheckName("client_id", suffix) != nil {
		return "", false, protocolError(packet.ClientIdentifierNotValid, packet.CONNECT, fmt.Sprintf("the client id must be %s, or %s/ and a name for a further connection", subject, subject))
	}
	return id, false, nil
}

// live returns what the connection is authorized to do; nil before CONNECT is accepted.
func (c *conn) live() *session.Session { return c.liveSession.Load() }
