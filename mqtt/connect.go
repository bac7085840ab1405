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
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/token"
)

// ReceiveMaximum is how many publishes a client may have unacknowledged.
const ReceiveMaximum = 256

// minConnackBytes is how long a CONNACK is that says nothing but its code: what may be sent
// to whom nothing is known of.
const minConnackBytes = 5

// handleConnect handles what comes before the session stands: CONNECT, and the rest of
// an exchange of enhanced authentication.
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
		return protocolError(packet.ProtocolError, t, "CONNECT comes first")
	}
	if err := c.broker.connectRates.Take(addressPrefix(c.remote), w.now); err != nil {
		c.isVersion5(body) // no more of it is read
		return c.rejectConnect(err)
	}
	p, err := packet.Parse(first, bytes.Clone(body), packet.V5) // it may have to wait for a proof
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

// isVersion5 reports whether the body of a CONNECT that is not read to its end is of version
// 5, whose client may be told why it is refused (MQTT 5.0 §3.1.4), as shortly as can be.
func (c *conn) isVersion5(body []byte) bool {
	if !bytes.HasPrefix(body, []byte("\x00\x04MQTT\x05")) {
		return false
	}
	c.version, c.out.maxPacket = packet.V5, minConnackBytes
	return true
}

// rejectFrame ends a connection for a packet that is none, or too large. A CONNECT of
// version 5 is answered.
func (c *conn) rejectFrame(b []byte, err error) {
	if c.live() == nil && c.pendingChallenge == nil && packet.Type(b[0]>>4) == packet.CONNECT {
		at := 1
		for at < len(b) && b[at] >= 128 && at < 4 { // its length
			at++
		}
		if at+1 < len(b) && c.isVersion5(b[at+1:]) {
			_ = c.rejectConnect(err) // always nil
			return
		}
	}
	c.close(err)
}

// addressPrefix is whom a remote address is counted with.
func addressPrefix(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	return rates.Network(ap.Addr().Unmap())
}

// parseConnectOptions notes what CONNECT says of the connection itself, and refuses what
// there is not.
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

// authenticate checks a password: an access token, or a client assertion, which is
// exchanged in place. may is asked before the assertion is spent.
func (c *conn) authenticate(ctx context.Context, now time.Time, password string, may func(session.Credentials) error) (session.Credentials, error) {
	const t = watchword.DefaultTenant
	if password == "" {
		return session.Credentials{}, watchword.Refuse(watchword.Unauthenticated, "send an access token or a client assertion as the password")
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

// startSession starts the session that was admitted, and answers CONNECT.
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
	c.admission = nil // takeDown knows the session
	written, err := c.storeWill(ad.will, s)
	if err != nil {
		s.Close(nil)
		return err
	}
	c.broker.wills.clientReturned(c.session, s.Authority(), present, now)
	c.keepAlive = c.effectiveKeepAlive(p)
	_ = c.nc.SetDeadline(time.Time{}) // the error is that of a closed connection, which the next read reports
	c.deadlineSetAt = time.Time{}
	ack := &packet.Connack{}
	lost, dropped, at := c.resumeSubscriptions(s.Authority(), &present)
	if at == nil {
		at = written // else at is that commit, or comes after it
	}
	ack.SessionPresent = present
	if c.version == packet.V5 {
		c.buildConnack(ack, p, ad, s, lost, dropped)
	}
	c.joinRates(time.Now())
	c.liveSession.Store(s)
	c.broker.authenticated(c)
	c.respondAfter(at, ack) // before anything else can be said
	if c.version == packet.V5 && ack.Properties.User == nil {
		c.withdrawConnackReport() // it had no room for what was lost
	}
	if cause := s.Cause(); cause != nil || s.Ended() { // it ended before it was seen
		c.close(cause)
		return nil
	}
	c.extendReadDeadline(now)
	c.broker.stats.connects.Add(1)
	return nil
}

// assignClientID gives the connection its client id: the subject's, alone or with a suffix.
func (c *conn) assignClientID(p *packet.Connect, subject watchword.SubjectID) (id string, assigned bool, err error) {
	id = p.ClientID
	if id == "" {
		if c.version == packet.V311 && !p.CleanStart {
			return "", false, protocolError(packet.ClientIdentifierNotValid, packet.CONNECT, "an empty client id with clean session 0")
		}
		return string(subject) + "/" + strconv.FormatInt(c.session.number, 36) + "-" + watchword.NewNonce()[:6], true, nil
	}
	name, suffix, more := strings.Cut(id, "/")
	if name != string(subject) || more && watchword.CheckName("client_id", suffix) != nil {
		return "", false, protocolError(packet.ClientIdentifierNotValid, packet.CONNECT, fmt.Sprintf("the client id must be %s, or %s/ and a name for a further connection", subject, subject))
	}
	return id, false, nil
}

// effectiveKeepAlive is for how long the client of a CONNECT may be silent.
func (c *conn) effectiveKeepAlive(p *packet.Connect) time.Duration {
	d := time.Duration(p.KeepAlive) * time.Second
	if limit := c.broker.options.KeepAlive; c.version == packet.V5 && (d == 0 || d > limit) {
		return limit
	}
	return d
}

// checkConnackFits refuses a client that takes no packet as large as its CONNACK, which
// it must have. Reason: packet too large.
func (c *conn) checkConnackFits(p *packet.Connect, ad *admission) error {
	if c.version != packet.V5 || c.out.maxPacket == 0 {
		return nil
	}
	ack := &packet.Connack{}
	c.addConnackLimits(ack, p, ad)
	if n := len(packet.Append(nil, ack, c.version)); n > c.out.maxPacket {
		return protocolError(packet.PacketTooLarge, packet.CONNECT, fmt.Sprintf("CONNACK has %d bytes at least, more than the maximum packet size", n))
	}
	return nil
}

// addConnackLimits says what there is and what not (MQTT 5.0 §3.2.2.3): what the client must hear.
func (c *conn) addConnackLimits(ack *packet.Connack, p *packet.Connect, ad *admission) {
	props := &ack.Properties
	props.SetNumber(packet.ReceiveMaximum, ReceiveMaximum)
	props.SetNumber(packet.MaximumPacketSize, uint32(c.broker.options.PacketBytes))
	props.SetNumber(packet.TopicAliasMaximum, maxAliases)
	if n, ok := p.Properties.Number(packet.SessionExpiryInterval); ok && n != c.sessionExpiry(p) {
		props.SetNumber(packet.SessionExpiryInterval, c.sessionExpiry(p))
	}
	if d := c.effectiveKeepAlive(p); d != time.Duration(p.KeepAlive)*time.Second {
		props.SetNumber(packet.ServerKeepAlive, uint32(d/time.Second))
	}
	if ad.assigned {
		props.SetText(packet.AssignedClientIdentifier, ad.clientID)
	}
	if c.enhancedAuth {
		props.SetText(packet.AuthenticationMethod, authMethodACE)
	}
}

// buildConnack adds to the limits what explains.
func (c *conn) buildConnack(ack *packet.Connack, p *packet.Connect, ad *admission, s *session.Session, lost []string, dropped int64) {
	c.addConnackLimits(ack, p, ad)
	props := &ack.Properties
	props.User = []packet.UserProp{{Name: "session", Value: string(s.ID())}, {Name: "expires_at", Value: s.Authority().Expires().UTC().Format(time.RFC3339)}}
	for _, f := range lost[:min(len(lost), maxReportedLost)] { // no client is left believing in a subscription that is gone
		props.User = append(props.User, packet.UserProp{Name: "lost", Value: f})
	}
	if dropped > 0 {
		props.User = append(props.User, packet.UserProp{Name: "dropped", Value: strconv.FormatInt(dropped, 10)})
	}
}

// maxReportedLost is how many lost subscriptions CONNACK names.
const maxReportedLost = 32

// lostFitsConnack reports whether CONNACK has room for the lost subscriptions beside the rest.
func (c *conn) lostFitsConnack(lost []string) bool {
	const rest, each = 512, len("lost") + 5
	size := rest
	for _, f := range lost {
		size += each + len(f)
	}
	return len(lost) <= maxReportedLost && (c.out.maxPacket == 0 || size <= c.out.maxPacket)
}

// sessionExpiry is how long the session outlives its connection, in seconds.
func (c *conn) sessionExpiry(p *packet.Connect) uint32 {
	limit := c.broker.maxSessionExpiry()
	if c.version == packet.V311 {
		if p.CleanStart {
			return 0
		}
		return limit
	}
	n, _ := p.Properties.Number(packet.SessionExpiryInterval)
	return min(n, limit)
}

// resumeSubscriptions takes from a session that goes on what a does not allow, and returns what was
// lost since its client last heard, how many messages found no room, and what must be on
// the disk before the client may hear that it is there. A client of version 3.1.1 cannot
// be told of a loss, nor one of more losses than CONNACK names: present becomes false, so
// that it subscribes anew and hears what it may not have. The session keeps the
// subscriptions that are left and what waits by them.
func (c *conn) resumeSubscriptions(a *session.Authority, present *bool) (lost []string, dropped int64, at *commit) {
	c.session.mu.Lock()
	per := c.session.persistent
	if per == nil || c.session.conn != c {
		c.session.mu.Unlock()
		return nil, 0, nil
	}
	_, redistributions := c.session.removeDeniedSubscriptions(a)
	var r lossReport
	if per.losses.mayReportTo(a) {
		r.lost = c.session.unreportedLosses()
		if c.version == packet.V5 {
			r.dropped = per.losses.dropped
		}
	}
	lost, dropped = lostFilters(r.lost), r.dropped
	if len(lost) > 0 && (c.version == packet.V311 || !c.lostFitsConnack(lost)) {
		c.session.removeAllReceived() // it may discard its side and use the identifiers for other messages
		*present = false
	}
	c.addReport(r, 0)
	c.updatePump()
	at = c.session.markChanged()
	if *present && !per.uncommitted {
		at = nil // it is on the disk
	}
	c.session.mu.Unlock()
	if len(redistributions) > 0 {
		go c.session.redistribute(redistributions, false)
	}
	return lost, dropped, at
}

// rejectConnect answers a CONNECT that is refused, and ends the connection.
func (c *conn) rejectConnect(err error) error {
	c.releaseReservation()
	ack := &packet.Connack{Code: reasonCode(err)}
	switch {
	case c.version == packet.V5:
		if !packet.MayCarry(packet.CONNACK, ack.Code) {
			ack.Code = packet.UnspecifiedError
		}
		ack.Properties.SetText(packet.ReasonString, publicText(err))
		ack.Properties.User = []packet.UserProp{{Name: "trace_id", Value: c.trace}}
	default: // also where the version is none that we speak
		c.version = packet.V311
		ack.Code = connectReturnCode(ack.Code)
	}
	c.respond(ack)
	c.broker.stats.refusedConnects.Add(1)
	c.close(err)
	return nil
}

// giveUpPlace gives up the place of a session that does not start.
func (c *conn) releaseReservation() {
	if ad := c.admission; ad != nil {
		c.admission = nil
		ad.reserved.Close(nil)
		c.broker.wills.releaseReservation(ad.will)
	}
}

// takeOver ends the connection whose client id connected again, if the admission of the
// other suffices. Its session is over when it returns without an error.
func (c *conn) takeOver(ad *admission) error {
	if err := c.closeIf(errTakenOver, func() error { return c.session.checkResumable(ad) }); err != nil {
		return err
	}
	c.broker.stats.takeovers.Add(1)
	if s := c.live(); s != nil {
		s.Close(nil)
	}
	return nil
}

// live returns the session, nil before there is one.
func (c *conn) live() *session.Session { return c.liveSession.Load() }
