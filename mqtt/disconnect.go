package mqtt

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// errSlowConsumer ends a client that takes less than it asked for.
var errSlowConsumer = watchword.Refuse(watchword.Busy, "this connection is read too slowly")

var errPanic = watchword.Refuse(watchword.Internal, "panic")

// errTakenOver ends a connection whose client id connected again.
var errTakenOver = errors.New("the client connected again")

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

// buildDisconnect is the DISCONNECT that tells a client of version 5 why.
func (c *conn) buildDisconnect(cause error) *packet.Disconnect {
	d := &packet.Disconnect{}
	switch e, wire := errors.AsType[*packet.Error](cause); {
	case errors.Is(cause, errTakenOver):
		d.Reason = packet.SessionTakenOver
	case wire:
		d.Reason = e.Reason
	default:
		d.Reason = reasonCode(cause)
		if r, ok := disconnectReasonOf[watchword.CodeOf(cause)]; ok {
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

// appendDisconnect appends it as it goes over the wire. Version 3.1.1 has no word for
// it, and before CONNECT there is no version.
func (c *conn) appendDisconnect(out []byte, cause error) []byte {
	if c.version != packet.V5 || !c.out.connackSent {
		return out
	}
	b, _ := c.encodeWithin(c.buildDisconnect(cause)) // where it does not, the end alone must do
	return append(out, b...)
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
