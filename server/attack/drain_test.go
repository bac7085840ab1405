package attack_test

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// A server that is stopped under load: every message that was acknowledged to its publisher reaches connected clients
// without a persistent session before DISCONNECT.
func TestShutdownLosesNoMessage(t *testing.T) {
	const publishers, before = 3, 600
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 1 << 20 })
	_, err := srv.admin.ApplyPolicy(t.Context(), "meters", []byte(`for = { kind = "meter" }
[[allow]]
publish   = ["plant/${id}/lux"]
subscribe = ["plant/#"]
`), 0)
	must(t, err)
	labels := watchword.Labels{"kind": "meter"}
	reader := mosquitto(t, "mosquitto_sub", srv.enroll("reader", device.Options{}, labels), "reader", "-V", "mqttv5", "-q", "1", "-t", "plant/#", "-v", "-d")
	out, err := reader.StdoutPipe()
	must(t, err)
	must(t, reader.Start())
	received := map[string][]string{}
	subscribed, bye := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(bye)
		last := ""
		for lines := bufio.NewScanner(out); lines.Scan(); {
			last = lines.Text()
			topic, payload, _ := strings.Cut(lines.Text(), " ")
			switch {
			case strings.HasPrefix(topic, "plant/"):
				received[topic] = append(received[topic], payload)
			case strings.HasPrefix(lines.Text(), "Subscribed"):
				close(subscribed)
			case strings.Contains(lines.Text(), "Received DISCONNECT"):
				if !strings.Contains(lines.Text(), "(139)") { // 0x8B
					t.Error(lines.Text())
				}
				return
			}
		}
		t.Errorf("it ended without a goodbye; its last line was %q", last)
	}()
	<-subscribed
	acked := make([][]string, publishers)
	var count atomic.Int64
	enough := make(chan struct{})
	var sending sync.WaitGroup
	for i := range publishers {
		id := watchword.SubjectID(fmt.Sprint("meter-", i))
		w := connectPaho(t, srv.enroll(id, device.Options{}, labels), "")
		there, cancel := context.WithCancel(t.Context())
		go func() { <-w.ended; cancel() }()
		sending.Go(func() {
			defer cancel()
			for n := 0; ; n++ {
				m := fmt.Sprintf("%06d", n)
				if _, err := w.client.Publish(there, &paho.Publish{Topic: "plant/" + string(id) + "/lux", QoS: 1, Payload: []byte(m)}); err != nil {
					return // the server has gone
				}
				acked[i] = append(acked[i], m)
				if count.Add(1) == before {
					close(enough)
				}
			}
		})
	}
	<-enough
	srv.stop()
	sending.Wait()
	<-bye
	must(t, reader.Process.Kill()) // it would come back
	_ = reader.Wait()              // the error is that of having been killed
	for i := range publishers {
		got := received[fmt.Sprintf("plant/meter-%d/lux", i)]
		if n := len(acked[i]); len(got) < n || !slices.Equal(got[:n], acked[i]) {
			t.Errorf("meter-%d: %d acknowledged, %d received", i, n, len(got))
		}
	}
}
