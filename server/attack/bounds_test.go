package attack_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// slowBodies sends so many requests whose bodies are the caller's to write, and returns when the server reads all of
// them. fits says of the status of an answer whether it is one of a request that was within the bounds.
func (srv *testServer) slowBodies(t *testing.T, n int, request func(body io.Reader) *http.Request, fits func(status int) bool) (bodies []*io.PipeWriter, ended *sync.WaitGroup) {
	t.Helper()
	ended = &sync.WaitGroup{}
	reading := make(chan struct{}, n)
	for range n {
		body, w := io.Pipe()
		bodies = append(bodies, w)
		// The server says that it reads the body (RFC 9110 §10.1.1).
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { reading <- struct{}{} }})
		req := request(body).WithContext(ctx)
		req.Header.Set("Expect", "100-continue")
		ended.Go(func() {
			res, err := srv.http.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			_ = res.Body.Close() // what it says is not what this is about
			if !fits(res.StatusCode) {
				t.Errorf("one of those that fit: %d", res.StatusCode)
			}
		})
	}
	for i := range n {
		testwait.For(t, fmt.Sprintf("the reading of body %d of %d", i+1, n), reading)
	}
	return bodies, ended
}

// One connection of HTTP/2 carries many requests, and each of them takes memory until it ends.
func TestRequestsUnderWayAreBounded(t *testing.T) {
	const most = 8
	srv := serve(t, func(c *server.Config) { c.Limits.PerAddress = most })
	srv.http = srv.client()
	if a := srv.request("GET", "/v1/trust", "", ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	bodies, ended := srv.slowBodies(t, most, func(body io.Reader) *http.Request {
		req, err := http.NewRequest("POST", srv.url+"/v1/time", body)
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		return req
	}, func(status int) bool { return status != 429 })
	if a := srv.request("GET", "/v1/trust", "", ""); a.status != 429 || a.code != watchword.Busy || a.header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %.200s", a.status, a.body)
	}
	for _, w := range bodies {
		must(t, w.Close())
	}
	testwait.All(t, "the answers to those that fit", ended)
	if a := srv.request("GET", "/v1/trust", "", ""); a.status != 200 {
		t.Errorf("after them: %d %s", a.status, a.body)
	}
}

func TestAllPoliciesTogetherAreBounded(t *testing.T) {
	srv := serve(t, nil)
	srv.http = srv.client()
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	const size, fit = 65_000, 4 << 20 / 65_000
	text := "for = { kind = \"nobody\" }\n[[allow]]\npublish = [\"x\"]\n#"
	text += strings.Repeat("x", size-len(text))
	put := func(n int) answer {
		return srv.request("PUT", fmt.Sprintf("/v1/policies/p%d", n), op, text, "Content-Type: application/toml")
	}
	for n := range fit {
		if a := put(n); a.status >= 300 {
			t.Fatalf("policy %d: %d %s", n, a.status, a.body)
		}
	}
	if a := put(fit); a.status != 413 || a.code != watchword.TooLarge {
		t.Errorf("one more: %d %s", a.status, a.body)
	}
	if a := put(0); a.status >= 300 {
		t.Errorf("one in the place of another: %d %s", a.status, a.body)
	}
}

// One subject that may call devices cannot make the store hold any number of commands for them,
// nor take the room of all others.
func TestUnfinishedCommandsOfOneSubjectAreBounded(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.SubjectCommands, c.Limits.Commands = 3, 5 })
	srv.http = srv.client()
	_, err := srv.admin.ApplyPolicy(t.Context(), "call", []byte("for = {}\n[[allow]]\npost = [\"/v1/commands\", \"/v1/commands/+/cancel\"]\n[[allow]]\ncall = [\"*\"]\non = {}\n"), -1)
	must(t, err)
	var tokens [3]string
	for i := range tokens {
		tokens[i] = srv.token(srv.enroll(watchword.SubjectID(fmt.Sprint("lamp-", i)), device.Options{}, nil))
	}
	order := func(by, to int) answer {
		return srv.request("POST", "/v1/commands", tokens[by], fmt.Sprintf(`{"device":"lamp-%d","function":"f"}`, to))
	}
	taken := func(a answer) string {
		t.Helper()
		if a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		_, id, _ := strings.Cut(a.body, `"id":"`)
		id, _, _ = strings.Cut(id, `"`)
		return id
	}
	full := func(a answer, bound string) {
		t.Helper()
		if a.status != 429 || a.code != watchword.Busy || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "("+bound+")") {
			t.Errorf("got %d %s, want busy (%s)", a.status, a.body, bound)
		}
	}
	first := taken(order(0, 0))
	taken(order(0, 1))
	taken(order(0, 2))
	for to := range 3 {
		full(order(0, to), "limits.subject_commands")
	}
	taken(order(1, 0))
	taken(order(1, 0))
	full(order(2, 0), "limits.commands")
	if a := srv.request("POST", "/v1/commands/"+first+"/cancel", tokens[0], ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	taken(order(2, 0))
	full(order(0, 0), "limits.commands")
}

// One subject whose requests send their bodies slowly holds no more than its bound; others are answered meanwhile.
func TestBodiesOfOneSubjectAreBounded(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.SubjectBodyBytes = 1 << 20 })
	srv.http = srv.client()
	greedy, other := srv.token(srv.enroll("lamp-1", device.Options{}, nil)), srv.token(srv.enroll("lamp-2", device.Options{}, nil))
	event := strings.Repeat("x", 32<<10)
	const most = 1 << 20 / (28 << 10)
	bodies, ended := srv.slowBodies(t, most, func(body io.Reader) *http.Request {
		req, err := http.NewRequest("POST", srv.url+"/v1/self/events/lux", body)
		must(t, err)
		req.ContentLength = int64(len(event))
		req.Header.Set("Authorization", "Bearer "+greedy)
		return req
	}, func(status int) bool { return status == 202 })
	if a := srv.request("POST", "/v1/self/events/lux", greedy, event); a.status != 429 || a.code != watchword.Busy || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "(limits.subject_body_bytes)") {
		t.Errorf("one more: %d %.200s", a.status, a.body)
	}
	if a := srv.request("POST", "/v1/self/events/lux", other, event); a.status != 202 {
		t.Errorf("another subject: %d %.200s", a.status, a.body)
	}
	for _, w := range bodies {
		_, err := io.WriteString(w, event)
		must(t, err)
		must(t, w.Close())
	}
	testwait.All(t, "the answers to those that fit", ended)
	if a := srv.request("POST", "/v1/self/events/lux", greedy, event); a.status != 202 {
		t.Errorf("after them: %d %.200s", a.status, a.body)
	}
}
