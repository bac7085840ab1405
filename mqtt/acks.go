package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// ack takes what a client says of a publish, its own or the server's.
func (c *conn) ack(p *packet.Ack) error {
	var command int64
	c.session.mu.Lock()
	if c.session.conn != c || c.out.closed {
		c.session.mu.Unlock()
		return nil
	}
	if len(c.reports) > 0 && p.Kind != packet.PUBREL {
		if i := c.flight(p.ID); i >= 0 {
			c.hasRead(c.session.flights[i].seq)
		}
	}
	hands := c.pump
	switch p.Kind {
	case packet.PUBACK:
		command = c.acked(p)
	case packet.PUBREC:
		c.recorded(p)
	case packet.PUBREL:
		c.releasedBy(p)
	case packet.PUBCOMP:
		c.completed(p)
	}
	c.session.mu.Unlock()
	if command != 0 && hands != nil {
		hands.acknowledged(command, !p.Reason.Failed())
	}
	return nil
}

// flight finds what is in flight under a packet identifier; -1 for nothing: it is of a
// connection before, or said twice, and nothing hangs on it (MQTT 5.0 §4.4).
func (c *conn) flight(id uint16) int {
	for i := range c.session.flights {
		if packetID(c.session.flights[i].seq) == id {
			return i
		}
	}
	return -1
}

// land takes a message out of flight; size and the rest as in [sessionState.finished].
func (c *conn) land(i int) {
	f := c.session.flights[i]
	if i == 0 { // as a rule
		c.session.flights[0] = flight{}
		c.session.flights = c.session.flights[1:]
	} else {
		c.session.flights = slices.Delete(c.session.flights, i, i+1)
	}
	if len(c.session.flights) == 0 && cap(c.session.ground) > keptFlights { // an idle client keeps little
		c.session.flights, c.session.ground = nil, nil
	}
	if f.counts {
		c.session.finished(f.k, f.seq, int(f.size))
	}
	c.session.weigh()
	c.out.moved.Broadcast()
}

func (c *conn) acked(p *packet.Ack) (command int64) {
	i := c.flight(p.ID)
	if i < 0 || c.session.flights[i].qos != 1 {
		return 0
	}
	command = c.session.flights[i].command
	c.land(i)
	return command
}

// recorded is PUBREC: the receiver has the message, for good once that is on the disk
// (MQTT 5.0 §4.3.3).
func (c *conn) recorded(p *packet.Ack) {
	i := c.flight(p.ID)
	if i < 0 || c.session.flights[i].qos != 2 {
		if !p.Reason.Failed() {
			c.answerLocked(nil, &packet.Ack{Kind: packet.PUBREL, ID: p.ID, Reason: packet.IDNotFound})
		}
		return
	}
	f := &c.session.flights[i]
	if p.Reason.Failed() {
		if !f.released {
			c.land(i)
		}
		return
	}
	var at *commit
	if !f.released {
		f.released, f.m = true, nil
		if f.counts {
			at = c.session.touch() // before the message may go
			if f.k != nil {
				c.broker.journal.release(f.k)
				f.k = nil
			}
		}
	}
	c.acknowledgeLocked(at, packet.PUBREL, p.ID)
}

func (c *conn) completed(p *packet.Ack) {
	if i := c.flight(p.ID); i >= 0 && c.session.flights[i].released {
		c.land(i)
	}
}

// releasedBy is PUBREL: the client has done with its identifier. That it is free must
// be on the disk before the client hears so, and uses it for another message.
func (c *conn) releasedBy(p *packet.Ack) {
	if _, known := c.session.received[p.ID]; !known {
		c.answerLocked(nil, &packet.Ack{Kind: packet.PUBCOMP, ID: p.ID, Reason: packet.IDNotFound})
		return
	}
	c.session.unreceive(p.ID)
	c.acknowledgeLocked(c.session.touch(), packet.PUBCOMP, p.ID)
}
