package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
)

// hostile answers every request in memory, for bubbles of testing/synctest.
type hostile struct {
	mu    sync.Mutex
	asked map[string]int // "METHOD /path"
	h     func(r *http.Request) (status int, body io.Reader)
}

func (h *hostile) RoundTrip(r *http.Request) (*http.Response, error) {
	route := r.Method + " " + r.URL.Path
	h.mu.Lock()
	h.asked[route]++
	h.mu.Unlock()
	status, body := 200, io.Reader(strings.NewReader(`{"access_token":"t","token_type":"Bearer","expires_in":600}`))
	if route != "POST /oauth/token" {
		status, body = h.h(r)
	}
	// As a transport does: the body ends with the request's context.
	out, in := io.Pipe()
	stop := context.AfterFunc(r.Context(), func() { in.CloseWithError(r.Context().Err()) })
	go func() {
		_, err := io.Copy(in, body)
		in.CloseWithError(err)
		stop()
	}()
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: out, Request: r}, nil
}

func (h *hostile) times(route string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked[route]
}

func against(f func(r *http.Request) (int, io.Reader)) (*Client, *hostile) {
	h := &hostile{asked: map[string]int{}, h: f}
	tokens := &rest.Tokens{Client: rest.New("https://hub.test", h, nil), Path: "/oauth/token", Now: time.Now, Sign: func() (string, error) { return "assertion", nil }}
	return &Client{opts: Options{Now: time.Now}, tokens: tokens, rest: rest.New("https://hub.test", h, tokens)}, h
}

// silentAfter says what it has, and then nothing for a month.
func silentAfter(s string) io.Reader { return io.MultiReader(strings.NewReader(s), forAMonth{}) }

type forAMonth struct{}

func (forAMonth) Read([]byte) (int, error) {
	time.Sleep(30 * 24 * time.Hour)
	return 0, io.EOF
}

// lists is every method that follows pages.
var lists = map[string]func(context.Context, *Client) error{
	"devices": func(ctx context.Context, c *Client) error {
		return c.Devices(ctx, nil, "", func(api.Device) error { return nil })
	},
	"pairings": func(ctx context.Context, c *Client) error {
		return c.Pairings(ctx, func(api.Pairing) error { return nil })
	},
	"logins": func(ctx context.Context, c *Client) error {
		return c.Logins(ctx, func(api.Login) error { return nil })
	},
	"policies": func(ctx context.Context, c *Client) error { _, err := c.Policies(ctx); return err },
	"retained": func(ctx context.Context, c *Client) error {
		return c.Retained(ctx, RetainedQuery{}, func(api.Retained) error { return nil })
	},
	"commands": func(ctx context.Context, c *Client) error { _, err := c.Commands(ctx, Filter{}, 1e6); return err },
	"sessions": func(ctx context.Context, c *Client) error { _, err := c.Sessions(ctx, ""); return err },
	"keys":     func(ctx context.Context, c *Client) error { _, err := c.ServerKeys(ctx); return err },
	"the log":  func(ctx context.Context, c *Client) error { _, err := c.Entries(ctx, 0, 1e6); return err },
}

// A list whose pages bring nothing is followed at a pace, and one that names the page before as the
// next one is at its end.
func TestEndlessListIsPaced(t *testing.T) {
	for name, list := range lists {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pages := 0
				c, _ := against(func(*http.Request) (int, io.Reader) {
					pages++
					return 200, strings.NewReader(fmt.Sprintf(`{"next_page_token":"%d"}`, pages))
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := list(ctx, c)
				if name == "the log" { // it ends with a page that has nothing
					if err != nil || pages != 1 {
						t.Errorf("%d pages: %v", pages, err)
					}
				} else if !errors.Is(err, context.DeadlineExceeded) || pages < 50 || pages > 75 {
					t.Errorf("%d pages in a minute: %v", pages, err)
				}

				pages = 0
				c, _ = against(func(*http.Request) (int, io.Reader) {
					pages++
					return 200, strings.NewReader(`{"next_page_token":"the same","devices":[{}],"enrollments":[{}],"logins":[{}],"policies":[{}],"retained":[{}],"commands":[{}],"sessions":[{}],"keys":[{}],"entries":[{}]}`)
				})
				if err := list(t.Context(), c); watchword.CodeOf(err) != watchword.Internal || pages != 2 {
					t.Errorf("the same page again: %d pages, %v", pages, err)
				}
			})
		})
	}
}

// Every request ends, whatever it is for.
func TestEveryRequestEnds(t *testing.T) {
	asks := map[string]func(context.Context, *Client) error{
		"a command, waited for": func(ctx context.Context, c *Client) error {
			_, err := c.Command(ctx, "cmd_1", 50*time.Second)
			return err
		},
		"a policy":       func(ctx context.Context, c *Client) error { _, _, err := c.Policy(ctx, "p"); return err },
		"a proof":        func(ctx context.Context, c *Client) error { _, err := c.Proof(ctx, 1); return err },
		"evidence":       func(ctx context.Context, c *Client) error { _, err := c.Evidence(ctx, "cmd_1"); return err },
		"a log file":     func(ctx context.Context, c *Client) error { _, err := c.LogFile(ctx, "checkpoint"); return err },
		"a trust bundle": func(ctx context.Context, c *Client) error { _, err := c.TrustBundle(ctx); return err },
		"an export":      func(ctx context.Context, c *Client) error { return c.ExportLog(ctx, LogQuery{}, io.Discard) },
		"events": func(ctx context.Context, c *Client) error {
			return c.Watch(ctx, "", "", nil, func(api.Event) error { return nil }) // a stream that was never open is not repeated
		},
		"the log, live": func(ctx context.Context, c *Client) error {
			return c.FollowLog(ctx, LogQuery{}, nil, func(api.Entry) error { return nil })
		},
	}
	for name, f := range lists {
		asks[name] = f
	}
	for name, f := range asks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for what, status := range map[string]int{"an answer": 200, "a refusal": 403} {
					c, _ := against(func(*http.Request) (int, io.Reader) { return status, silentAfter("{") })
					begun := time.Now()
					err := f(t.Context(), c)
					if took := time.Since(begun); took < 30*time.Second || took > 2*time.Minute { // a page of the log may have 8 MiB
						t.Errorf("%s: it took %s", what, took)
					}
					if watchword.CodeOf(err) != watchword.Unavailable {
						t.Errorf("%s: got %v", what, err)
					}
				}
				time.Sleep(31 * 24 * time.Hour) // until all is said
			})
		})
	}
}

// However many sessions a stream names, one is refreshed; and a stream that falls silent is lost.
func TestAStreamHasOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		for i := range 1000 {
			fmt.Fprintf(&b, "event: session\ndata: {\"session\":\"ses_%d\",\"expires_at\":%q}\n\n", i, time.Now().Add(10*time.Second).Format(time.RFC3339))
		}
		c, h := against(func(r *http.Request) (int, io.Reader) {
			if r.Method == http.MethodPut {
				return 200, strings.NewReader(fmt.Sprintf(`{"expires_at":%q}`, time.Now().Add(10*time.Second).Format(time.RFC3339)))
			}
			return 200, silentAfter(b.String())
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var err error
		c.opts.StreamLost = func(lost error, _ time.Duration) {
			err = lost
			cancel()
		}
		begun := time.Now()
		if err := c.Watch(ctx, "", "", nil, func(api.Event) error { return nil }); err != nil {
			t.Errorf("the end of ctx: %v", err)
		}
		if took := time.Since(begun); watchword.CodeOf(err) != watchword.Unavailable || took < 80*time.Second || took > 100*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
		all := 0
		for route, n := range h.asked {
			if strings.HasPrefix(route, "PUT ") {
				all += n
			}
		}
		if n := h.times("PUT /v1/self/sessions/ses_999"); n < 8 || n > 20 || all != n {
			t.Errorf("%d refreshes, %d in all", n, all)
		}
		time.Sleep(31 * 24 * time.Hour)
	})
}

// A line of an export without an end is not read without limit.
func TestALineOfAnExportHasABound(t *testing.T) {
	for size, code := range map[int]watchword.Code{1 << 20: "", 1<<20 + 1: watchword.TooLarge} {
		c, _ := against(func(*http.Request) (int, io.Reader) {
			return 200, strings.NewReader(strings.Repeat("x", size-1) + "\n")
		})
		var got bytes.Buffer
		if err := c.ExportLog(t.Context(), LogQuery{}, &got); watchword.CodeOf(err) != code || code == "" && got.Len() != size {
			t.Errorf("%d bytes: %d were written, %v", size, got.Len(), err)
		}
	}
}

// A wait for a command sends one request a second, however fast the server answers that it has not expired.
func TestAwaitIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := against(func(*http.Request) (int, io.Reader) { return 200, strings.NewReader(`{"id":"cmd_1","state":"queued"}`) })
		begun := time.Now()
		if _, err := c.Await(t.Context(), api.Command{ID: "cmd_1"}, time.Minute); err != nil || time.Since(begun) != time.Minute {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		if n := h.times("GET /v1/commands/cmd_1"); n < 55 || n > 61 {
			t.Errorf("it asked %d times in a minute", n)
		}
	})
}
