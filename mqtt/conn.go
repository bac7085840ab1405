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
	firstPacket = 10 * time.Second // from the connection, TLS and all, to the end of CONNECT
	firstBytes  = 16 << 10         // of CONNECT
	maxSubs     = 1024             // subscriptions of one connection
	batchOffers = 4096             // deliveries before the receivers are flushed, however much is still to be read
)

// conn is one connection. One goroutine reads; what others may touch is in out,
// or says so.
type conn struct {
	broker      *Broker
	nc          net.Conn
	raw         syscall.RawConn // nil where a write cannot be tried
	remote      string
	trace       string // until there is a session, whose id it is then
	version     packet.Version
	problems    bool                            // the client wants reason strings
	liveSession atomic.Pointer[session.Session] // what the connection is authorized to do; nil until CONNECT is accepted
	processing  lockrank.Mutex[processingLock]  // held while packets are handled
	leaving     atomic.Bool
	unsure      atomic.Bool    // the last read emptied the socket, and may have missed its end
	gone        atomic.Bool    // it has
	parting     sync.WaitGroup // the farewell, while it lasts
	hasty       atomic.Bool    // nobody waits for the peer to hear it
	until       time.Time      // when that wait ends; zero for none. The farewell's, and then the reader's

	// session is the Session State. A connection starts with an empty one of its own. Where
	// CONNECT resumes a session, [conn.resume] replaces it, once, before the client can hear CONNACK.
	session *sessionState
	out     out
	// Under sessionState.mu.
	auth *subscription // to $watchword/auth, or nil
	ask  *time.Timer   // asks for a refresh in time; nil where nobody listens
	pump *pump         // hands commands over; nil where the client takes none

	reports []report  // what it was told of its losses, and may not have read yet
	rest    *remains  // what is to be done once the client is taken away; nil before
	givesTo []*giving // who is to get what the server keeps; the first one is at it

	hello *hello // what a device said first, or nil

	// The reader's own.
	keepAlive time.Duration
	extended  time.Time // when the deadline of reading was set, by the broker's clock
	pace      pace
	verdict   verdict
	admission *admission // of a CONNECT whose session has not started; else nil
	ace       *challenge // an exchange of enhanced authentication, or nil
	byAce     bool
	heard     []string // topics by their aliases, from 1 on; see [conn.hear]
}

// subscription is one filter of one client, which is its subscriber on the bus. What may change is under the
// client's mu.
type subscription struct {
	bus.Subscription // Filter is name without $share/group/

	session     *sessionState
	name        string // as the client wrote it
	qos         byte
	noLocal     bool
	asPublished bool
	identifier  uint32 // 0 for none
	dead        bool
	since       map[string]struct{} // topics that came since something kept is read for it; else nil

	memberOf *group // of a shared subscription
}

// newSubscription returns a subscription of st by the filter name, which is without $share/group/.
func newSubscription(st *sessionState, name, filter string) *subscription {
	s := &subscription{session: st, name: name}
	s.Filter, s.Subscriber, s.Number = filter, s, st.number
	return s
}

// options is that of SUBSCRIBE (MQTT 5.0 §3.8.3.1).
func (s *subscription) options() byte {
	o := s.qos
	if s.noLocal {
		o |= 4
	}
	if s.asPublished {
		o |= 8
	}
	return o
}

// verdict is what was decided on the topic that was published to last. It holds
// for one authority.
type verdict struct {
	by       *session.Authority
	topic    string
	cost     int // against controlRate
	decision policy.Decision
	house    house
}

// batch is what a reader borrows while it works through what came in.
type batch struct {
	bus.Batch
	publish packet.Publish
	whole   []byte // the packet in hand, as it came
	now     time.Time
	tick    time.Time // the same on the clock of timers, which nobody sets
}

var batchesOfWork = sync.Pool{New: func() any { return &batch{} }}

// serve reads until the end. It owns the connection.
func (c *conn) serve(ctx context.Context) {
	defer c.takeDown(ctx)
	defer c.recovered(ctx)
	in := inbox{}
	defer in.release()
	for {
		if c.leaving.Load() {
			c.linger(&in)
			return
		}
		var n int
		var err error
		if c.raw != nil && c.live() != nil {
			err = c.follow(ctx, &in)
		} else {
			n, err = c.nc.Read(in.room())
		}
		in.have += n
		if n > 0 && !c.leaving.Load() {
			used, rest := c.work(ctx, in.buf[:in.have])
			in.consume(used, rest)
		}
		if err != nil {
			c.waitHeld(0) // what came before the end is not lost with it
			if !c.leaving.Load() {
				c.handshake(err)
				c.lost(err)
			}
			return
		}
	}
}

// handshake reports err if it ended the TLS handshake, which the first read is part of.
func (c *conn) handshake(err error) {
	tell := c.broker.options.HandshakeFailed
	if tell == nil || c.live() != nil {
		return
	}
	if secret, ok := c.nc.(*tls.Conn); ok && !secret.ConnectionState().HandshakeComplete {
		tell(c.remote, err)
	}
}

// work handles every whole packet in b. It returns how much of b that was, and
// how long the packet that is not whole yet will be, if that is known.
func (c *conn) work(ctx context.Context, b []byte) (used, rest int) {
	used, rest = c.workOn(ctx, b)
	if !c.leaving.Load() {
		c.settle()
		c.waitHeld(heldBytes)
	}
	return used, rest
}

func (c *conn) workOn(ctx context.Context, b []byte) (used, rest int) {
	c.processing.Lock()
	defer c.processing.Unlock()
	w := c.borrow()
	defer c.giveBack(w)
	for !c.leaving.Load() {
		most := c.broker.options.PacketBytes
		if c.live() == nil {
			most = firstBytes
		}
		first, body, n, err := packet.Frame(b[used:], most)
		if err != nil {
			c.badFrame(b[used:], err)
			break
		}
		if n == 0 {
			rest = packet.Need(b[used:])
			break
		}
		if used == 0 {
			c.extend(w.now)
		}
		w.whole = b[used : used+n]
		used += n
		if c.waits(first) {
			c.hold(w.whole)
			continue
		}
		err = c.handle(ctx, w, first, body)
		if err == errHeld {
			c.hold(w.whole)
			continue
		}
		if err != nil {
			c.end(err)
			break
		}
		if w.Offers > batchOffers {
			w.Flush()
		}
	}
	return used, rest
}

// borrow takes a batch for what is handled from now on, with processing held.
func (c *conn) borrow() *batch {
	w := batchesOfWork.Get().(*batch)
	w.now, w.tick = c.broker.moment()
	return w
}

// giveBack flushes it first.
func (c *conn) giveBack(w *batch) {
	w.Flush()
	w.publish, w.whole = packet.Publish{}, nil
	batchesOfWork.Put(w)
}

// Flush writes what waits for the connection; see [bus.Batch.Flush].
func (c *conn) Flush() { c.flush(false) }

// extend moves the read deadline: one and a half keep-alives after the last
// packet (MQTT 5.0 §3.1.2.10). It is set anew only after an eighth of one, which
// leaves it above one and a quarter.
func (c *conn) extend(now time.Time) {
	if since := now.Sub(c.extended); c.keepAlive == 0 || since >= 0 && since < c.keepAlive/8 {
		return
	}
	c.extended = now
	// A connection's deadlines are of the machine's clock, whatever clock the broker is given.
	_ = c.nc.SetReadDeadline(time.Now().Add(c.keepAlive * 3 / 2)) // the error is that of a closed connection, which the next read reports
}

func (c *conn) handle(ctx context.Context, w *batch, first byte, body []byte) error {
	t := packet.Type(first >> 4)
	if c.live() == nil {
		return c.greet(ctx, w, first, body)
	}
	if t == packet.PUBLISH {
		if c.broker.draining.Load() {
			return nil // its client says it again
		}
		if !c.pay(publishRate, 1, w.tick) {
			return errHeld
		}
		w.publish.Topic = c.verdict.topic // the likely one
		if err := packet.ReadPublish(&w.publish, first, body, c.version); err != nil {
			return err
		}
		return c.publish(ctx, w, &w.publish)
	}
	if t == packet.CONNECT {
		return wrong(packet.ProtocolError, t, "a second one") // whatever it says
	}
	p, err := packet.Parse(first, body, c.version)
	if err != nil {
		return err
	}
	switch p := p.(type) {
	case *packet.Ack:
		return c.ack(p)
	case *packet.Subscribe:
		if !c.pay(controlRate, distinct(p.Filters), w.tick) {
			return errHeld
		}
		return c.subscribe(ctx, p)
	case *packet.Unsubscribe:
		if !c.pay(controlRate, distinct(p.Filters), w.tick) {
			return errHeld
		}
		return c.unsubscribe(p)
	case *packet.Ping:
		if p.Response {
			return wrong(packet.ProtocolError, t, "clients do not send it")
		}
		c.pinged()
		c.answer(&packet.Ping{Response: true})
		return nil
	case *packet.Disconnect:
		return c.disconnect(p)
	case *packet.Auth:
		if !c.pay(controlRate, proofCost, w.tick) {
			return errHeld
		}
		return c.reauthenticate(ctx, p, w.now)
	}
	return wrong(packet.ProtocolError, t, "clients do not send it")
}

func wrong(r packet.Reason, t packet.Type, what string) error {
	return &packet.Error{Reason: r, Type: t, What: what}
}

// disconnect is the client's own end: the will is dropped, unless the client
// asks for it, and its state may end sooner or later than it said at first (MQTT 5.0
// §3.14.2).
func (c *conn) disconnect(p *packet.Disconnect) error {
	if err := c.lastWords(p); err != nil {
		return err
	}
	c.end(nil)
	return nil
}

func (c *conn) lastWords(p *packet.Disconnect) error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.conn != c || c.out.closed {
		return nil
	}
	l := c.session.lasting
	if n, ok := p.Properties.Number(packet.SessionExpiry); ok {
		if n > 0 && (l == nil || l.expiry == 0) && c.broker.mostExpiry() > 0 {
			return wrong(packet.ProtocolError, packet.DISCONNECT, "a session expiry where CONNECT had none")
		}
		if l != nil {
			l.expiry, l.row = min(n, c.broker.mostExpiry()), true
			c.session.touch()
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

// errSlow ends a client that takes less than it asked for.
var errSlow = watchword.Refuse(watchword.Busy, "this connection is read too slowly")

var errPanic = watchword.Refuse(watchword.Internal, "panic")

// errTaken ends a connection whose client id connected again.
var errTaken = errors.New("the client connected again")

// end takes the connection's rights at once and says goodbye in the background.
// It never blocks, may be called by anybody, and does it once. cause is nil where
// the client itself wants to go.
func (c *conn) end(cause error) { _ = c.endIf(cause, func() error { return nil }) } // no reason not to

// endIf is end where may, asked with the client's mu held, returns no error.
func (c *conn) endIf(cause error, may func() error) error {
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
	if s, ok := c.nc.(*socket); ok {
		s.below.ended.Store(true)
		if cause != nil {
			s.why.Store(&cause)
		}
	}
	if cause != nil {
		c.out.control = c.appendGoodbye(c.out.control, cause)
	}
	rest := c.detachFor(cause)
	c.parting.Go(func() { c.farewell(rest) })
	c.leaving.Store(true) // the reader, which sees it, waits for the farewell
	c.out.moved.Broadcast()
	c.session.mu.Unlock()
	if cause != nil {
		c.broker.refused(c, "connection ended", "", cause)
	}
	return nil
}

// farewell does what is left to do, writes what is left to say, and lets the peer hear
// it before the connection goes: a reset would take the last words along.
func (c *conn) farewell(rest remains) {
	c.bury(c.broker.ctx, rest)
	_ = c.nc.SetWriteDeadline(time.Now().Add(byeTimeout)) // errors here are those of a connection that is gone
	c.session.mu.Lock()
	for c.out.writing && !c.out.failed {
		c.out.moved.Wait()
	}
	c.session.mu.Unlock()
	c.flush(true)
	c.awaitPeer()
}

// lost is the reader's: the peer is gone, or silent, or sent a frame of WebSocket that is refused.
func (c *conn) lost(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c.live() == nil {
			c.end(wrong(packet.KeepAliveTimeout, packet.CONNECT, "no CONNECT in time"))
			return
		}
		c.end(wrong(packet.KeepAliveTimeout, packet.PINGREQ, "nothing came for one and a half keep-alives"))
		return
	}
	if bad, ok := errors.AsType[*frameError](err); ok {
		c.end(bad)
		return
	}
	c.session.mu.Lock()
	c.out.closed, c.out.failed = true, true
	rest := c.detachFor(nil)
	c.leaving.Store(true)
	c.out.moved.Broadcast()
	c.session.mu.Unlock()
	c.bury(c.broker.ctx, rest)
}

// takeDown is the reader's last step.
func (c *conn) takeDown(ctx context.Context) {
	c.giveUpPlace()
	c.broker.known(c)
	c.leavePace()
	c.parting.Wait()
	c.session.mu.Lock()
	rest := c.detachFor(nil) // where a write failed, nobody has it yet
	c.session.mu.Unlock()
	c.bury(ctx, rest)
	c.forgetAliases()
	_ = c.nc.Close()
	c.awaited()
	if s := c.live(); s != nil {
		s.Close(nil)
	}
}
