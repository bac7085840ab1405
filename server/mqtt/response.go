package mqtt

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// response is a packet for the client, to be sent after a commit.
type response struct {
	after   *commit // nil: only after earlier responses
	encoded []byte  // encoded packet; nil: an acknowledgement of kind and id
	kind    packet.Type
	id      uint16
}

// respond queues a packet that is sent before all messages. Only the reader calls it.
func (c *conn) respond(p packet.Packet) { c.respondAfter(nil, p) }

// respondAfter is respond after a commit; nil: at once.
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

// encodeWithin encodes a packet, without reason string and user properties if it would exceed the
// client's Maximum Packet Size. If it is still too large it is not sent, and the connection ends
// (MQTT 5.0 §3.1.2.11.4).
func (c *conn) encodeWithin(p packet.Packet) (b []byte, fits bool) {
	b = packet.Append(nil, p, c.version)
	if c.out.maxPacket == 0 || len(b) <= c.out.maxPacket {
		return b, true
	}
	packet.StripExplanation(p)
	if b = packet.Append(nil, p, c.version); len(b) <= c.out.maxPacket {
		return b, true
	}
	go c.close(protocolError(packet.PacketTooLarge, p.Type(), "the packet is larger than the client's Maximum Packet Size")) // the caller holds mu
	return nil, false
}

// acknowledge queues a successful acknowledgement, which takes four bytes.
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

// startDelivery lets messages follow CONNACK, first those that were sent over an earlier connection
// without PUBREL (MQTT 5.0 §4.4). mu is held.
func (c *conn) startDelivery(after packet.Type) {
	if after != packet.CONNACK || c.out.connackSent || c.live() == nil { // without a session CONNACK was a refusal
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

// mayRespondNow reports whether a response may be sent at once: responses keep their order (MQTT
// 5.0 §4.6). mu is held.
func (c *conn) mayRespondNow(at *commit) bool {
	switch {
	case len(c.out.pendingResponses) > 0:
		return false
	case at == nil:
		return true
	case c.broker.committer.wait(at, c):
		return false
	case !at.written():
		go c.releaseResponses() // it failed before this call
		return false
	}
	return true
}

// releaseResponses sends the responses whose commits have ended.
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
		if a.after != nil && c.broker.committer.wait(a.after, c) {
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
	c.out.changed.Broadcast()
	return refused
}

// handleWriteFailure answers for a failed commit, if the version can report it; otherwise the
// connection ends. mu is held.
func (c *conn) handleWriteFailure(a *response) error {
	reason := c.broker.committer.unavailable()
	if reason == nil {
		reason = watchword.Refuse(watchword.Unavailable, "the message could not be stored")
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
	b, _ := c.encodeWithin(ack) // if it cannot, the connection ends
	c.out.responses = append(c.out.responses, b...)
	return nil
}
