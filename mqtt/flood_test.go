package mqtt_test

import (
	"testing"
	"testing/synctest"

	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// Who connects too often is told so; a flood is closed before anything is spent on it.
func TestAFloodOfConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{ConnectRate: 10})
		defer h.close()
		token := h.token("lamp-7", 0)
		told := 0
		for range 200 {
			c := h.raw(packet.V5)
			go c.send(hello(packet.V5, "lamp-7", token))
			if p, open := <-c.got; open {
				if ack, ok := p.(*packet.Connack); ok && ack.Code == packet.ConnectionRate {
					told++
				}
			}
			c.vanish()
		}
		if s := h.broker.Stats(); s.Shed == 0 || told == 0 || int(s.Shed)+told < 150 {
			t.Errorf("%d shed, %d told", s.Shed, told)
		}
	})
}
