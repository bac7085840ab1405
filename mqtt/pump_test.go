package mqtt

import (
	"testing"

	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// However a command in hand ends, its place is free again, once.
func TestHowACommandLeavesTheHand(t *testing.T) {
	for name, c := range map[string]struct {
		do       func(*pump)
		inHand   int
		after    int64
		again    bool
		acked    int
		tooLarge int
	}{
		"acknowledged":                   {func(p *pump) { p.acknowledged(2, true) }, 2, 3, false, 1, 0},
		"acknowledged twice":             {func(p *pump) { p.acknowledged(2, true); p.acknowledged(2, false) }, 2, 3, false, 1, 0},
		"acknowledged in two versions":   {func(p *pump) { p.acknowledged(2, true); p.acknowledged(2, true) }, 2, 3, false, 1, 0},
		"refused":                        {func(p *pump) { p.acknowledged(2, false) }, 2, 3, false, 0, 0},
		"of another connection":          {func(p *pump) { p.acknowledged(9, true) }, 3, 3, false, 1, 0},
		"not queued any more":            {func(p *pump) { p.returned(2) }, 2, 1, true, 0, 0},
		"all of them":                    {func(p *pump) { p.returned(3); p.returned(1); p.returned(2) }, 0, 0, true, 0, 0},
		"returned after its end":         {func(p *pump) { p.acknowledged(2, true); p.returned(2) }, 2, 3, false, 1, 0},
		"too large":                      {func(p *pump) { p.doesNotFit(2, 2200) }, 2, 3, false, 0, 1},
		"too large after its end":        {func(p *pump) { p.acknowledged(2, true); p.doesNotFit(2, 2200) }, 2, 3, false, 1, 0},
		"with others that wait":          {func(p *pump) { p.more = true; p.acknowledged(2, false) }, 2, 3, true, 0, 0},
		"too large, with others behind":  {func(p *pump) { p.more = true; p.doesNotFit(2, 2200) }, 2, 3, true, 0, 1},
		"unknown, with others that wait": {func(p *pump) { p.more = true; p.acknowledged(9, false) }, 3, 3, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := &pump{running: true, pausing: true, largest: 2100, after: 3, inHand: []command.SealedCommand{{Seq: 1}, {Seq: 2}, {Seq: 3}}}
			c.do(p)
			if len(p.inHand) != c.inHand || p.after != c.after || p.again != c.again || len(p.acked) != c.acked || len(p.tooLarge) != c.tooLarge {
				t.Errorf("in hand %v, after %d, again %v, acknowledged %v, too large %v", p.inHand, p.after, p.again, p.acked, p.tooLarge)
			}
			for _, m := range p.tooLarge {
				if m.command.Seq != 2 || m.why.Size != 2200 || m.why.Max != 2100 {
					t.Errorf("too large: %+v", m)
				}
			}
		})
	}
}

// What is too large when it is written is told to the pump, not passed over as if it
// had been delivered.
func TestACommandIsMeasuredWhenItIsWritten(t *testing.T) {
	b := &Broker{}
	c := &conn{broker: b, session: &sessionState{broker: b}, version: packet.V5}
	m := &message{topic: "devices/lamp-1/commands", payload: make([]byte, 200), qos: 1, private: &private{only: c, command: 2}}
	size := len(m.encoded(packet.V5, 1).bytes)
	for largest, fits := range map[int]bool{0: true, size: true, size - 1: false} {
		c.out.largest = largest
		c.pump = &pump{running: true, largest: largest, inHand: []command.SealedCommand{{Seq: 1}, {Seq: 2}}}
		buf := c.take([]byte("before"), &item{m: m, qos: 1})
		if sent := len(buf) - len("before"); fits && sent != size || !fits && sent != 0 || string(buf[:len("before")]) != "before" {
			t.Errorf("at most %d bytes: %d were written", largest, sent)
		}
		switch told := c.pump.tooLarge; {
		case fits && (len(told) > 0 || len(c.pump.inHand) != 2):
			t.Errorf("at most %d bytes: told %+v", largest, told)
		case !fits && (len(told) != 1 || told[0].command.Seq != 2 || told[0].why.Size != size || len(c.pump.inHand) != 1):
			t.Errorf("at most %d bytes: told %+v", largest, told)
		}
	}
}
