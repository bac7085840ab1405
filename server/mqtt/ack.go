package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// handleAck handles PUBACK, PUBREC, PUBREL and PUBCOMP.
func (c *conn) handleAck(p *packet.Ack) error {
	var command int64
	c.session.mu.Lock()
	if c.session.conn != c || c.out.closed {
		c.session.mu.Unlock()
		return nil
	}
	if len(c.pendingReports) > 0 && p.Kind != packet.PUBREL {
		if i := c.findInflight(p.ID); i >= 0 {
			c.confirmReports(c.session.inflight[i].seq)
		}
	}
	hands := c.pump
	switch p.Kind {
	case packet.PUBACK:
		command = c.handlePuback(p)
	case packet.PUBREC:
		c.handlePubrec(p)
	case packet.PUBREL:
		c.handlePubrel(p)
	case packet.PUBCOMP:
		c.handlePubcomp(p)
	}
	c.session.mu.Unlock()
	if command != 0 && hands != nil {
		hands.acknowledged(command, !p.Reason.Failed())
	}
	return nil
}

func (c *conn) handlePuback(p *packet.Ack) (command int64) {
	i := c.findInflight(p.ID)
	if i < 0 || c.session.inflight[i].qos != 1 {
		return 0
	}
	command = c.session.inflight[i].command
	c.removeInflight(i)
	return command
}

// handlePubrec records that the receiver has the message; the record is committed before PUBREL
// (MQTT 5.0 §4.3.3).
func (c *conn) handlePubrec(p *packet.Ack) {
	i := c.findInflight(p.ID)
	if i < 0 || c.session.inflight[i].qos != 2 {
		if !p.Reason.Failed() {
			c.respondLocked(nil, &packet.Ack{Kind: packet.PUBREL, ID: p.ID, Reason: packet.PacketIdentifierNotFound})
		}
		return
	}
	f := &c.session.inflight[i]
	if p.Reason.Failed() {
		if !f.released {
			c.removeInflight(i)
		}
		return
	}
	var at *commit
	if !f.released {
		f.released, f.message = true, nil
		if f.counted {
			at = c.session.markChanged() // committed before PUBREL is sent
			if f.stored != nil {
				c.broker.committer.release(f.stored)
				f.stored = nil
			}
		}
	}
	c.acknowledgeLocked(at, packet.PUBREL, p.ID)
}

func (c *conn) handlePubcomp(p *packet.Ack) {
	if i := c.findInflight(p.ID); i >= 0 && c.session.inflight[i].released {
		c.removeInflight(i)
	}
}

// handlePubrel removes the packet identifier. The removal is committed before PUBCOMP, since the
// client may then reuse the identifier.
func (c *conn) handlePubrel(p *packet.Ack) {
	if _, known := c.session.received[p.ID]; !known {
		c.respondLocked(nil, &packet.Ack{Kind: packet.PUBCOMP, ID: p.ID, Reason: packet.PacketIdentifierNotFound})
		return
	}
	c.session.removeReceived(p.ID)
	c.acknowledgeLocked(c.session.markChanged(), packet.PUBCOMP, p.ID)
}
