package mqtt

import (
	"testing"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/command"
)

// However a command in flight ends, its place is free again, once.
func TestCommandLeavesInflight(t *testing.T) {
	for name, c := range map[string]struct {
		do       func(*commandPump)
		inHand   int
		after    int64
		again    bool
		acked    int
		tooLarge int
	}{
		"acknowledged":                   {func(p *commandPump) { p.acknowledged(2, true) }, 2, 3, false, 1, 0},
		"acknowledged twice":             {func(p *commandPump) { p.acknowledged(2, true); p.acknowledged(2, false) }, 2, 3, false, 1, 0},
		"acknowledged in two versions":   {func(p *commandPump) { p.acknowledged(2, true); p.acknowledged(2, true) }, 2, 3, false, 1, 0},
		"refused":                        {func(p *commandPump) { p.acknowledged(2, false) }, 2, 3, false, 0, 0},
		"of another connection":          {func(p *commandPump) { p.acknowledged(9, true) }, 3, 3, false, 1, 0},
		"not queued any more":            {func(p *commandPump) { p.notSent(2) }, 2, 1, true, 0, 0},
		"all of them":                    {func(p *commandPump) { p.notSent(3); p.notSent(1); p.notSent(2) }, 0, 0, true, 0, 0},
		"returned after its end":         {func(p *commandPump) { p.acknowledged(2, true); p.notSent(2) }, 2, 3, false, 1, 0},
		"too large":                      {func(p *commandPump) { p.tooLargeToSend(2, 2200) }, 2, 3, false, 0, 1},
		"too large after its end":        {func(p *commandPump) { p.acknowledged(2, true); p.tooLargeToSend(2, 2200) }, 2, 3, false, 1, 0},
		"with others that wait":          {func(p *commandPump) { p.hasMore = true; p.acknowledged(2, false) }, 2, 3, true, 0, 0},
		"too large, with others behind":  {func(p *commandPump) { p.hasMore = true; p.tooLargeToSend(2, 2200) }, 2, 3, true, 0, 1},
		"unknown, with others that wait": {func(p *commandPump) { p.hasMore = true; p.acknowledged(9, false) }, 3, 3, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := &commandPump{running: true, deliverScheduled: true, maxPacket: 2100, lastHandedOver: 3, inflight: []command.SealedCommand{{Seq: 1}, {Seq: 2}, {Seq: 3}}}
			c.do(p)
			if len(p.inflight) != c.inHand || p.lastHandedOver != c.after || p.rerun != c.again || len(p.acknowledgedSeqs) != c.acked || len(p.tooLarge) != c.tooLarge {
				t.Errorf("in flight %v, after %d, again %v, acknowledged %v, too large %v", p.inflight, p.lastHandedOver, p.rerun, p.acknowledgedSeqs, p.tooLarge)
			}
			for _, m := range p.tooLarge {
				if m.command.Seq != 2 || m.reason.Size != 2200 || m.reason.Max != 2100 {
					t.Errorf("too large: %+v", m)
				}
			}
		})
	}
}

// A command that is too large when it is written is reported to the pump, and not treated as delivered.
func TestCommandSizeIsCheckedAtWrite(t *testing.T) {
	b := &Broker{}
	c := &conn{broker: b, session: &sessionState{broker: b}, version: packet.V5}
	m := &message{topic: "devices/lamp-1/commands", payload: make([]byte, 200), qos: 1, unicast: &unicast{receiver: c, command: 2}}
	size := len(m.encoded(packet.V5, 1).bytes)
	for largest, fits := range map[int]bool{0: true, size: true, size - 1: false} {
		c.out.maxPacket = largest
		c.pump = &commandPump{running: true, maxPacket: largest, inflight: []command.SealedCommand{{Seq: 1}, {Seq: 2}}}
		buf := c.encodeNext([]byte("before"), &queuedMessage{message: m, qos: 1})
		if sent := len(buf) - len("before"); fits && sent != size || !fits && sent != 0 || string(buf[:len("before")]) != "before" {
			t.Errorf("at most %d bytes: %d were written", largest, sent)
		}
		switch reported := c.pump.tooLarge; {
		case fits && (len(reported) > 0 || len(c.pump.inflight) != 2):
			t.Errorf("at most %d bytes: told %+v", largest, reported)
		case !fits && (len(reported) != 1 || reported[0].command.Seq != 2 || reported[0].reason.Size != size || len(c.pump.inflight) != 1):
			t.Errorf("at most %d bytes: told %+v", largest, reported)
		}
	}
}
