package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/watchword-iot/watchword/server/mqttstore"
)

// BenchmarkWriteMQTT writes 20 messages that a thousand sessions wait for, as they are stored (one row for each message),
// and in the alternative: one row for each copy. The metric is copies a second; docs/decisions/0014 uses it.
func BenchmarkWriteMQTT(b *testing.B) {
	const messages, sessions = 20, 1000
	for _, x := range []struct {
		name string
		each bool
	}{{"a row for each message", false}, {"a row for each copy", true}} {
		b.Run(x.name, func(b *testing.B) {
			st := open(b, filepath.Join(b.TempDir(), "bench.db"))
			defer st.Close()
			id := int64(0)
			for seq := int64(1); b.Loop(); seq++ {
				var c mqttstore.Changes
				for range messages {
					id++
					m := mqttstore.Message{ID: id, Packet: make([]byte, 100), Receivers: []byte{}}
					for s := range int64(sessions) {
						r := mqttstore.AppendReceiver(nil, mqttstore.Receiver{Session: s + 1, Seq: seq, QoS: 1})
						if !x.each {
							m.Receivers = append(m.Receivers, r...)
							continue
						}
						id++
						c.Messages = append(c.Messages, mqttstore.Message{ID: id, Packet: []byte{0}, Receivers: r})
					}
					c.Messages = append(c.Messages, m)
				}
				if err := st.WriteMQTT(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(messages*sessions*b.N)/b.Elapsed().Seconds(), "copies/s")
		})
	}
}
