package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// The bounds of reading.
const (
	connectTimeout          = 10 * time.Second // from the connection, TLS and all, to the end of CONNECT
	maxUnauthenticatedBytes = 16 << 10         // of CONNECT
	maxSubscriptions        = 1024             // subscriptions of one connection
	maxBatchDeliveries      = 4096             // deliveries before the receivers are flushed, however much is still to be read
)

// conn is one connection. One goroutine reads; what others may touch is in out,
// or says so.
type conn struct {
	broker             *Broker
	nc                 net.Conn
	rawConn            syscall.RawConn // nil where a write cannot be tried
	remote             string
	trace              string // until there is a session, whose id it is then
	version            packet.Version
	wantsReasonStrings bool                            // the client wants reason strings
	liveSession        atomic.Pointer[session.Session] // what the connection is authorized to do; nil until CONNECT is accepted
	processing         lockrank.Mutex[processingLock]  // held while packets are handled
	closing            atomic.Bool
	maybeHalfClosed    atomic.Bool    // the last read emptied the socket, and may have missed its end
	detached           atomic.Bool    // it has
	farewells          sync.WaitGroup // the farewell, while it lasts
	noLinger           atomic.Bool    // nobody waits for the peer to hear it
	lingerUntil        time.Time      // when that wait ends; zero for none. The farewell's, and then the reader's

	// session is the Session State. A connection starts with an empty one of its own. Where
	// CONNECT resumes a session, [conn.resume] replaces it, once, before the client can hear CONNACK.
	session *sessionState
	out     outbound
	// Under sessionState.mu.
	noticeSubscription *subscription // to $watchword/auth, or nil
	refreshTimer       *time.Timer   // asks for a refresh in time; nil where nobody listens
	pump               *commandPump  // hands commands over; nil where the client takes none

	pendingReports     []lossReport        // what it was told of its losses, and may not have read yet
	teardown           *teardown           // what is to be done once the client is taken away; nil before
	retainedDeliveries []*retainedDelivery // who is to get what the server keeps; the first one is at it

	hello *hello // what a device said first, or nil

	// The reader's own.
	keepAlive        time.Duration
	deadlineSetAt    time.Time // when the deadline of reading was set, by the broker's clock
	limiter          rateLimiter
	publishDecision  publishDecision
	admission        *admission // of a CONNECT whose session has not started; else nil
	pendingChallenge *challenge // an exchange of enhanced authentication, or nil
	enhancedAuth     bool
	inboundAliases   []string // topics by their aliases, from 1 on; see [conn.setInboundAlias]
}

// subscription is one filter of one client, which is its subscriber on the bus. What may change is under the
// client's mu.
type subscription struct {
	bus.Subscription // Filter is name without $share/group/

	session           *sessionState
	clientFilter      string // as the client wrote it
	qos               byte
	noLocal           bool
	retainAsPublished bool
	identifier        uint32 // 0 for none
	removed           bool
	liveTopics        map[string]struct{} // topics that came since something kept is read for it; else nil

	memberOf *sharedGroup // of a shared subscription
}

// newSubscription returns a subscription of st by the filter name, which is without $share/group/.
func newSubscription(st *sessionState, name, filter string) *subscription {
	s := &subscription{session: st, clientFilter: name}
	s.Filter, s.Subscriber, s.Number = filter, s, st.number
	return s
}

// options is that of SUBSCRIBE (MQTT 5.0 §3.8.3.1).
func (s *subscription) options() byte {
	o := s.qos
	if s.noLocal {
		o |= 4
	}
	if s.retainAsPublished {
		o |= 8
	}
	return o
}

// publishDecision is what was decided on the topic that was published to last. It holds
// for one authority.
type publishDecision struct {
	authority *session.Authority
	topic     string
	cost      int // against controlRate
	decision  policy.Decision
	system    systemTopic
}

// workBatch is what a reader borrows while it works through what came in.
type workBatch struct {
	bus.Batch
	publish   packet.Publish
	encoded   []byte // the packet in hand, as it came
	now       time.Time
	monotonic time.Time // the same on the clock of timers, which nobody sets
}

var workBatches = sync.Pool{New: func() any { return &workBatch{} }}

// serve reads until the end. It owns the connection.
func (c *conn) serve(ctx context.Context) {
	defer c.cleanUp(ctx)
	defer c.closeOnPanic(ctx)
	in := readBuffer{}
	defer in.release()
	for {
		if c.closing.Load() {
			c.linger(&in)
			return
		}
		var n int
		var err error
		if c.rawConn != nil && c.live() != nil {
			err = c.readPlain(ctx, &in)
		} else {
			n, err = c.nc.Read(in.room())
		}
		in.buffered += n
		if n > 0 && !c.closing.Load() {
			used, rest := c.handlePackets(ctx, in.buf[:in.buffered])
			in.consume(used, rest)
		}
		if err != nil {
			c.waitForDelayed(0) // what came before the end is not lost with it
			if !c.closing.Load() {
				c.reportHandshakeError(err)
				c.connectionLost(err)
			}
			return
		}
	}
}

// reportHandshakeError reports err if it ended the TLS handshake, which the first read is part of.
func (c *conn) reportHandshakeError(err error) {
	tell := c.broker.options.HandshakeFailed
	if tell == nil || c.live() != nil {
		return
	}
	if secret, ok := c.nc.(*tls.Conn); ok && !secret.ConnectionState().HandshakeComplete {
		tell(c.remote, err)
	}
}

// handlePackets handles every whole packet in b. It returns how much of b that was, and
// how long the packet that is not whole yet will be, if that is known.
func (c *conn) handlePackets(ctx context.Context, b []byte) (used, rest int) {
	used, rest = c.handlePacketsLocked(ctx, b)
	if !c.closing.Load() {
		c.flushResponses()
		c.waitForDelayed(maxDelayedBytes)
	}
	return used, rest
}

func (c *conn) handlePacketsLocked(ctx context.Context, b []byte) (used, rest int) {
	c.processing.Lock()
	defer c.processing.Unlock()
	w := c.borrowBatch()
	defer c.returnBatch(w)
	for !c.closing.Load() {
		limit := c.broker.options.PacketBytes
		if c.live() == nil {
			limit = maxUnauthenticatedBytes
		}
		first, body, n, err := packet.Frame(b[used:], limit)
		if err != nil {
			c.rejectFrame(b[used:], err)
			break
		}
		if n == 0 {
			rest = packet.NeededBytes(b[used:])
			break
		}
		if used == 0 {
			c.extendReadDeadline(w.now)
		}
		w.encoded = b[used : used+n]
		used += n
		if c.mustWaitBehind(first) {
			c.delay(w.encoded)
			continue
		}
		err = c.handlePacket(ctx, w, first, body)
		if err == errDelayed {
			c.delay(w.encoded)
			continue
		}
		if err != nil {
			c.close(err)
			break
		}
		if w.Offers > maxBatchDeliveries {
			w.Flush()
		}
	}
	return used, rest
}

// borrowBatch takes a batch for what is handled from now on, with processing held.
func (c *conn) borrowBatch() *workBatch {
	w := workBatches.Get().(*workBatch)
	w.now, w.monotonic = c.broker.times()
	return w
}

// returnBatch flushes it first.
func (c *conn) returnBatch(w *workBatch) {
	w.Flush()
	w.publish, w.encoded = packet.Publish{}, nil
	workBatches.Put(w)
}

// Flush writes what waits for the connection; see [bus.Batch.Flush].
func (c *conn) Flush() { c.flush(false) }

// extendReadDeadline moves the read deadline: one and a half keep-alives after the last
// packet (MQTT 5.0 §3.1.2.10). It is set anew only after an eighth of one, which
// leaves it above one and a quarter.
func (c *conn) extendReadDeadline(now time.Time) {
	if since := now.Sub(c.deadlineSetAt); c.keepAlive == 0 || since >= 0 && since < c.keepAlive/8 {
		return
	}
	c.deadlineSetAt = now
	// A connection's deadlines are of the machine's clock, whatever clock the broker is given.
	_ = c.nc.SetReadDeadline(time.Now().Add(c.keepAlive * 3 / 2)) // the error is that of a closed connection, which the next read reports
}

func (c *conn) handlePacket(ctx context.Context, w *workBatch, first byte, body []byte) error {
	t := packet.Type(first >> 4)
	if c.live() == nil {
		return c.handleConnect(ctx, w, first, body)
	}
	if t == packet.PUBLISH {
		if c.broker.draining.Load() {
			return nil // its client says it again
		}
		if !c.takeRate(publishRate, 1, w.monotonic) {
			return errDelayed
		}
		w.publish.Topic = c.publishDecision.topic // the likely one
		if err := packet.ReadPublish(&w.publish, first, body, c.version); err != nil {
			return err
		}
		return c.handlePublish(ctx, w, &w.publish)
	}
	if t == packet.CONNECT {
		return protocolError(packet.ProtocolError, t, "a second one") // whatever it says
	}
	p, err := packet.Parse(first, body, c.version)
	if err != nil {
		return err
	}
	switch p := p.(type) {
	case *packet.Ack:
		return c.handleAck(p)
	case *packet.Subscribe:
		if !c.takeRate(controlRate, countDistinct(p.Filters), w.monotonic) {
			return errDelayed
		}
		return c.handleSubscribe(ctx, p)
	case *packet.Unsubscribe:
		if !c.takeRate(controlRate, countDistinct(p.Filters), w.monotonic) {
			return errDelayed
		}
		return c.handleUnsubscribe(p)
	case *packet.Ping:
		if p.Response {
			return protocolError(packet.ProtocolError, t, "clients do not send it")
		}
		c.handlePingreq()
		c.respond(&packet.Ping{Response: true})
		return nil
	case *packet.Disconnect:
		return c.handleDisconnect(p)
	case *packet.Auth:
		if !c.takeRate(controlRate, proofCost, w.monotonic) {
			return errDelayed
		}
		return c.reauthenticate(ctx, p, w.now)
	}
	return protocolError(packet.ProtocolError, t, "clients do not send it")
}

func protocolError(r packet.Reason, t packet.Type, what string) error {
	return &packet.Error{Reason: r, Type: t, Detail: what}
}

// handleDisconnect is the client's own end: the will is dropped, unless the client
// asks for it, and its state may end sooner or later than it said at first (MQTT 5.0
// §3.14.2).
func (c *conn) handleDisconnect(p *packet.Disconnect) error {
	if err := c.applyDisconnect(p); err != nil {
		return err
	}
	c.close(nil)
	return nil
}

func (c *conn) applyDisconnect(p *packet.Disconnect) error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.conn != c || c.out.closed {
		return nil
	}
	per := c.session.persistent
	if n, ok := p.Properties.Number(packet.SessionExpiryInterval); ok {
		if n > 0 && (per == nil || per.expiry == 0) && c.broker.maxSessionExpiry() > 0 {
			return protocolError(packet.ProtocolError, packet.DISCONNECT, "a session expiry where CONNECT had none")
		}
		if per != nil {
			per.setExpiry(min(n, c.broker.maxSessionExpiry()))
			c.session.markChanged()
		}
	}
	if p.Reason == packet.Success { // MQTT 5.0 §3.14.4
		if c.session.will != nil {
			c.broker.wills.cancel(c.session.will)
			c.session.will = nil
		}
	}
	return nil
}

// errSlowConsumer ends a client that takes less than it asked for.
var errSlowConsumer = watchword.Refuse(watchword.Busy, "this connection is read too slowly")

var errPanic = watchword.Refuse(watchword.Internal, "panic")

// errTakenOver ends a connection whose client id connected again.
var errTakenOver = errors.New("the client connected again")

// close takes the connection's rights at once and says goodbye in the background.
// It never blocks, may be called by anybody, and does it once. cause is nil where
// the client itself wants to go.
func (c *conn) close(cause error) { _ = c.closeIf(cause, func() error { return nil }) } // no reason not to

// closeIf is end where may, asked with the client's mu held, returns no error.
func (c *conn) closeIf(cause error, may func() error) error {
	c.session.mu.Lock()
	if c.out.closed {
		c.session.mu.Unlock()
		return nil
	}
	if err := may(); err != nil {
		c.session.mu.Unlock()
		return err
	}
	c.out.closed = true
	if s, ok := c.nc.(*webSocketConn); ok {
		s.frameConn.ended.Store(true)
		if cause != nil {
			s.closeErr.Store(&cause)
		}
	}
	if cause != nil {
		c.out.responses = c.appendDisconnect(c.out.responses, cause)
	}
	td := c.detachFor(cause)
	c.farewells.Go(func() { c.finishClose(td) })
	c.closing.Store(true) // the reader, which sees it, waits for the farewell
	c.out.moved.Broadcast()
	c.session.mu.Unlock()
	if cause != nil {
		c.broker.recordRefusal(c, "connection ended", "", cause)
	}
	return nil
}

// finishClose does what is left to do, writes what is left to say, and lets the peer hear
// it before the connection goes: a reset would take the last words along.
func (c *conn) finishClose(td teardown) {
	c.finishTeardown(c.broker.ctx, td)
	_ = c.nc.SetWriteDeadline(time.Now().Add(closeTimeout)) // errors here are those of a connection that is gone
	c.session.mu.Lock()
	for c.out.writing && !c.out.failed {
		c.out.moved.Wait()
	}
	c.session.mu.Unlock()
	c.flush(true)
	c.lingerForPeer()
}

// connectionLost is the reader's: the peer is gone, or silent, or sent a frame of WebSocket that is refused.
func (c *conn) connectionLost(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c.live() == nil {
			c.close(protocolError(packet.KeepAliveTimeout, packet.CONNECT, "no CONNECT in time"))
			return
		}
		c.close(protocolError(packet.KeepAliveTimeout, packet.PINGREQ, "nothing came for one and a half keep-alives"))
		return
	}
	if bad, ok := errors.AsType[*frameError](err); ok {
		c.close(bad)
		return
	}
	c.session.mu.Lock()
	c.out.closed, c.out.failed = true, true
	td := c.detachFor(nil)
	c.closing.Store(true)
	c.out.moved.Broadcast()
	c.session.mu.Unlock()
	c.finishTeardown(c.broker.ctx, td)
}

// cleanUp is the reader's last step.
func (c *conn) cleanUp(ctx context.Context) {
	c.releaseReservation()
	c.broker.authenticated(c)
	c.leaveRates()
	c.farewells.Wait()
	c.session.mu.Lock()
	td := c.detachFor(nil) // where a write failed, nobody has it yet
	c.session.mu.Unlock()
	c.finishTeardown(ctx, td)
	c.forgetAliases()
	_ = c.nc.Close()
	c.endLinger()
	if s := c.live(); s != nil {
		s.Close(nil)
	}
}
