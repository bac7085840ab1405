package attack_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/sse"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// TestExhaustionByOneDeviceOverHTTP has a device with default rights do all that it may, as fast as it is let: what it
// takes stays within the bounds, others lose nothing, and once it is deleted the memory is back.
func TestExhaustionByOneDeviceOverHTTP(t *testing.T) {
	srv := serve(t, func(c *server.Config) {
		d := server.Defaults().Limits // the defaults
		c.Limits.TokenRate, c.Limits.RequestRate, c.Limits.IssueRate, c.Limits.PublishRate = d.TokenRate, d.RequestRate, d.IssueRate, d.PublishRate
	})
	srv.http = srv.client()
	bad, good := srv.enroll("bad", device.Options{}, nil), srv.enroll("good", device.Options{}, nil)
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	events := srv.stream("/v1/events", op)
	next(t, events, "session")
	tokens := []string{srv.token(bad)}
	others := srv.token(good)

	// Its share of the kept events is full before it is measured, and caches and connections are there.
	big := strings.Repeat("x", 30<<10)
	for range 100 {
		srv.request("POST", "/v1/self/events/lux", tokens[0], big)
	}
	before := heapOf(srv)

	const rounds = 150
	acts := []struct {
		name, method, path string
		body               func(n int) string
	}{
		{"events", "POST", "/v1/self/events/noise", func(int) string { return big }},
		{"states", "PUT", "/v1/self/state", func(n int) string { return fmt.Sprintf(`{"n":%d,"x":%q}`, n, big) }},
		{"functions", "PUT", "/v1/self/functions", func(n int) string {
			return fmt.Sprintf(`{"functions":[{"name":"f%d","schema":{"title":%q}}]}`, n, big[:15<<10])
		}},
		{"a schema that fans out", "PUT", "/v1/self/functions", func(int) string {
			return `{"functions":[{"name":"f","schema":{"items":{"allOf":[` + strings.TrimSuffix(strings.Repeat(`{"$ref":"#"},`, 8), ",") + `]}}}]}`
		}},
		{"receipts that hold nothing", "POST", "/v1/self/receipts", func(int) string { return `{"receipt":"a.b.c"}` }},
		{"what it may not", "GET", "/v1/devices", func(int) string { return "" }},
		{"nowhere", "GET", "/v1/nowhere", func(int) string { return "" }},
		{"itself", "GET", "/v1/self", func(int) string { return "" }},
		{"commands", "GET", "/v1/self/commands", func(int) string { return "" }},
	}
	refused := make([]int, len(acts)+1)
	var wg sync.WaitGroup
	for i, act := range acts {
		wg.Go(func() {
			for n := range rounds {
				a := srv.request(act.method, act.path, tokens[0], act.body(n))
				if a.status >= 500 {
					t.Errorf("%s: %d %s", act.name, a.status, a.body)
				}
				if a.status == 429 {
					refused[i]++
				}
			}
		})
	}
	wg.Go(func() { // tokens, none of which is used again
		for range 3 * rounds {
			a := srv.exchangeAssertion(mustValue(bad.Assertion(time.Minute))(t))
			if a.status == 429 {
				refused[len(acts)]++
			}
		}
	})
	const told = 20
	for n := range told {
		if a := srv.request("POST", "/v1/self/events/lux", others, fmt.Sprintf(`"good %d"`, n)); a.status != 202 {
			t.Errorf("another device's event %d: %d %s", n, a.status, a.body)
		}
	}
	testwait.All(t, "the end of the attack", &wg)
	if a := srv.request("PUT", "/v1/self/state", others, `{}`); a.status != 204 {
		t.Errorf("another device's state: %d %s", a.status, a.body)
	}
	for _, i := range []int{2, 3} { // announcements: the others may be slower than their rate
		if refused[i] == 0 {
			t.Errorf("act %d was never held back", i)
		}
	}
	grown := heapOf(srv) - before
	t.Logf("%d kB of memory, and %d kB more at the worst; held back: %v", before>>10, grown>>10, refused)
	if grown > 16<<20 {
		t.Errorf("the heap grew by %d kB", grown>>10)
	}
	after := func(what string) { // a marker behind everything
		t.Helper()
		if a := srv.request("POST", "/v1/self/events/lux", others, `"`+what+`"`); a.status != 202 {
			t.Fatalf("the marker: %d %s", a.status, a.body)
		}
	}
	after("end")
	received, deadline := 0, time.After(30*time.Second)
	for end := false; !end; {
		var e sse.Event
		select {
		case e = <-events:
		case <-deadline:
			t.Fatalf("the marker was not received, %d of %d before it were", received, told)
		}
		switch e.Name {
		case "end", "":
			t.Fatalf("the reader was cut: %s", e.Data)
		case "gap":
			var g api.EventGap
			must(t, json.Unmarshal([]byte(e.Data), &g))
			if g.Devices["bad"] != g.Missed {
				t.Errorf("a gap of others: %s", e.Data)
			}
		case "event":
			var v api.Event
			must(t, json.Unmarshal([]byte(e.Data), &v))
			if strings.HasPrefix(string(v.Data), `"good `) {
				received++
			}
			end = string(v.Data) == `"end"`
		}
	}
	if received != told {
		t.Errorf("%d of another device's events came, want %d", received, told)
	}

	must(t, srv.admin.DeleteDevice(t.Context(), "bad"))
	if left, limit := heapOf(srv), before+before/10; left > limit {
		t.Errorf("%d kB of memory after it was deleted, %d before it began", left>>10, before>>10)
	}
	if a := srv.request("GET", "/v1/self", tokens[0], ""); a.status != 401 {
		t.Errorf("the deleted device: %d %s", a.status, a.body)
	}
}
