package mqtt

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// reply is what a client is told once something is on the disk.
type reply struct {
	after *commit // nil: only what comes before it
	b     []byte  // as it goes over the wire; nil for a kind and an identifier alone
	kind  packet.Type
	id    uint16
}

// answer appends a packet that goes before all messages. It is the reader's.
func (c *conn) answer(p packet.Packet) { c.answerAfter(nil, p) }

// answerAfter is answer for what must be on the disk first; nil for nothing.
func (c *conn) answerAfter(at *commit, p packet.Packet) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.answerLocked(at, p)
}

func (c *conn) answerLocked(at *commit, p packet.Packet) {
	if c.out.closed {
		return
	}
	b, fits := c.fit(p)
	if !fits {
		return
	}
	if c.mayAnswer(at) {
		c.out.control = append(c.out.control, b...)
		c.begin(p.Type())
		return
	}
	a := reply{after: at, b: b, kind: p.Type()}
	if ack, ok := p.(*packet.Ack); ok {
		a.id = ack.ID
	}
	c.out.answers = append(c.out.answers, a)
}

// fit is a packet as it goes over the wire, without its explanations where it would be
// more than the client takes with them. Where it is without them too, it does not go, and
// the connection ends (MQTT 5.0 §3.1.2.11.4).
func (c *conn) fit(p packet.Packet) (b []byte, fits bool) {
	b = packet.Append(nil, p, c.version)
	if c.out.largest == 0 || len(b) <= c.out.largest {
		return b, true
	}
	packet.Unexplain(p)
	if b = packet.Append(nil, p, c.version); len(b) <= c.out.largest {
		return b, true
	}
	go c.end(wrong(packet.TooLarge, p.Type(), "more than this client takes")) // its caller holds mu
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
	case c.mayAnswer(at):
		if kind == packet.PUBREC && at != nil {
			c.session.receivedIsKept(id, at)
		}
		c.out.control = appendAck(c.out.control, kind, id)
	default:
		c.out.answers = append(c.out.answers, reply{after: at, kind: kind, id: id})
	}
}

// begin lets messages follow, once CONNACK is on its way: first what the client has from
// an earlier connection and was not told PUBREL (MQTT 5.0 §4.4). mu is held.
func (c *conn) begin(after packet.Type) {
	if after != packet.CONNACK || c.out.ready || c.live() == nil { // without a session it was a refusal
		return
	}
	c.out.ready = true
	if c.session.conn != c || c.session.lasting == nil {
		return
	}
	for i := range c.session.flights {
		if c.session.flights[i].released {
			c.out.control = appendAck(c.out.control, packet.PUBREL, packetID(c.session.flights[i].seq))
		}
	}
	c.refill()
	c.session.weigh()
}

func appendAck(out []byte, kind packet.Type, id uint16) []byte {
	first := byte(kind) << 4
	if kind == packet.PUBREL {
		first |= 2
	}
	return append(out, first, 2, byte(id>>8), byte(id))
}

// mayAnswer reports whether an answer may go out at once: answers keep their order
// (MQTT 5.0 §4.6). mu is held.
func (c *conn) mayAnswer(at *commit) bool {
	switch {
	case len(c.out.answers) > 0:
		return false
	case at == nil:
		return true
	case c.broker.journal.wait(at, c):
		return false
	case !at.over():
		go c.release() // it failed before anybody waited
		return false
	}
	return true
}

// release sends the answers that waited for what is over now.
func (c *conn) release() {
	c.session.mu.Lock()
	refused := c.releaseLocked()
	c.session.mu.Unlock()
	if refused != nil {
		c.end(refused)
		return
	}
	c.flush(false)
}

func (c *conn) releaseLocked() (refused error) {
	n := 0
	for ; n < len(c.out.answers) && !c.out.closed; n++ {
		a := &c.out.answers[n]
		if a.after != nil && c.broker.journal.wait(a.after, c) {
			break
		}
		if a.after != nil && !a.after.over() {
			if refused = c.unwritten(a); refused != nil {
				break
			}
			continue
		}
		if a.kind == packet.PUBREC && a.after != nil {
			c.session.receivedIsKept(a.id, a.after)
		}
		if a.b != nil {
			c.out.control = append(c.out.control, a.b...)
		} else {
			c.out.control = appendAck(c.out.control, a.kind, a.id)
		}
		c.begin(a.kind)
	}
	if c.out.answers = c.out.answers[n:]; len(c.out.answers) == 0 {
		c.out.answers = nil
	}
	c.out.moved.Broadcast()
	return refused
}

// unwritten answers for what could not be written, where the version has a word for
// it; else the connection ends. mu is held.
func (c *conn) unwritten(a *reply) error {
	why := c.broker.journal.refusal()
	if why == nil {
		why = watchword.Refuse(watchword.Unavailable, "this could not be kept")
	}
	if c.version != packet.V5 || a.kind != packet.PUBACK && a.kind != packet.PUBREC {
		return why
	}
	if a.kind == packet.PUBREC {
		c.session.unreceive(a.id)
	}
	ack := &packet.Ack{Kind: a.kind, ID: a.id, Reason: packet.Implementation}
	if c.problems {
		ack.Properties.SetText(packet.ReasonString, words(why))
	}
	b, _ := c.fit(ack) // where it does not, the connection ends
	c.out.control = append(c.out.control, b...)
	return nil
}

// unanswered is how many publishes of the client wait for their end; mu is held.
func (c *conn) unanswered() int {
	n := len(c.session.received)
	for i := range c.out.answers {
		if c.out.answers[i].kind == packet.PUBACK {
			n++
		}
	}
	return n
}
