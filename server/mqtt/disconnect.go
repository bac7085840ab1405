package mqtt

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// errSlowConsumer ends a client that does not read its messages.
var errSlowConsumer = watchword.Refuse(watchword.Busy, "the client reads its messages too slowly")

var errPanic = watchword.Refuse(watchword.Internal, "panic")

// errTakenOver ends a connection whose client identifier connected again.
var errTakenOver = errors.New("the client identifier connected again")

// handleDisconnect handles DISCONNECT: the will is deleted unless the client asks for it, and the
// Session Expiry Interval may change (MQTT 5.0 §3.14.2).
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
			return protocolError(packet.ProtocolError, packet.DISCONNECT, "Session Expiry Interval must be 0 in DISCONNECT if it was 0 in CONNECT")
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

// close ends the connection's authority at once and finishes in the background. It does not block,
// is safe for concurrent use, and has an effect once. cause is nil for DISCONNECT of the client.
func (c *conn) close(cause error) { _ = c.closeIf(cause, func() error { return nil }) } // no reason not to

// closeIf is close if may, called with the session's mu held, returns nil.
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
	td := c.detachSession(cause)
	c.finalWrites.Go(func() { c.finishWriting(td) })
	c.closing.Store(true) // the reader notices it and waits for finishWriting
	c.out.changed.Broadcast()
	c.session.mu.Unlock()
	if cause != nil {
		c.broker.recordRefusal(c, "connection ended", "", cause)
	}
	return nil
}

// buildDisconnect returns the DISCONNECT with the reason for a version 5 client.
func (c *conn) buildDisconnect(cause error) *packet.Disconnect {
	d := &packet.Disconnect{}
	switch e, wire := errors.AsType[*packet.Error](cause); {
	case errors.Is(cause, errTakenOver):
		d.Reason = packet.SessionTakenOver
	case wire:
		d.Reason = e.Reason
	default:
		d.Reason = reasonCodeOf(cause)
		if r, ok := disconnectReasonByCode[watchword.CodeOf(cause)]; ok {
			d.Reason = r
		}
	}
	if !packet.MayCarry(packet.DISCONNECT, d.Reason) {
		d.Reason = packet.UnspecifiedError
	}
	if !errors.Is(cause, errTakenOver) {
		d.Properties.SetText(packet.ReasonString, publicText(cause))
	}
	return d
}

// appendDisconnect appends the encoded DISCONNECT. There is none for 3.1.1 and before CONNECT.
func (c *conn) appendDisconnect(out []byte, cause error) []byte {
	if c.version != packet.V5 || !c.out.connackSent {
		return out
	}
	b, _ := c.encodeWithin(c.buildDisconnect(cause)) // if it does not fit, the connection is closed without it
	return append(out, b...)
}

// finishWriting does the remaining work, writes the remaining packets, and lets the peer read them
// before the connection is closed: a reset would discard the final packet.
func (c *conn) finishWriting(td teardown) {
	c.runTeardown(c.broker.ctx, td)
	_ = c.nc.SetWriteDeadline(time.Now().Add(closeTimeout)) // errors mean that the connection is closed
	c.session.mu.Lock()
	for c.out.writing && !c.out.failed {
		c.out.changed.Wait()
	}
	c.session.mu.Unlock()
	c.flush(true)
	c.lingerForPeer()
}

// handleReadError is called by the reader: the peer closed the connection, sent nothing, or sent an
// invalid WebSocket frame.
func (c *conn) handleReadError(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c.live() == nil {
			c.close(protocolError(packet.KeepAliveTimeout, packet.CONNECT, "no CONNECT arrived within 10 seconds"))
			return
		}
		c.close(protocolError(packet.KeepAliveTimeout, packet.PINGREQ, "no packet arrived within one and a half times the Keep Alive"))
		return
	}
	if bad, ok := errors.AsType[*frameError](err); ok {
		c.close(bad)
		return
	}
	c.session.mu.Lock()
	c.out.closed, c.out.failed = true, true
	td := c.detachSession(nil)
	c.closing.Store(true)
	c.out.changed.Broadcast()
	c.session.mu.Unlock()
	c.runTeardown(c.broker.ctx, td)
}

// finishServing is the last step of the reader.
func (c *conn) finishServing(ctx context.Context) {
	c.releaseReservation()
	c.broker.markAuthenticated(c)
	c.leaveRates()
	c.finalWrites.Wait()
	c.session.mu.Lock()
	td := c.detachSession(nil) // after a failed write the teardown is still to be done
	c.session.mu.Unlock()
	c.runTeardown(ctx, td)
	c.forgetAliases()
	_ = c.nc.Close()
	c.endLinger()
	if s := c.live(); s != nil {
		s.End(nil)
	}
}
