package attack_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// A device that is refused as fast as it can prints little, and nothing of another is
// left out for it.
func TestOneDeviceCannotFillTheLog(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 1 << 20 })
	greedy, other := srv.enroll("lamp-1", device.Options{}, nil), srv.enroll("lamp-2", device.Options{}, nil)
	g, err := dialPaho(t, greedy, "lamp-1", srv.token(greedy))
	must(t, err)
	o, err := dialPaho(t, other, "lamp-2", srv.token(other))
	must(t, err)
	const flood = 5_000
	topic := "devices/lamp-2/events/" + strings.Repeat("x/", 20) + strings.Repeat("y", 900)
	for range flood {
		_, err := g.client.Publish(t.Context(), &paho.Publish{Topic: topic, Payload: []byte("x")})
		must(t, err)
	}
	if _, err := g.client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("the last")}); err == nil {
		t.Fatal("it may publish there")
	}
	if _, err := o.client.Publish(t.Context(), &paho.Publish{Topic: "devices/lamp-1/events/x", QoS: 1, Payload: []byte("x")}); err == nil {
		t.Fatal("another may publish where it may not")
	}
	srv.stop() // which prints what was left out
	printed, lines := srv.log.String(), map[string]int{}
	for line := range strings.Lines(printed) {
		switch {
		case len(line) > 2<<10:
			t.Errorf("a line of %d bytes: %.200s", len(line), line)
		case strings.Contains(line, "log lines left out") && strings.Contains(line, `line="publish refused"`):
			lines["left out"]++
		case strings.Contains(line, "publish refused") && strings.Contains(line, "subject=lamp-1"):
			lines["lamp-1"]++
		case strings.Contains(line, "publish refused") && strings.Contains(line, "subject=lamp-2"):
			lines["lamp-2"]++
		}
	}
	if n := lines["lamp-1"]; n < logbudget.Burst/2 || n > logbudget.Burst/2+60*logbudget.Rate {
		t.Errorf("%d lines of a client that was refused %d times", n, flood)
	}
	if n := lines["lamp-1"] + srv.log.leftOut(t); n < flood+1 {
		t.Errorf("%d lines are printed or counted", n)
	}
	if lines["lamp-2"] != 1 || lines["left out"] == 0 {
		t.Errorf("lines: %v", lines)
	}
}

// leftOut is how many lines it says that it has not.
func (l *logBuffer) leftOut(t *testing.T) (n int) {
	for line := range strings.Lines(l.String()) {
		if !strings.Contains(line, "log lines left out") {
			continue
		}
		_, count, _ := strings.Cut(strings.TrimSpace(line), " lines=")
		k, err := strconv.Atoi(count)
		must(t, err)
		n += k
	}
	return n
}
