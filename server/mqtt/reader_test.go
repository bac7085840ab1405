package mqtt_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// If the last bytes and the end of a connection arrive together, the end is noticed as well: the will is published.
func TestEOFWithLastBytes(t *testing.T) {
	const clients = 100
	srv := newTestServer(t, mqtt.Options{})
	defer srv.close()
	at := srv.listen()
	listener := srv.dial(at)
	listener.send(hello(packet.V5, "listener", srv.token("listener", time.Hour)))
	want[*packet.Connack](listener)
	listener.subscribe(1, "will/#")
	for i := range clients {
		id := fmt.Sprintf("lamp-%d", i)
		c := srv.dial(at)
		p := hello(packet.V5, id, srv.token(watchword.SubjectID(id), time.Hour))
		p.Will = &packet.Will{Topic: "will/" + id, QoS: 1, Payload: []byte("gone")}
		c.send(p)
		want[*packet.Connack](c)
		c.send(&packet.Publish{Topic: "last/words", Payload: []byte("x")})
		c.closeAbruptly()
	}
	received := map[string]bool{}
	for range clients {
		received[listener.receiveAndAck().Topic] = true
	}
	if len(received) != clients {
		t.Errorf("received %d wills, want %d", len(received), clients)
	}
}
