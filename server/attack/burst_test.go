package attack_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/sse"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// TestBurstDropsOnlyOwnEvents has one device publish as much as it may, over MQTT, while a reader of all events reads
// nothing, and another reconnects.
func TestBurstDropsOnlyOwnEvents(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 1 << 20 })
	loud, quiet := srv.enroll("loud", device.Options{}, nil), srv.enroll("quiet", device.Options{}, nil)
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	first := srv.request("POST", "/v1/self/events/lux", srv.token(quiet), "0")
	var made struct {
		ID string `json:"id"`
	}
	must(t, json.Unmarshal([]byte(first.body), &made))

	// Data that a client does not read is buffered in the connection, and then in the server.
	slow := srv.stream("/v1/events", op)
	next(t, slow, "session")

	const burst, each = 3000, 10
	payload := []byte(strings.Repeat("x", 4000)) // more than the client's window of HTTP/2 holds
	w := connectPaho(t, loud, "")
	tok := srv.token(quiet)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range burst {
			p := &paho.Publish{Topic: "devices/loud/events/noise", Payload: payload}
			if n == burst-1 {
				p.QoS = 1 // acknowledged behind all others
			}
			if _, err := w.client.Publish(t.Context(), p); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for n := range each {
		if a := srv.request("POST", "/v1/self/events/lux", tok, fmt.Sprint(n+1)); a.status != 202 {
			t.Errorf("event %d: %d %s", n, a.status, a.body)
		}
	}
	testwait.All(t, "the end of the burst", &wg)
	if a := srv.request("POST", "/v1/self/events/lux", tok, `"end"`); a.status != 202 {
		t.Errorf("the last event: %d %s", a.status, a.body)
	}
	back := srv.stream("/v1/events", op, "Last-Event-ID: "+made.ID)
	for name, events := range map[string]<-chan sse.Event{"who read nothing": slow, "who came back": back} {
		of, gap := map[watchword.SubjectID]int64{}, api.EventGap{}
		deadline := time.After(30 * time.Second)
		for end := false; !end; {
			var e sse.Event
			select {
			case e = <-events:
			case <-deadline:
				t.Fatalf("%s waits for the last event; of %v, gap %+v", name, of, gap)
			}
			switch e.Name {
			case "end":
				t.Fatalf("%s was cut: %s", name, e.Data)
			case "gap":
				var g api.EventGap
				must(t, json.Unmarshal([]byte(e.Data), &g))
				if g.More || g.Others > 0 || g.Devices["loud"] != g.Missed {
					t.Errorf("%s: gap %s", name, e.Data)
				}
				gap.Missed += g.Missed
			case "event":
				var v api.Event
				must(t, json.Unmarshal([]byte(e.Data), &v))
				of[v.Device]++
				end = string(v.Data) == `"end"`
			}
		}
		if of["quiet"] != each+1 {
			t.Errorf("%s got %d of the quiet one's, want %d", name, of["quiet"], each+1)
		}
		if of["loud"]+gap.Missed != burst || of["loud"] == 0 || gap.Missed == 0 {
			t.Errorf("%s got %d of the loud one's and missed %d, want %d together", name, of["loud"], gap.Missed, burst)
		}
	}
}

// TestEventsOfADeletedDeviceAreGone: a reader that resumes after the deletion gets only events of other devices.
func TestEventsOfADeletedDeviceAreGone(t *testing.T) {
	srv := serve(t, nil)
	gone, stays := srv.enroll("gone", device.Options{}, nil), srv.enroll("stays", device.Options{}, nil)
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	say := func(d *device.Device, what string) string {
		a := srv.request("POST", "/v1/self/events/lux", srv.token(d), what)
		if a.status != 202 {
			t.Fatalf("an event: %d %s", a.status, a.body)
		}
		var made struct {
			ID string `json:"id"`
		}
		must(t, json.Unmarshal([]byte(a.body), &made))
		return made.ID
	}
	since := say(stays, "0")
	say(gone, "1")
	if a := srv.request("DELETE", "/v1/devices/gone", op, ""); a.status != 204 {
		t.Fatalf("deletion: %d %s", a.status, a.body)
	}
	say(stays, "2")
	s := srv.stream("/v1/events", op, "Last-Event-ID: "+since)
	next(t, s, "session")
	if e := next(t, s, "event"); !strings.Contains(string(e.Data), `"stays"`) {
		t.Errorf("after the deletion comes %s", e.Data)
	}
}

// TestReportedStatesHaveOneRate: over HTTP too a state counts against limits.control_rate, which is met long before the
// rate of the operation.
func TestReportedStatesHaveOneRate(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.ControlRate = 10 }) // one state a second, two at once
	tok := srv.token(srv.enroll("lamp-7", device.Options{}, nil))
	for n := range 50 {
		switch a := srv.request("PUT", "/v1/self/state", tok, `{}`); {
		case a.status == 204:
		case a.status == 429 && a.code == watchword.RateLimited && strings.Contains(a.body, "limits.control_rate") && n > 0:
			return
		default:
			t.Fatalf("state %d: %d %s", n, a.status, a.body)
		}
	}
	t.Error("50 states were taken at once")
}

// TestReceiptsHaveOneRate: over HTTP too a receipt counts against limits.control_rate.
func TestReceiptsHaveOneRate(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.ControlRate = 10 }) // 20 at once
	tok := srv.token(srv.enroll("lamp-7", device.Options{}, nil))
	for n := range 100 {
		switch a := srv.request("POST", "/v1/self/receipts", tok, `{"receipt":"none"}`); {
		case a.status != 429 && a.code == watchword.ReceiptInvalid:
		case a.status == 429 && a.code == watchword.RateLimited && strings.Contains(a.body, "limits.control_rate") && n >= 20:
			return
		default:
			t.Fatalf("receipt %d: %d %s", n, a.status, a.body)
		}
	}
	t.Error("100 receipts were taken at once")
}
