package mqtt_test

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// discard is a connection whose written bytes go nowhere once it is on.
type discard struct {
	net.Conn
	on atomic.Bool
}

func (d *discard) Write(b []byte) (int, error) {
	if d.on.Load() {
		return len(b), nil
	}
	return d.Conn.Write(b)
}

// subscriber connects a client that subscribes to a filter and whose messages are written to nowhere.
func (srv *testServer) subscriber(id, filter string, qos byte) {
	mine, theirs := net.Pipe()
	d := &discard{Conn: theirs}
	srv.broker.Handle(d)
	c := srv.serveConn(mine, packet.V5)
	c.send(hello(packet.V5, id, srv.token(watchword.SubjectID(id), time.Hour)))
	want[*packet.Connack](c)
	c.subscribe(qos, filter)
	d.on.Store(true)
}

// BenchmarkIngest is the way of one PUBLISH with QoS 0, from bytes to what is written to its subscribers, where a client
// sends 20 at once.
func BenchmarkIngest(b *testing.B) {
	for _, c := range []struct {
		name, topic string
		subs        []string // their filters
	}{
		{"event, 1 subscriber", "devices/dev-%d/events/lux", []string{"devices/+/events/lux"}},
		{"application topic, 1 subscriber", "plant/dev-%d/lux", []string{"plant/+/lux"}},
		{"application topic, 16 subscribers", "plant/dev-%d/lux", make([]string, 16)},
		{"application topic, shared by 4", "plant/dev-%d/lux", []string{"$share/g/plant/#", "$share/g/plant/#", "$share/g/plant/#", "$share/g/plant/#"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			srv := newTestServer(b, mqtt.Options{QueueMessages: 1 << 30, QueueBytes: 1 << 40, QueuedBytes: 1 << 40, SubjectQueueBytes: 1 << 40})
			defer srv.close()
			const publishers, flight = 500, 20
			feeds, packets := make([]func([]byte), publishers), make([][]byte, publishers)
			for i := range feeds {
				id := fmt.Sprintf("dev-%d", i)
				srv.connect(packet.V5, id, srv.token(watchword.SubjectID(id), time.Hour))
				feeds[i] = srv.broker.Feed(id)
				for range flight {
					packets[i] = packet.Append(packets[i], &packet.Publish{Topic: fmt.Sprintf(c.topic, i), Payload: make([]byte, 32)}, packet.V5)
				}
			}
			for i, f := range c.subs {
				if f == "" {
					f = "plant/#"
				}
				srv.subscriber(fmt.Sprintf("sub-%d", i), f, 0)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += flight {
				i := n / flight % publishers
				feeds[i](packets[i])
			}
			b.StopTimer() // the end of the server waits for its clients, for up to a second
		})
	}
}
