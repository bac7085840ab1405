package mqtt

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqtt/packet"
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
	tenant             atomic.Pointer[watchword.TenantID] // of the host that the client named; nil before CONNECT, and where there is none
	trace              string                             // until there is a session, whose id it is then
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

// Flush writes what waits for the connection; see [bus.Batch.Flush].
func (c *conn) Flush() { c.flush(false) }
