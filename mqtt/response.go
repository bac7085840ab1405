package mqtt

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// response is what a client is told once something is on the disk.
type response struct {
	after   *commit // nil: only what comes before it
	encoded []byte  // as it goes over the wire; nil for a kind and an identifier alone
	kind    packet.Type
	id      uint16
}

// respond appends a packet that goes before all messages. It is the reader's.
func (c *conn) respond(p packet.Packet) { c.respondAfter(nil, p) }

// respondAfter is answer for what must be on the disk first; nil for nothing.
func (c *conn) respondAfter(at *commit, p packet.Packet) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.respondLocked(at, p)
}

func (c *conn) respondLocked(at *commit, p packet.Packet) {
	if c.out.closed {
		return
	}
	b, fits := c.encodeWithin(p)
	if !fits {
		return
	}
	if c.mayRespondNow(at) {
		c.out.responses = append(c.out.responses, b...)
		c.startDelivery(p.Type())
		return
	}
	a := response{after: at, encoded: b, kind: p.Type()}
	if ack, ok := p.(*packet.Ack); ok {
		a.id = ack.ID
	}
	c.out.pendingResponses = append(c.out.pendingResponses, a)
}

// encodeWithin is a packet as it goes over the wire, without its explanations where it would be
// more than the client takes with them. Where it is without them too, it does not go, and
// the connection ends (MQTT 5.0 §3.1.2.11.4).
func (c *conn) encodeWithin(p packet.Packet) (b []byte, fits bool) {
	b = packet.Append(nil, p, c.version)
	if c.out.maxPacket == 0 || len(b) <= c.out.maxPacket {
		return b, true
	}
	packet.StripExplanation(p)
	if b = packet.Append(nil, p, c.version); len(b) <= c.out.maxPacket {
		return b, true
	}
	go c.close(protocolError(packet.PacketTooLarge, p.Type(), "more than this client takes")) // its caller holds mu
	return nil, false
}

// acknowledge answers a publish in full success: the common case, in four bytes.
func (c *conn) acknowledge(at *commit, kind packet.Type, id uint16) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.acknowledgeLocked(at, kind, id)
}

func (c *conn) acknowledgeLocked(at *commit, kind packet.Type, id uint16) {
	switch {
	case c.out.closed:
	case c.mayRespondNow(at):
		if kind == packet.PUBREC && at != nil {
			c.session.receivedWritten(id, at)
		}
		c.out.responses = appendAck(c.out.responses, kind, id)
	default:
		c.out.pendingResponses = append(c.out.pendingResponses, response{after: at, kind: kind, id: id})
	}
}

// startDelivery lets messages follow, once CONNACK is on its way: first what the client has from
// an earlier connection and was not told PUBREL (MQTT 5.0 §4.4). mu is held.
func (c *conn) startDelivery(after packet.Type) {
	if after != packet.CONNACK || c.out.connackSent || c.live() == nil { // without a session it was a refusal
		return
	}
	c.out.connackSent = true
	if c.session.conn != c || c.session.persistent == nil {
		return
	}
	for i := range c.session.inflight {
		if c.session.inflight[i].released {
			c.out.responses = appendAck(c.out.responses, packet.PUBREL, packetID(c.session.inflight[i].seq))
		}
	}
	c.refill()
	c.session.updateLoad()
}

func appendAck(out []byte, kind packet.Type, id uint16) []byte {
	first := byte(kind) << 4
	if kind == packet.PUBREL {
		first |= 2
	}
	return append(out, first, 2, byte(id>>8), byte(id))
}

// mayRespondNow reports whether an answer may go out at once: answers keep their order
// (MQTT 5.0 §4.6). mu is held.
func (c *conn) mayRespondNow(at *commit) bool {
	switch {
	case len(c.out.pendingResponses) > 0:
		return false
	case at == nil:
		return true
	case c.broker.journal.wait(at, c):
		return false
	case !at.written():
		go c.releaseResponses() // it failed before anybody waited
		return false
	}
	return true
}

// releaseResponses sends the answers that waited for what is over now.
func (c *conn) releaseResponses() {
	c.session.mu.Lock()
	refused := c.releaseResponsesLocked()
	c.session.mu.Unlock()
	if refused != nil {
		c.close(refused)
		return
	}
	c.flush(false)
}

func (c *conn) releaseResponsesLocked() (refused error) {
	n := 0
	for ; n < len(c.out.pendingResponses) && !c.out.closed; n++ {
		a := &c.out.pendingResponses[n]
		if a.after != nil && c.broker.journal.wait(a.after, c) {
			break
		}
		if a.after != nil && !a.after.written() {
			if refused = c.handleWriteFailure(a); refused != nil {
				break
			}
			continue
		}
		if a.kind == packet.PUBREC && a.after != nil {
			c.session.receivedWritten(a.id, a.after)
		}
		if a.encoded != nil {
			c.out.responses = append(c.out.responses, a.encoded...)
		} else {
			c.out.responses = appendAck(c.out.responses, a.kind, a.id)
		}
		c.startDelivery(a.kind)
	}
	if c.out.pendingResponses = c.out.pendingResponses[n:]; len(c.out.pendingResponses) == 0 {
		c.out.pendingResponses = nil
	}
	c.out.moved.Broadcast()
	return refused
}

// handleWriteFailure answers for what could not be written, where the version has a word for
// it; else the connection ends. mu is held.
func (c *conn) handleWriteFailure(a *response) error {
	reason := c.broker.journal.unavailable()
	if reason == nil {
		reason = watchword.Refuse(watchword.Unavailable, "this could not be kept")
	}
	if c.version != packet.V5 || a.kind != packet.PUBACK && a.kind != packet.PUBREC {
		return reason
	}
	if a.kind == packet.PUBREC {
		c.session.removeReceived(a.id)
	}
	ack := &packet.Ack{Kind: a.kind, ID: a.id, Reason: packet.ImplementationSpecificError}
	if c.wantsReasonStrings {
		ack.Properties.SetText(packet.ReasonString, publicText(reason))
	}
	b, _ := c.encodeWithin(ack) // where it does not, the connection ends
	c.out.responses = append(c.out.responses, b...)
	return nil
}
