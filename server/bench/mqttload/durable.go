package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// persistentSession sets a Session Expiry Interval of an hour.
func persistentSession(p *packet.Connect) {
	p.CleanStart = false
	p.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
}

// subscribeOffline makes n devices subscribe with persistent sessions and disconnect.
func (p *benchServer) subscribeOffline(ctx context.Context, n int) error {
	var g errgroup.Group
	g.SetLimit(32)
	for i := range n {
		g.Go(func() error {
			c, err := p.device(ctx, i, 0, false, nil, persistentSession)
			if err != nil {
				return err
			}
			if err := errors.Join(c.subscribe(fmt.Sprintf("down/dev-%d", i), 1), c.subscribe("fan/x", 1)); err != nil {
				return err
			}
			waitClosed(c)
			return nil
		})
	}
	return g.Wait()
}

// pipeline publishes total messages over that many connections, each with a window of
// unacknowledged messages, and returns the total time and the time of each acknowledgement.
func (p *benchServer) pipeline(ctx context.Context, name string, total, connections, window int, qos byte, topic func(n int) string, retain bool) (took time.Duration, answers []time.Duration, err error) {
	each := total / connections
	lists := make([][]time.Duration, connections)
	var g errgroup.Group
	start := time.Now()
	for k := range connections {
		g.Go(func() error {
			c, err := p.operator(ctx, fmt.Sprintf("%s%d", name, k), nil)
			if err != nil {
				return err
			}
			defer waitClosed(c)
			var sent [65536]time.Time
			out := 0
			for n := range each + window {
				if n < each {
					m := &packet.Publish{Topic: topic(k*each + n), QoS: qos, ID: uint16(n%60000) + 1, Payload: make([]byte, 32), Retain: retain}
					sent[m.ID] = time.Now()
					if err := c.send(m); err != nil {
						return err
					}
					if out++; out < window {
						continue
					}
				}
				if out == 0 {
					break
				}
				select {
				case id := <-c.acks:
					out--
					lists[k] = append(lists[k], time.Since(sent[id]))
				case <-c.end:
					return fmt.Errorf("the connection ended: %+v %w", c.last, c.err)
				case <-time.After(20 * time.Second):
					return errors.New("no answer")
				}
			}
			return nil
		})
	}
	err = g.Wait()
	took = time.Since(start)
	answers = slices.Concat(lists...)
	slices.Sort(answers)
	return took, answers, err
}

func p99(of []time.Duration) float64 {
	if len(of) == 0 {
		return 0
	}
	return float64(of[len(of)*99/100].Microseconds()) / 1000
}

// offlineQoS1 measures QoS 1 messages to offline sessions.
func (l *benchRun) offlineQoS1(ctx context.Context) error {
	if err := l.stop(); err != nil {
		return err
	}
	sessions := l.scaled(1000)
	ps, err := l.peers(ctx, sessions)
	if err != nil {
		return err
	}
	for _, p := range ps {
		if err := p.subscribeOffline(ctx, sessions); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	fmt.Printf("\n### QoS 1 into %d absent sessions: ours on the disk (fsync) before the answer, mosquitto's in memory\n\n", sessions)
	fmt.Printf("| | Watchword: a second | p99 | CPU each | mosquitto: a second | p99 | CPU each |\n|---|---|---|---|---|---|---|\n")
	for _, w := range []struct {
		name                string
		total, conns, depth int
		topic               func(n int) string
		copies              int
	}{
		{"one session each, 1 connection, 1 under way", l.scaled(1000), 1, 1, func(n int) string { return fmt.Sprintf("down/dev-%d", n%sessions) }, 1},
		{"one session each, 7 connections, 50 under way", l.scaled(80_000), 7, 50, func(n int) string { return fmt.Sprintf("down/dev-%d", n%sessions) }, 1},
		{fmt.Sprintf("all %d sessions each, 1 connection, 20 under way (copies)", sessions), l.scaled(1000), 1, 20, func(int) string { return "fan/x" }, sessions},
	} {
		cells := ""
		for _, p := range []*benchServer{ps[1], ps[0]} {
			before := p.cpu()
			took, answers, err := p.pipeline(ctx, "abs", w.total, w.conns, w.depth, 1, w.topic, false)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			n := len(answers) * w.copies
			cells += fmt.Sprintf(" %.0f | %.2f ms | %.2f µs |", float64(n)/took.Seconds(), p99(answers), micros(p.cpu()-before, n))
		}
		fmt.Printf("| %s |%s\n", w.name, cells)
	}
	return nil
}

// qos2Ingest measures QoS 2 ingest.
func (l *benchRun) qos2Ingest(ctx context.Context) error {
	ps, err := l.peers(ctx, 1)
	if err != nil {
		return err
	}
	printHeading("QoS 2 ingest, 7 connections, 50 under way, one subscriber with QoS 2, CPU of the server for each message")
	total := l.scaled(35_000)
	cost := make([][]float64, len(ps))
	for range rounds {
		for i, p := range ps {
			var got atomic.Int64
			all := make(chan struct{})
			want := int64(total / 7 * 7)
			sub, err := p.operator(ctx, "sub", func(*message) {
				if got.Add(1) == want {
					close(all)
				}
			})
			if err != nil {
				return err
			}
			if err := sub.subscribe("two/+", 2); err != nil {
				return err
			}
			before := p.cpu()
			if _, _, err := p.pipeline(ctx, "two", total, 7, 50, 2, func(n int) string { return fmt.Sprintf("two/%d", n%100) }, false); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			select {
			case <-all:
			case <-time.After(30 * time.Second):
				return fmt.Errorf("%s: %d of %d", p.name, got.Load(), want)
			}
			cost[i] = append(cost[i], micros(p.cpu()-before, total))
			waitClosed(sub)
		}
	}
	printRow("QoS 2", median(cost[1]), median(cost[0]), "µs", 0.7)
	return nil
}

// retained measures many retained topics.
func (l *benchRun) retained(ctx context.Context) error {
	if err := l.stop(); err != nil {
		return err
	}
	ps, err := l.peers(ctx, 1)
	if err != nil {
		return err
	}
	topics := l.scaled(100_000) / 7 * 7
	fmt.Printf("\n### %d retained topics of 32 bytes\n\n| | set, a second | memory each | 100 of them by `keep/+/7` | all by `keep/#` |\n|---|---|---|---|---|\n", topics)
	for _, p := range []*benchServer{ps[1], ps[0]} {
		time.Sleep(time.Second)
		before := p.rss()
		took, answers, err := p.pipeline(ctx, "ret", topics, 7, 50, 1, func(n int) string { return fmt.Sprintf("keep/%d/%d", n/1000, n%1000) }, true)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		memory := float64(p.rss()-before) * 1024 / float64(topics)
		times := ""
		for _, f := range []struct {
			filter string
			n      int
		}{{"keep/+/7", topics / 1000}, {"keep/#", topics}} {
			var got atomic.Int64
			all := make(chan struct{})
			c, err := p.operator(ctx, "ask", func(*message) {
				if got.Add(1) == int64(f.n) {
					close(all)
				}
			})
			if err != nil {
				return err
			}
			start := time.Now()
			if err := c.subscribe(f.filter, 0); err != nil {
				return err
			}
			select {
			case <-all:
			case <-time.After(60 * time.Second):
				return fmt.Errorf("%s: %d of %d", p.name, got.Load(), f.n)
			}
			times += fmt.Sprintf(" %.1f ms |", float64(time.Since(start).Microseconds())/1000)
			waitClosed(c)
		}
		fmt.Printf("| %s | %.0f | %.0f bytes |%s\n", p.name, float64(len(answers))/took.Seconds(), memory, times)
	}
	start, err := l.restart()
	if err != nil {
		return err
	}
	fmt.Printf("\nStart to ready with them: %d ms.\n", start.Milliseconds())
	return nil
}

// restart restarts the server on its data folder.
func (l *benchRun) restart() (time.Duration, error) {
	dir := l.watchword.watchword.dir
	if err := l.watchword.stop(); err != nil {
		return 0, err
	}
	start := time.Now()
	us, err := startWatchword(dir, "")
	if err != nil {
		return 0, err
	}
	us.watchword.devices = l.watchword.watchword.devices
	l.watchword = us
	return time.Since(start), nil
}

// withWill adds a small will to a CONNECT.
func withWill(p *packet.Connect) {
	subject, _, _ := strings.Cut(p.ClientID, "/")
	p.Will = &packet.Will{Topic: "up/" + subject, QoS: 1, Payload: []byte("gone")}
}

// reconnectStorm measures all clients reconnecting at once, to persistent sessions or with clean
// starts, with and without wills.
func (l *benchRun) reconnectStorm(ctx context.Context) error {
	connections := l.scaled(10_000)
	fmt.Printf("\n### %d connections come back at once\n\n| | until all are back | CPU of the server each | refused once | twice |\n|---|---|---|---|---|\n", connections)
	for _, s := range []struct {
		name   string
		secret bool
		on     func(*packet.Connect)
	}{
		{"clean sessions, plain", false, func(*packet.Connect) {}},
		{"clean sessions with wills, plain", false, withWill},
		{"sessions that last, plain", false, persistentSession},
		{"sessions that last, TLS 1.3", true, persistentSession},
	} {
		if err := l.stop(); err != nil {
			return err
		}
		ps, err := l.peers(ctx, (connections+7)/8)
		if err != nil {
			return err
		}
		p := ps[1]
		cs := make([]*client, connections)
		connect := func(limit int) (refused *[2]atomic.Int64, err error) {
			refused = &[2]atomic.Int64{}
			var g errgroup.Group
			g.SetLimit(limit)
			for i := range connections {
				g.Go(func() (err error) {
					for try := 0; ; try++ {
						if cs[i], err = p.device(ctx, i/8, i%8, s.secret, nil, s.on); err == nil || try == 2 {
							return err
						}
						refused[min(try, 1)].Add(1)
						time.Sleep(time.Second)
					}
				})
			}
			err = g.Wait()
			return refused, err
		}
		if _, err := connect(16); err != nil {
			return err
		}
		waitClosed(cs...)
		before, start := p.cpu(), time.Now()
		refused, err := connect(connections)
		if err != nil {
			return err
		}
		took := time.Since(start)
		fmt.Printf("| %s | %.1f s | %.0f µs | %d | %d |\n", s.name, took.Seconds(), micros(p.cpu()-before, connections), refused[0].Load(), refused[1].Load())
		waitClosed(cs...)
	}
	return nil
}
