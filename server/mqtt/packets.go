package mqtt

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
)

// workBatch is the state of one run of [conn.handlePackets]. Runs borrow it from a pool.
type workBatch struct {
	bus.Batch
	result    bus.Result // of the PUBLISH that is handled; on the stack it would be allocated for each, since the bus passes it to interfaces
	publish   packet.Publish
	encoded   []byte // the packet that is handled, as received
	now       time.Time
	monotonic time.Time // the same moment by the system's monotonic clock
}

var workBatches = sync.Pool{New: func() any { return &workBatch{} }}

// borrowBatch takes a batch and reads the clock. c.processing is held.
func (c *conn) borrowBatch() *workBatch {
	w := workBatches.Get().(*workBatch)
	w.now, w.monotonic = c.broker.times()
	return w
}

// returnBatch flushes the receivers of the batch and puts it back.
func (c *conn) returnBatch(w *workBatch) {
	w.Flush()
	w.publish, w.encoded = packet.Publish{}, nil
	workBatches.Put(w)
}

// handlePackets handles every whole packet in b. It returns how many bytes of b that was, and the length
// of the packet that is not whole yet, 0 if it is not known.
func (c *conn) handlePackets(ctx context.Context, b []byte) (used, rest int) {
	used, rest = c.handlePacketsLocked(ctx, b)
	if !c.closing.Load() {
		c.flushResponses()
		c.waitForDelayed(maxDelayedBytes)
	}
	return used, rest
}

func (c *conn) handlePacketsLocked(ctx context.Context, b []byte) (used, rest int) {
	c.processing.Lock()
	defer c.processing.Unlock()
	w := c.borrowBatch()
	defer c.returnBatch(w)
	for !c.closing.Load() {
		limit := c.broker.options.PacketBytes
		if c.live() == nil {
			limit = maxUnauthenticatedBytes
		}
		first, body, n, err := packet.Frame(b[used:], limit)
		if err != nil {
			c.rejectFrame(b[used:], err)
			break
		}
		if n == 0 {
			rest = packet.NeededBytes(b[used:])
			break
		}
		if used == 0 {
			c.extendReadDeadline(w.now)
		}
		w.encoded = b[used : used+n]
		used += n
		if c.mustWaitBehind(first) {
			c.delayPackets(w.encoded)
			continue
		}
		err = c.handlePacket(ctx, w, first, body)
		if err == errDelayed {
			c.delayPackets(w.encoded)
			continue
		}
		if err != nil {
			c.close(err)
			break
		}
		if w.Offers > maxBatchDeliveries {
			w.Flush()
		}
	}
	return used, rest
}

// handlePacket handles one packet: by its type in the method of that name. An error closes the
// connection, but for errDelayed: the packet is handled again when its rate allows it.
func (c *conn) handlePacket(ctx context.Context, w *workBatch, first byte, body []byte) error {
	t := packet.Type(first >> 4)
	if c.live() == nil {
		return c.handleConnect(ctx, w, first, body)
	}
	if t == packet.PUBLISH {
		if c.broker.draining.Load() {
			return nil // the client sends it again over its next connection
		}
		if !c.takeRate(publishRate, 1, w.monotonic) {
			return errDelayed
		}
		w.publish.Topic = c.publishDecision.topic // ReadPublish reuses it if it is the same: no allocation
		if err := packet.ReadPublish(&w.publish, first, body, c.version); err != nil {
			return err
		}
		return c.handlePublish(ctx, w, &w.publish)
	}
	if t == packet.CONNECT {
		return protocolError(packet.ProtocolError, t, "CONNECT must be sent once") // whatever it contains
	}
	p, err := packet.Parse(first, body, c.version)
	if err != nil {
		return err
	}
	switch p := p.(type) {
	case *packet.Ack:
		return c.handleAck(p)
	case *packet.Subscribe:
		if !c.takeRate(controlRate, countDistinct(p.Filters), w.monotonic) {
			return errDelayed
		}
		return c.handleSubscribe(ctx, p)
	case *packet.Unsubscribe:
		if !c.takeRate(controlRate, countDistinct(p.Filters), w.monotonic) {
			return errDelayed
		}
		return c.handleUnsubscribe(p)
	case *packet.Ping:
		if p.Response {
			return protocolError(packet.ProtocolError, t, "the packet must not be sent by a client")
		}
		return c.handlePingreq()
	case *packet.Disconnect:
		return c.handleDisconnect(p)
	case *packet.Auth:
		if !c.takeRate(controlRate, proofCost, w.monotonic) {
			return errDelayed
		}
		return c.reauthenticate(ctx, p, w.now)
	}
	return protocolError(packet.ProtocolError, t, "the packet must not be sent by a client")
}

// protocolError is the error of a client that violates the protocol, with the reason code for it.
func protocolError(r packet.Reason, t packet.Type, what string) error {
	return &packet.Error{Reason: r, Type: t, Detail: what}
}
