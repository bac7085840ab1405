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

// shortConnack is how long a CONNACK is that says nothing but its code: what may be sent
// to whom nothing is known of.
const shortConnack = 5

// greet handles what comes before the session stands: CONNECT, and the rest of
// an exchange of enhanced authentication.
func (c *conn) greet(ctx context.Context, w *batch, first byte, body []byte) error {
	switch t := packet.Type(first >> 4); {
	case t == packet.CONNECT && c.ace == nil:
	case t == packet.AUTH && c.ace != nil:
		p, err := packet.Parse(first, body, c.version)
		if err != nil {
			return c.turnAway(err)
		}
		return c.answered(ctx, w.now, p.(*packet.Auth))
	default:
		return wrong(packet.ProtocolError, t, "CONNECT comes first")
	}
	if err := c.broker.rates.Take(network(c.remote), w.now); err != nil {
		c.saysV5(body) // no more of it is read
		return c.turnAway(err)
	}
	p, err := packet.Parse(first, bytes.Clone(body), packet.V5) // it may have to wait for a proof
	if err != nil {
		if e, ok := errors.AsType[*packet.Error](err); ok && e.Reason == packet.BadVersion || c.saysV5(body) {
			return c.turnAway(err)
		}
		return err // MQTT 3.1.1 §3.1.4: closed without CONNACK
	}
	cp := p.(*packet.Connect)
	c.version = cp.Version
	if err := c.openings(cp); err != nil {
		return c.turnAway(err)
	}
	if method, ok := cp.Properties.Text(packet.AuthMethod); ok {
		err = c.beginAce(ctx, w.now, method, cp)
	} else {
		var papers session.Papers
		may := func(papers session.Papers) error { return c.admit(ctx, cp, papers) }
		if papers, err = c.papers(ctx, w.now, string(cp.Password), may); err == nil {
			err = c.open(ctx, w.now, cp, papers)
		}
	}
	if err != nil {
		return c.turnAway(err)
	}
	return nil
}

// saysV5 reports whether the body of a CONNECT that is not read to its end is of version
// 5, whose client may be told why it is refused (MQTT 5.0 §3.1.4), as shortly as can be.
func (c *conn) saysV5(body []byte) bool {
	if !bytes.HasPrefix(body, []byte("\x00\x04MQTT\x05")) {
		return false
	}
	c.version, c.out.largest = packet.V5, shortConnack
	return true
}

// badFrame ends a connection for a packet that is none, or too large. A CONNECT of
// version 5 is answered.
func (c *conn) badFrame(b []byte, err error) {
	if c.live() == nil && c.ace == nil && packet.Type(b[0]>>4) == packet.CONNECT {
		at := 1
		for at < len(b) && b[at] >= 128 && at < 4 { // its length
			at++
		}
		if at+1 < len(b) && c.saysV5(b[at+1:]) {
			_ = c.turnAway(err) // always nil
			return
		}
	}
	c.end(err)
}

// network is whom a remote address is counted with.
func network(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	return rates.Network(ap.Addr().Unmap())
}

// openings notes what CONNECT says of the connection itself, and refuses what
// there is not.
func (c *conn) openings(p *packet.Connect) error {
	c.problems = true
	if n, ok := p.Properties.Number(packet.RequestProblem); ok {
		c.problems = n == 1
	}
	c.session.mu.Lock()
	if n, ok := p.Properties.Number(packet.ReceiveMaximum); ok {
		c.out.window = min(int(n), maxFlights)
	}
	if n, ok := p.Properties.Number(packet.MaximumPacketSize); ok {
		c.out.largest = int(n)
	}
	if n, ok := p.Properties.Number(packet.TopicAliasMaximum); ok {
		c.out.aliased = min(int(n), maxAliases)
	}
	c.session.mu.Unlock()
	return nil
}

// papers checks a password: an access token, or a client assertion, which is
// exchanged in place. may is asked before the assertion is spent.
func (c *conn) papers(ctx context.Context, now time.Time, password string, may func(session.Papers) error) (session.Papers, error) {
	const t = watchword.DefaultTenant
	if password == "" {
		return session.Papers{}, watchword.Refuse(watchword.Unauthenticated, "send an access token or a client assertion as the password")
	}
	if token.LooksLikeAssertion(password) {
		return c.broker.deps.Office.Login(ctx, t, password, may, watchword.NewID("", now), now)
	}
	papers, err := c.broker.deps.Office.Admit(ctx, t, password, now)
	if err == nil {
		err = may(papers)
	}
	return papers, err
}

// open starts the session that was admitted, and answers CONNECT.
func (c *conn) open(ctx context.Context, now time.Time, p *packet.Connect, papers session.Papers) error {
	ad := c.admission
	c.session.world = c.broker.world(papers.Tenant)
	present, err := c.enter(ad)
	if err != nil {
		return err
	}
	s := ad.place
	if err := s.Start(ctx); err != nil {
		return err
	}
	c.admission = nil // takeDown knows the session
	written, err := c.setWill(ad.will, s)
	if err != nil {
		s.Close(nil)
		return err
	}
	c.broker.wills.cameBack(c.session, s.Authority(), present, now)
	c.keepAlive = c.keepAliveOf(p)
	_ = c.nc.SetDeadline(time.Time{}) // the error is that of a closed connection, which the next read reports
	c.extended = time.Time{}
	ack := &packet.Connack{}
	lost, dropped, at := c.regain(s.Authority(), &present)
	if at == nil {
		at = written // else at is that commit, or comes after it
	}
	ack.SessionPresent = present
	if c.version == packet.V5 {
		c.promise(ack, p, ad, s, lost, dropped)
	}
	c.join(time.Now())
	c.liveSession.Store(s)
	c.broker.known(c)
	c.answerAfter(at, ack) // before anything else can be said
	if c.version == packet.V5 && ack.Properties.User == nil {
		c.unsay() // it had no room for what was lost
	}
	if cause := s.Cause(); cause != nil || s.Over() { // it ended before it was seen
		c.end(cause)
		return nil
	}
	c.extend(now)
	c.broker.stats.connects.Add(1)
	return nil
}

// name gives the connection its client id: the subject's, alone or with a suffix.
func (c *conn) name(p *packet.Connect, subject watchword.SubjectID) (id string, assigned bool, err error) {
	id = p.ClientID
	if id == "" {
		if c.version == packet.V311 && !p.CleanStart {
			return "", false, wrong(packet.BadClientID, packet.CONNECT, "an empty client id with clean session 0")
		}
		return string(subject) + "/" + strconv.FormatInt(c.session.number, 36) + "-" + watchword.NewNonce()[:6], true, nil
	}
	name, suffix, more := strings.Cut(id, "/")
	if name != string(subject) || more && watchword.CheckName("client_id", suffix) != nil {
		return "", false, wrong(packet.BadClientID, packet.CONNECT, fmt.Sprintf("the client id must be %s, or %s/ and a name for a further connection", subject, subject))
	}
	return id, false, nil
}

// keepAliveOf is for how long the client of a CONNECT may be silent.
func (c *conn) keepAliveOf(p *packet.Connect) time.Duration {
	d := time.Duration(p.KeepAlive) * time.Second
	if most := c.broker.options.KeepAlive; c.version == packet.V5 && (d == 0 || d > most) {
		return most
	}
	return d
}

// mayAnswerConnect refuses a client that takes no packet as large as its CONNACK, which
// it must have. Reason: packet too large.
func (c *conn) mayAnswerConnect(p *packet.Connect, ad *admission) error {
	if c.version != packet.V5 || c.out.largest == 0 {
		return nil
	}
	ack := &packet.Connack{}
	c.limits(ack, p, ad)
	if n := len(packet.Append(nil, ack, c.version)); n > c.out.largest {
		return wrong(packet.TooLarge, packet.CONNECT, fmt.Sprintf("CONNACK has %d bytes at least, more than the maximum packet size", n))
	}
	return nil
}

// limits says what there is and what not (MQTT 5.0 §3.2.2.3): what the client must hear.
func (c *conn) limits(ack *packet.Connack, p *packet.Connect, ad *admission) {
	props := &ack.Properties
	props.SetNumber(packet.ReceiveMaximum, ReceiveMaximum)
	props.SetNumber(packet.MaximumPacketSize, uint32(c.broker.options.PacketBytes))
	props.SetNumber(packet.TopicAliasMaximum, maxAliases)
	if n, ok := p.Properties.Number(packet.SessionExpiry); ok && n != c.expiry(p) {
		props.SetNumber(packet.SessionExpiry, c.expiry(p))
	}
	if d := c.keepAliveOf(p); d != time.Duration(p.KeepAlive)*time.Second {
		props.SetNumber(packet.ServerKeepAlive, uint32(d/time.Second))
	}
	if ad.assigned {
		props.SetText(packet.AssignedClientID, ad.id)
	}
	if c.byAce {
		props.SetText(packet.AuthMethod, aceMethod)
	}
}

// promise adds to the limits what explains.
func (c *conn) promise(ack *packet.Connack, p *packet.Connect, ad *admission, s *session.Session, lost []string, dropped int64) {
	c.limits(ack, p, ad)
	props := &ack.Properties
	props.User = []packet.Pair{{Name: "session", Value: string(s.ID())}, {Name: "expires_at", Value: s.Authority().Expires().UTC().Format(time.RFC3339)}}
	for _, f := range lost[:min(len(lost), maxLost)] { // no client is left believing in a subscription that is gone
		props.User = append(props.User, packet.Pair{Name: "lost", Value: f})
	}
	if dropped > 0 {
		props.User = append(props.User, packet.Pair{Name: "dropped", Value: strconv.FormatInt(dropped, 10)})
	}
}

// maxLost is how many lost subscriptions CONNACK names.
const maxLost = 32

// mayName reports whether CONNACK has room for the lost subscriptions beside the rest.
func (c *conn) mayName(lost []string) bool {
	const rest, each = 512, len("lost") + 5
	size := rest
	for _, f := range lost {
		size += each + len(f)
	}
	return len(lost) <= maxLost && (c.out.largest == 0 || size <= c.out.largest)
}

// expiry is how long the session outlives its connection, in seconds.
func (c *conn) expiry(p *packet.Connect) uint32 {
	most := c.broker.mostExpiry()
	if c.version == packet.V311 {
		if p.CleanStart {
			return 0
		}
		return most
	}
	n, _ := p.Properties.Number(packet.SessionExpiry)
	return min(n, most)
}

// regain takes from a session that goes on what a does not allow, and returns what was
// lost since its client last heard, how many messages found no room, and what must be on
// the disk before the client may hear that it is there. A client of version 3.1.1 cannot
// be told of a loss, nor one of more losses than CONNACK names: present becomes false, so
// that it subscribes anew and hears what it may not have. The session keeps the
// subscriptions that are left and what waits by them.
func (c *conn) regain(a *session.Authority, present *bool) (lost []string, dropped int64, at *commit) {
	c.session.mu.Lock()
	l := c.session.lasting
	if l == nil || c.session.conn != c {
		c.session.mu.Unlock()
		return nil, 0, nil
	}
	_, orphans := c.session.lose(a)
	var r report
	if l.sameHolder(a) {
		r.lost = c.session.untold()
		if c.version == packet.V5 {
			r.dropped = l.dropped
		}
	}
	lost, dropped = names(r.lost), r.dropped
	if len(lost) > 0 && (c.version == packet.V311 || !c.mayName(lost)) {
		c.session.unreceiveAll() // it may discard its side and use the identifiers for other messages
		*present = false
	}
	c.says(r, 0)
	c.keepPump()
	at = c.session.touch()
	if *present && !l.unwritten {
		at = nil // it is on the disk
	}
	c.session.mu.Unlock()
	if len(orphans) > 0 {
		go c.session.hand(orphans, false)
	}
	return lost, dropped, at
}

// turnAway answers a CONNECT that is refused, and ends the connection.
func (c *conn) turnAway(err error) error {
	c.giveUpPlace()
	ack := &packet.Connack{Code: reasonFor(err)}
	switch {
	case c.version == packet.V5:
		if !packet.MayCarry(packet.CONNACK, ack.Code) {
			ack.Code = packet.Unspecified
		}
		ack.Properties.SetText(packet.ReasonString, words(err))
		ack.Properties.User = []packet.Pair{{Name: "trace_id", Value: c.trace}}
	default: // also where the version is none that we speak
		c.version = packet.V311
		ack.Code = returnCode(ack.Code)
	}
	c.answer(ack)
	c.broker.stats.turnedAway.Add(1)
	c.end(err)
	return nil
}

// giveUpPlace gives up the place of a session that does not start.
func (c *conn) giveUpPlace() {
	if ad := c.admission; ad != nil {
		c.admission = nil
		ad.place.Close(nil)
		c.broker.wills.giveBack(ad.will)
	}
}

// takenOver ends the connection whose client id connected again, if the admission of the
// other suffices. Its session is over when it returns without an error.
func (c *conn) takenOver(ad *admission) error {
	if err := c.endIf(errTaken, func() error { return c.session.yields(ad) }); err != nil {
		return err
	}
	c.broker.stats.takeover.Add(1)
	if s := c.live(); s != nil {
		s.Close(nil)
	}
	return nil
}

// live returns the session, nil before there is one.
func (c *conn) live() *session.Session { return c.liveSession.Load() }
