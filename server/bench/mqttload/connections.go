package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// connects: what CONNECT costs, with the token checked.
func (l *benchRun) connects(ctx context.Context) error {
	n := l.scaled(2000)
	ps, err := l.peers(ctx, min(n, 2500))
	if err != nil {
		return err
	}
	fmt.Printf("\n### Connections\n\n| | server | | | promised |\n|---|---|---|---|---|\n")
	for _, secret := range []bool{false, true} {
		cost := make([][]float64, len(ps))
		for range rounds {
			for i, p := range ps {
				if p.watchword == nil {
					continue
				}
				c, err := connectAll(ctx, p, n, secret)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				cost[i] = append(cost[i], c)
			}
		}
		for i, p := range ps {
			switch {
			case p.watchword == nil:
			case secret:
				fmt.Printf("| CONNECT with a token, TLS 1.3 | %s | %.0f | µs CPU | ≤ 750 |\n", p.name, median(cost[i]))
			default:
				fmt.Printf("| CONNECT with a token, plain | %s | %.0f | µs CPU | ≤ 250 |\n", p.name, median(cost[i]))
			}
		}
	}
	return nil
}

// connectAll connects n devices, 8 at a time, and returns the server's CPU time for each in µs.
func connectAll(ctx context.Context, p *benchServer, n int, secret bool) (float64, error) {
	before := p.cpu()
	cs := make([]*client, n)
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		g.Go(func() (err error) {
			cs[i], err = p.device(ctx, i, 0, secret, nil)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	cost := micros(p.cpu()-before, n)
	waitClosed(cs...)
	return cost, nil
}

// idle: what a connection holds that does nothing. On a fresh server each, 8
// connections of each device.
func (l *benchRun) idle(ctx context.Context) error {
	fmt.Printf("\n### Memory of idle connections\n\n| | Watchword | | promised |\n|---|---|---|---|\n")
	for _, secret := range []bool{false, true} {
		if err := l.stop(); err != nil {
			return err
		}
		n := l.scaled(15_000)
		ps, err := l.peers(ctx, n) // one connection each, as devices have
		if err != nil {
			return err
		}
		p := ps[1]
		time.Sleep(2 * time.Second)
		before := p.rss()
		cs := make([]*client, n)
		var g errgroup.Group
		g.SetLimit(16)
		for i := range n {
			g.Go(func() (err error) {
				cs[i], err = p.device(ctx, i, 0, secret, nil)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		time.Sleep(130 * time.Second) // the collector runs every two minutes at the latest
		kB := float64(p.rss()-before) / float64(n)
		waitClosed(cs...)
		name, promise := "plain", "≤ 10"
		if secret {
			name, promise = "TLS 1.3", "≤ 32"
		}
		fmt.Printf("| %s, %d connections | %.1f | kB | %s |\n", name, n, kB, promise)
	}
	return nil
}

// revocation measures how long after the API's answer a forbidden message is still received.
func (l *benchRun) revocation(ctx context.Context) error {
	if err := l.stop(); err != nil { // what it revokes stays revoked
		return err
	}
	devices := l.scaled(2000)
	ps, err := l.peers(ctx, devices)
	if err != nil {
		return err
	}
	p := ps[1]
	received := make([]atomic.Int64, devices) // when each received last, since start
	count := make([]atomic.Int64, devices)
	start := time.Now()
	fleet, err := p.fleet(ctx, devices, func(i int) func(*message) {
		return func(*message) {
			received[i].Store(int64(time.Since(start)))
			count[i].Add(1)
		}
	}, func(int) string { return "take/#" }, 0)
	if err != nil {
		return err
	}
	op, err := p.operator(ctx, "pub", nil)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	published := make(chan error, 1)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond) // 100,000 deliveries a second
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := op.send(&packet.Publish{Topic: "take/x", Payload: make([]byte, 32)}); err != nil {
					published <- err
					return
				}
			case <-stop:
				published <- nil
				return
			}
		}
	}()
	late := func(answered time.Duration, who []int) (worst time.Duration) {
		time.Sleep(max(0, 500*time.Millisecond-(time.Since(start)-answered)))
		for _, i := range who {
			worst = max(worst, time.Duration(received[i].Load())-answered)
		}
		return worst
	}
	fmt.Printf("\n### Authority over %d busy sessions\n\n| | last forbidden message after the API's answer | API's answer took | promised |\n|---|---|---|---|\n", devices)
	time.Sleep(time.Second)
	at := time.Now()
	if _, err := p.watchword.admin.Revoke(ctx, "dev-0", "load"); err != nil {
		return err
	}
	took, answered := time.Since(at), time.Since(start)
	fmt.Printf("| one revoked | %.1f ms | %.1f ms | ≤ 50 ms |\n", ms(late(answered, []int{0})), ms(took))
	var worst, slow time.Duration
	answers := make([]time.Duration, 101)
	for i := 1; i <= 100; i++ {
		at := time.Now()
		if _, err := p.watchword.admin.Revoke(ctx, watchword.SubjectID(fmt.Sprintf("dev-%d", i)), "load"); err != nil {
			return err
		}
		slow, answers[i] = max(slow, time.Since(at)), time.Since(start)
	}
	for i := 1; i <= 100; i++ {
		worst = max(worst, late(answers[i], []int{i}))
	}
	fmt.Printf("| 100 revoked, one after the other | %.1f ms | %.1f ms at most | ≤ 50 ms |\n", ms(worst), ms(slow))
	var before int64
	for i := 101; i < devices; i++ {
		before += count[i].Load()
	}
	undisturbed := 0
	for i := 101; i < devices; i++ {
		select {
		case <-fleet[i].end:
		default:
			undisturbed++
		}
	}
	all := make([]int, 0, devices)
	for i := 101; i < devices; i++ {
		all = append(all, i)
	}
	at = time.Now()
	if _, err := p.watchword.admin.ApplyPolicy(ctx, "taken", []byte("for = { kind = \"load\" }\n[[deny]]\nsubscribe = [\"take/#\"]\n"), 0); err != nil {
		return err
	}
	took, answered = time.Since(at), time.Since(start)
	fmt.Printf("| a topic taken from all by policy | %.1f ms | %.1f ms | ≤ 50 ms |\n", ms(late(answered, all)), ms(took))
	fmt.Printf("\n%d of %d others stayed connected while 101 were revoked, and received %d messages.\n", undisturbed, devices-101, before)
	close(stop)
	if err := <-published; err != nil {
		return err
	}
	waitClosed(append(fleet, op)...)
	return nil
}

func ms(d time.Duration) float64 { return float64(max(d, 0).Microseconds()) / 1000 }
