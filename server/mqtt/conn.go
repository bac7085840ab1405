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
	"github.com/watchword-iot/watchword/server/session"
)

// Limits of reading.
const (
	connectTimeout          = 10 * time.Second // from the connection, TLS handshake included, to the end of CONNECT
	maxUnauthenticatedBytes = 16 << 10         // of CONNECT
	maxSubscriptions        = 1024             // subscriptions of one connection
	maxBatchDeliveries      = 4096             // deliveries before receivers are flushed, however much input is left
)

// conn is one connection. One goroutine reads it; fields without a lock of their own belong to the
// reader.
type conn struct {
	broker             *Broker
	nc                 net.Conn
	rawConn            syscall.RawConn // nil: nonblocking writes are not possible
	remote             string
	tenant             atomic.Pointer[watchword.TenantID] // of the host that the client named; nil before CONNECT, and where there is none
	trace              string                             // until there is a session, whose id it is then
	version            packet.Version
	wantsReasonStrings bool                            // Request Problem Information
	liveSession        atomic.Pointer[session.Session] // what the connection is authorized to do; nil until CONNECT is accepted
	processing         lockrank.Mutex[processingLock]  // held while packets are handled
	closing            atomic.Bool
	maybeHalfClosed    atomic.Bool    // the last read emptied the socket, so an EOF may be pending
	detached           atomic.Bool    // the EOF was read
	finalWrites        sync.WaitGroup // finishWriting, while it runs
	noLinger           atomic.Bool    // the peer need not read the final packet
	lingerUntil        time.Time      // end of the linger; zero: none. Set by finishWriting, then read by the reader

	// session is the Session State. A connection starts with an empty one of its own. If CONNECT resumes a session,
	// [conn.resume] replaces it, once, before CONNACK is sent.
	session *sessionState
	out     outbound
	// Protected by sessionState.mu.
	noticeSubscription *subscription // to $watchword/auth, or nil
	refreshTimer       *time.Timer   // requests a refresh in time; nil without subscription to $watchword/auth
	pump               *commandPump  // delivers commands; nil if the client receives none

	pendingReports     []lossReport        // loss reports that the client may not have read yet
	teardown           *teardown           // what is left to do after the detach; nil before
	retainedDeliveries []*retainedDelivery // pending deliveries of retained messages; the first one is running

	hello *hello // the device's hello, or nil

	// Used by the reader only.
	keepAlive        time.Duration
	deadlineSetAt    time.Time // when the read deadline was set, by the broker's clock
	limiter          rateLimiter
	publishDecision  publishDecision
	admission        *admission // admission of a CONNECT whose session has not started; else nil
	pendingChallenge *challenge // pending enhanced authentication, or nil
	enhancedAuth     bool
	inboundAliases   []string // topics by alias, from 1 on; see [conn.setInboundAlias]
}

// serve reads the connection until its end and owns it.
func (c *conn) serve(ctx context.Context) {
	defer c.finishServing(ctx)
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
			c.waitForDelayed(0) // packets before the EOF are handled
			if !c.closing.Load() {
				c.reportHandshakeError(err)
				c.handleReadError(err)
			}
			return
		}
	}
}

// reportHandshakeError reports err if the TLS handshake, which is part of the first read, failed
// with it.
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
