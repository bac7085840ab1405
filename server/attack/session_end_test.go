package attack_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/sse"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// stream opens a stream and returns its events; the channel is closed at its end. A header is "Name: value".
func (srv *testServer) stream(path, token string, headers ...string) <-chan sse.Event {
	srv.t.Helper()
	req, err := http.NewRequestWithContext(srv.t.Context(), "GET", srv.url+path, nil)
	must(srv.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "text/event-stream")
	for _, line := range headers {
		k, v, _ := strings.Cut(line, ": ")
		req.Header.Set(k, v)
	}
	c := srv.client()
	c.Timeout = 0
	res, err := c.Do(req)
	must(srv.t, err)
	srv.t.Cleanup(func() { _ = res.Body.Close() })
	if res.StatusCode != 200 {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // for the message alone
		srv.t.Fatalf("%s: %d %s", path, res.StatusCode, b)
	}
	out := make(chan sse.Event, 64)
	go func() {
		defer close(out)
		for r := sse.NewReader(res.Body); ; {
			e, err := r.Next()
			if err != nil {
				return
			}
			out <- e
		}
	}()
	return out
}

// next waits for an event of that name.
func next(t testing.TB, s <-chan sse.Event, name string) sse.Event {
	t.Helper()
	for limit := time.After(20 * time.Second); ; {
		select {
		case e, ok := <-s:
			if !ok {
				t.Fatalf("the stream ended before an event %q", name)
			}
			if e.Name == name {
				return e
			}
		case <-limit:
			t.Fatalf("no event %q", name)
		}
	}
}

func endCode(t testing.TB, s <-chan sse.Event) watchword.Code {
	t.Helper()
	var p struct{ Code watchword.Code }
	must(t, json.Unmarshal([]byte(next(t, s, "end").Data), &p))
	if _, open := <-s; open {
		t.Error("something came after the end")
	}
	return p.Code
}

const watcher = `for = { role = "watcher" }
[[allow]]
subscribe = ["devices/+/events/#"]
[[allow]]
get = ["/v1/events"]
`

func TestLosingAuthorityEndsStreams(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	_, err := srv.admin.ApplyPolicy(ctx, "watcher", []byte(watcher), -1)
	must(t, err)
	for _, tc := range []struct {
		name string
		do   func(id watchword.SubjectID) error
		want watchword.Code
	}{
		{"suspend", func(id watchword.SubjectID) error { _, err := srv.admin.Suspend(ctx, id, "t"); return err }, watchword.SubjectSuspended},
		{"revoke", func(id watchword.SubjectID) error { _, err := srv.admin.Revoke(ctx, id, "t"); return err }, watchword.SubjectRevoked},
		{"delete", func(id watchword.SubjectID) error { return srv.admin.DeleteDevice(ctx, id) }, watchword.SubjectRevoked},
		{"label edit", func(id watchword.SubjectID) error { _, err := srv.admin.SetLabels(ctx, id, nil, 0); return err }, watchword.Denied},
		{"policy edit", func(watchword.SubjectID) error {
			_, err := srv.admin.ApplyPolicy(ctx, "watcher", []byte(watcher+"[[deny]]\nsubscribe = [\"devices/+/events/secret\"]\n"), -1)
			return err
		}, watchword.Denied},
		{"policy deleted", func(watchword.SubjectID) error { return srv.admin.DeletePolicy(ctx, "watcher") }, watchword.Denied},
		{"session closed", func(id watchword.SubjectID) error {
			ss, err := srv.admin.Sessions(ctx, id)
			if err != nil {
				return err
			}
			for _, s := range ss {
				if err := srv.admin.CloseSession(ctx, s.ID); err != nil {
					return err
				}
			}
			return nil
		}, watchword.SessionClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			_, err := srv.admin.ApplyPolicy(ctx, "watcher", []byte(watcher), -1)
			must(t, err)
			id := watchword.SubjectID("w-" + strings.ReplaceAll(tc.name, " ", "-"))
			w := srv.enroll(id, device.Options{}, watchword.Labels{"role": "watcher"})
			s := srv.stream("/v1/events", srv.token(w))
			next(t, s, "session")
			pub := srv.enroll("p"+id, device.Options{}, nil)
			must(t, pub.Publish(ctx, "lux", 1))
			if e := next(t, s, "event"); !strings.Contains(e.Data, `"lux"`) {
				t.Errorf("got %s", e.Data)
			}
			must(t, tc.do(id))
			must(t, pub.Publish(ctx, "secret", 2)) // after the answer: it must not arrive
			for e := range s {
				if e.Name == "event" {
					t.Errorf("an event after the answer: %s", e.Data)
				}
				if e.Name == "end" {
					var p struct{ Code watchword.Code }
					must(t, json.Unmarshal([]byte(e.Data), &p))
					if p.Code != tc.want {
						t.Errorf("the end says %q, want %q", p.Code, tc.want)
					}
					return
				}
			}
			t.Error("the stream ended without a word")
		})
	}
}

func TestSessionRefreshNeedsSameSubject(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	other := srv.enroll("lamp-2", device.Options{}, nil)
	older, first := srv.token(d), srv.token(d)
	s := srv.stream("/v1/self/commands", first)
	var opened struct {
		Session   string    `json:"session"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	must(t, json.Unmarshal([]byte(next(t, s, "session").Data), &opened))
	path := "/v1/self/sessions/" + opened.Session
	if a := srv.request("PUT", path, srv.token(other), ""); a.status != 404 {
		t.Errorf("another's token: %d %s", a.status, a.body)
	}
	if a := srv.request("PUT", path, older, ""); a.status >= 500 {
		t.Errorf("an older token: %d %s", a.status, a.body)
	}
	if a := srv.request("PUT", path, srv.token(d), ""); a.status != 200 {
		t.Errorf("a newer token: %d %s", a.status, a.body)
	}
	if a := srv.request("PUT", "/v1/self/sessions/ses_none", srv.token(d), ""); a.status != 404 {
		t.Errorf("no such session: %d", a.status)
	}
	_, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "f"})
	must(t, err)
	next(t, s, "command") // the stream lives
}

func TestCommandsGoToTheNewestConnection(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	tok := srv.token(d)
	first := srv.stream("/v1/self/commands", tok)
	next(t, first, "session")
	second := srv.stream("/v1/self/commands", tok)
	next(t, second, "session")
	if code := endCode(t, first); code != watchword.Conflict {
		t.Errorf("the first ended with %q", code)
	}
	_, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "f"})
	must(t, err)
	next(t, second, "command")
}

func TestLongPollEndsWhenAuthorityIsLost(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	tok := srv.token(d)
	got := make(chan answer, 1)
	go func() { got <- srv.request("GET", "/v1/self/commands?wait=25s", tok, "") }()
	for { // until the poll is a session
		ss, err := srv.admin.Sessions(t.Context(), "lamp-1")
		must(t, err)
		if len(ss) > 0 {
			break
		}
	}
	start := time.Now()
	_, err := srv.admin.Revoke(t.Context(), "lamp-1", "test")
	must(t, err)
	a := <-got
	if a.code != watchword.SubjectRevoked {
		t.Errorf("the poll got %d %q", a.status, a.code)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestUnauthenticatedConnectionsAreBounded(t *testing.T) {
	const each = 6
	srv := serve(t, func(c *server.Config) { c.Limits.PerAddress = each })
	host := strings.TrimPrefix(srv.url, "https://")
	var silent []net.Conn
	for range each {
		c, err := net.Dial("tcp", host)
		must(t, err)
		defer c.Close()
		silent = append(silent, c)
	}
	// All places are taken: the next is closed at once, before a byte was read.
	over, err := net.Dial("tcp", host)
	must(t, err)
	defer over.Close()
	must(t, over.SetReadDeadline(time.Now().Add(5*time.Second)))
	if n, err := over.Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("one too many: %d bytes, %v", n, err)
	}
	// One that began a TLS record and stopped is cut off in time, and its place is free again.
	_, err = silent[0].Write([]byte{0x16, 0x03, 0x01})
	must(t, err)
	for _, c := range silent {
		must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatal("a silent connection lives on")
		}
	}
	if a := srv.request("GET", "/healthz", "", ""); a.status != 200 {
		t.Errorf("after the silence: %d", a.status)
	}
}

func TestSlowRequestIsClosed(t *testing.T) {
	srv := serve(t, nil)
	c, err := tls.Dial("tcp", strings.TrimPrefix(srv.url, "https://"), &tls.Config{InsecureSkipVerify: true})
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("GET /v1/trust HTTP/1.1\r\nHost: localhost\r\nX: "))
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	b, err := io.ReadAll(c)
	if err != nil && strings.Contains(err.Error(), "timeout") {
		t.Fatal("it waits without end")
	}
	if bytes.Contains(b, []byte("200 OK")) {
		t.Errorf("got %s", b)
	}
}

func TestADeviceRunsThroughARestart(t *testing.T) {
	srv := serve(t, nil)
	revoked := make(chan time.Duration, 1)
	v := counting(srv.enroll("lamp-1", device.Options{Revoked: func(pause time.Duration) { revoked <- pause }}, nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- v.Run(ctx) }()
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 20 * time.Second})
	must(t, err)
	if c.State != watchword.Done {
		t.Fatalf("the command is %s", c.State)
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(srv.url, "https://"))
	must(t, err)
	srv.stop()
	again := serveOn(t, srv.dir, onPort(port))
	c, err = again.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 50 * time.Second})
	must(t, err)
	if c.State != watchword.Done || v.acts.Load() != 2 {
		t.Errorf("after the restart the command is %s, %d acts", c.State, v.acts.Load())
	}
	_, err = again.admin.Revoke(ctx, "lamp-1", "test")
	must(t, err)
	if pause := testwait.For(t, "the word that the device is revoked", revoked); pause < 20*time.Hour || pause > 28*time.Hour {
		t.Errorf("it asks again after %s", pause)
	}
	_, err = v.Token(ctx)
	wants(t, "a token", err, watchword.SubjectRevoked)
	select {
	case err := <-ran:
		t.Errorf("Run ended: %v", err)
	default:
	}
	cancel()
	if err := testwait.For(t, "the end of Run", ran); err != nil {
		t.Error(err)
	}
}

func TestFastPublisherOverMQTTIsDelayed(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 1 })
	d := srv.enroll("lamp-1", device.Options{}, nil)
	other := srv.enroll("lamp-2", device.Options{}, nil)
	tok := srv.token(d)
	var last answer
	for range 40 {
		if last = srv.request("POST", "/v1/self/events/lux", tok, "1"); last.status != 202 {
			break
		}
	}
	if last.status != 429 || last.code != watchword.RateLimited || last.header.Get("Retry-After") == "" {
		t.Errorf("got %d %s", last.status, last.body)
	}
	if a := srv.request("POST", "/v1/self/events/lux", srv.token(other), "1"); a.status != 202 {
		t.Errorf("another device: %d %s", a.status, a.body)
	}

	// What it publishes over MQTT is of the same account.
	third := srv.enroll("lamp-3", device.Options{}, nil)
	tok = srv.token(third)
	w, err := dialPaho(t, third, "lamp-3", tok)
	must(t, err)
	for range 11 { // the last one waits
		_, err := w.client.Publish(t.Context(), &paho.Publish{Topic: "devices/lamp-3/events/lux", QoS: 1, Payload: []byte("1")})
		must(t, err)
	}
	for range 9 { // with an account of its own, HTTP would take 10
		if last = srv.request("POST", "/v1/self/events/lux", tok, "1"); last.status != 202 {
			break
		}
	}
	if last.status != 429 {
		t.Errorf("after MQTT used up the rate, HTTP: %d %s", last.status, last.body)
	}
}
