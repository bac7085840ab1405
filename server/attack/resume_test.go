package attack_test

import (
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// relay forwards connections to a server. It can close all of them and refuse new ones.
type relay struct {
	address string

	mu     sync.Mutex
	closed bool // new connections are closed
	conns  []net.Conn
}

func relayTo(t *testing.T, server string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &relay{address: l.Addr().String()}
	t.Cleanup(func() {
		_ = l.Close() // ends the loop below
		r.set(true)
	})
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			r.mu.Lock()
			if err != nil || r.closed {
				_ = near.Close() // the client connects again
				if far != nil {
					_ = far.Close()
				}
				r.mu.Unlock()
				continue
			}
			r.conns = append(r.conns, near, far)
			r.mu.Unlock()
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1]) // until one side closes
					_ = pair[0].Close()
				}()
			}
		}
	}()
	return r
}

// set closes all connections and refuses new ones, or admits them again.
func (r *relay) set(closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = closed
	for _, c := range r.conns {
		_ = c.Close() // it may be closed already
	}
	r.conns = nil
}

// Streams of events and of log entries go on after a lost connection and after a restart of the server: nothing that the
// server has is missed or repeated, also if nothing was read before, and what it no longer has is reported. A refusal ends
// them.
func TestStreamsResume(t *testing.T) {
	top := t // a server lasts longer than the part that starts it
	quick := func(c *server.Config) { c.Audit.CheckpointEvery.Duration = 100 * time.Millisecond }
	srv := serve(t, quick)
	port := portOf(t, srv.url)
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	between := relayTo(t, "localhost:"+port)
	o, err := admin.LocalOptions(srv.dir)
	must(t, err)
	lost := make(chan error, 100)
	o.Dial, o.StreamLost = between.address, func(err error, _ time.Duration) { lost <- err }
	client, err := admin.New(o)
	must(t, err)
	type happening struct {
		event string
		entry int64
		gap   api.EventGap
	}
	for _, stream := range []struct {
		name   string
		follow func(ctx context.Context, opened func(), got chan<- happening) error
	}{
		{"events", func(ctx context.Context, opened func(), got chan<- happening) error {
			return client.WatchEvents(ctx, admin.EventQuery{Device: "lamp-1"}, opened, func(g api.EventGap) { got <- happening{gap: g} }, func(e api.Event) error {
				got <- happening{event: string(e.Data)}
				return nil
			})
		}},
		{"entries", func(ctx context.Context, opened func(), got chan<- happening) error {
			return client.FollowLog(ctx, admin.LogQuery{Kind: audit.DeviceSuspend}, opened, func(e api.Entry) error {
				got <- happening{entry: e.Seq}
				return nil
			})
		}},
	} {
		t.Run(stream.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			n := 0
			occur := func() {
				t.Helper()
				n++
				if stream.name == "events" {
					must(t, lamp.Publish(t.Context(), "lux", n))
					return
				}
				_, err := srv.admin.Suspend(t.Context(), "lamp-1", "test")
				must(t, err)
				_, err = srv.admin.Resume(t.Context(), "lamp-1")
				must(t, err)
			}
			var last int64
			check := func(h happening, what string) {
				t.Helper()
				if stream.name == "events" && h.event != strconv.Itoa(n) || stream.name == "entries" && h.entry <= last {
					t.Fatalf("%s: got %+v after %d", what, h, n)
				}
				last = h.entry
			}
			got, opened, ended := make(chan happening, 100), make(chan struct{}, 100), make(chan error, 1)
			go func() { ended <- stream.follow(ctx, func() { opened <- struct{}{} }, got) }()
			testwait.For(t, "the stream", opened)
			for _, what := range []string{"before anything was read", "after one was read"} {
				between.set(true)
				testwait.For(t, "the loss "+what, lost)
				occur()
				between.set(false)
				testwait.For(t, "the stream again "+what, opened)
				check(testwait.For(t, "what came meanwhile, "+what, got), what)
			}
			if stream.name == "events" {
				srv.stop()
				testwait.For(t, "the loss of the server", lost)
				srv = serveOn(top, srv.dir, func(c *server.Config) { quick(c); onPort(port)(c) })
				testwait.For(t, "the stream of the new server", opened)
				occur()
				if h := testwait.For(t, "the gap", got); !h.gap.More {
					t.Errorf("got %+v in place of a gap", h)
				}
				check(testwait.For(t, "the event behind it", got), "after a restart")
			}
			must(t, srv.admin.EachSession(t.Context(), admin.SessionFilter{OnlyLive: true, Transport: "sse"}, func(s api.Session) error {
				return srv.admin.CloseSession(t.Context(), s.ID)
			}, nil))
			wants(t, "a stream that an operator closes", testwait.For(t, "the end of the stream", ended), watchword.SessionClosed)
		})
	}
}
