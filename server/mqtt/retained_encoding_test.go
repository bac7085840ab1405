package mqtt

import (
	"strings"
	"testing"
	"time"
)

// What is read from a record is what was put into it.
func TestRetainedEncodingRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 100, 127, 128, 16 << 10, 60 << 10} {
		for qos := range byte(3) {
			m := &message{topic: "a/" + strings.Repeat("b", min(n, 1000)), payload: []byte(strings.Repeat("p", n)), qos: qos, expiresAt: time.Hour.Nanoseconds()}
			got, err := retainedMessage(newRetained(m))
			if err != nil || got.topic != m.topic || string(got.payload) != string(m.payload) || got.qos != qos || got.expiresAt != m.expiresAt || !got.retained {
				t.Errorf("%d, QoS %d: %v %+v", n, qos, err, got)
			}
		}
	}
}
