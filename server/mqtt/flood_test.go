package mqtt_test

import (
	"testing"
	"testing/synctest"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// A client that connects too often gets a refusal; a flood is closed before it costs anything.
func TestAFloodOfConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{ConnectRate: 10})
		defer srv.close()
		token := srv.token("lamp-7", 0)
		reported := 0
		for range 200 {
			c := srv.dialRaw(packet.V5)
			go c.send(hello(packet.V5, "lamp-7", token))
			if p, open := <-c.got; open {
				if ack, ok := p.(*packet.Connack); ok && ack.Code == packet.ConnectionRateExceeded {
					reported++
				}
			}
			c.closeAbruptly()
		}
		if s := srv.broker.Stats(); s.FloodClosed == 0 || reported == 0 || int(s.FloodClosed)+reported < 150 {
			t.Errorf("%d shed, %d told", s.FloodClosed, reported)
		}
	})
}
