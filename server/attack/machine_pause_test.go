package attack_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/device"
)

// A machine that was paused for three hours: its timers were too, and every token has expired.
func TestTokensExpireDuringMachinePause(t *testing.T) {
	var paused atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(paused.Load())) }
	srv := serveAt(t, filepath.Join(t.TempDir(), "data"), now, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "watcher", []byte(watcher), -1)
	must(t, err)
	w := srv.enroll("w-1", device.Options{}, watchword.Labels{"role": "watcher"})
	p := srv.enroll("p-1", device.Options{}, nil)
	hears, says := connectPaho(t, w, ""), connectPaho(t, p, "/a")
	hears.subscribe(t, "devices/+/events/#")
	const topic = "devices/p-1/events/lux"
	_, err = says.client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("1")})
	must(t, err)
	if m := testwait.For(t, "the first message", hears.got); string(m.Payload) != "1" {
		t.Fatalf("before: %q", m.Payload)
	}
	events, commands := srv.stream("/v1/events", srv.token(w)), srv.stream("/v1/self/commands", srv.token(p))
	next(t, events, "session")
	next(t, commands, "session")
	poll := make(chan answer, 1)
	go func() { poll <- srv.request("GET", "/v1/self/commands?wait=60s", srv.token(w), "") }()
	for limit := time.Now().Add(20 * time.Second); ; { // until the poll is a session
		ss, err := srv.admin.Sessions(t.Context(), "w-1")
		must(t, err)
		if len(ss) == 3 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("no poll among the sessions %v", ss)
		}
	}

	paused.Add(int64(3 * time.Hour))
	for name, at := range map[string]*pahoClient{"the subscriber": hears, "the publisher": says} {
		select {
		case d := <-at.ended:
			if d.ReasonCode != 0x87 && d.ReasonCode != 0xa0 {
				t.Errorf("%s was told %#x", name, d.ReasonCode)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s was not disconnected", name)
		}
	}
	if code := endCode(t, events); code != watchword.TokenExpired {
		t.Errorf("the stream of events ended with %q", code)
	}
	if code := endCode(t, commands); code != watchword.TokenExpired {
		t.Errorf("the stream of commands ended with %q", code)
	}
	select {
	case a := <-poll:
		if a.code != watchword.TokenExpired {
			t.Errorf("the poll ended with %d %q", a.status, a.code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the poll went on")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := says.client.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("2")}); err == nil {
		t.Error("a publish under an expired token")
	}
	select {
	case m := <-hears.got:
		t.Errorf("an expired token received %q", m.Payload)
	default:
	}
}
