package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// usageFile is where our server writes what it takes, when it gets SIGUSR1.
const usageFile = "LOAD_USAGE"

// writeUsage writes how many goroutines there are and how many bytes live, when asked.
func writeUsage(ctx context.Context, path string) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	for {
		select {
		case <-asked:
		case <-ctx.Done():
			return
		}
		runtime.GC()
		runtime.GC() // what finalizers and pools held through the first
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		text := fmt.Sprintf("%d %d\n", runtime.NumGoroutine(), m.HeapAlloc)
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			fmt.Fprintln(os.Stderr, "mqttload:", err)
		}
	}
}

// usage is the server's use of resources without connections.
type usage struct {
	goroutines int
	heap       int // bytes that live
	rss        int // kB
}

func (p *benchServer) usage(path string) (u usage, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return u, err
	}
	if err := p.process.Process.Signal(syscall.SIGUSR1); err != nil {
		return u, err
	}
	for range 1000 {
		time.Sleep(10 * time.Millisecond)
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, err = fmt.Sscan(string(text), &u.goroutines, &u.heap)
		u.rss = p.rss()
		return u, err
	}
	return u, errors.New("the server does not say what it takes")
}

// churn is what many devices do to a server at once, for a while.
type churn struct {
	p        *benchServer
	seed     uint64
	made     atomic.Int64
	refused  atomic.Int64
	sent     atomic.Int64
	received atomic.Int64
}

// soak: minutes of churn, and after each, with all gone, what the server still takes.
func (l *benchRun) soak(ctx context.Context) error {
	if err := l.stop(); err != nil {
		return err
	}
	devices, minutes := l.scaled(300), max(int(10*l.scale), 2)
	path := l.dir + "/usage"
	if err := os.Setenv(usageFile, path); err != nil {
		return err
	}
	ps, err := l.peers(ctx, devices)
	if err != nil {
		return err
	}
	p := ps[1]
	fmt.Printf("\n### %d minutes of churn: %d devices connect, subscribe, publish, vanish, are taken over, suspended, and lose what a policy takes\n\nAfter 50 s of it all are gone and their sessions over: then the server is asked.\n\n", minutes, devices)
	fmt.Printf("| minute | connections | refused | published | delivered | goroutines | live heap | resident | CPU |\n|---|---|---|---|---|---|---|---|---|\n")
	var first, last usage
	for minute := range minutes {
		c := &churn{p: p, seed: uint64(minute)}
		before := p.cpu()
		phase, cancel := context.WithTimeout(ctx, 50*time.Second)
		err := c.run(phase, devices)
		cancel()
		if err != nil {
			return err
		}
		time.Sleep(8 * time.Second) // sessions last for 3 s, wills wait for 2 s
		if last, err = p.usage(path); err != nil {
			return err
		}
		if minute == 1 { // the first one fills what is kept on purpose
			first = last
		}
		fmt.Printf("| %d | %d | %d | %d | %d | %d | %.2f MB | %.1f MB | %.1f s |\n", minute+1, c.made.Load(), c.refused.Load(), c.sent.Load(), c.received.Load(),
			last.goroutines, float64(last.heap)/1e6, float64(last.rss)/1e3, (p.cpu() - before).Seconds())
	}
	if last.goroutines > first.goroutines+3 || float64(last.heap) > 1.1*float64(first.heap)+1e6 {
		return fmt.Errorf("it grew: %+v after the second minute, %+v at the end", first, last)
	}
	return nil
}

func (c *churn) run(ctx context.Context, devices int) error {
	var g errgroup.Group
	for i := range devices {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(c.seed, uint64(i)))
			for ctx.Err() == nil {
				c.visit(ctx, r, i)
			}
			return nil
		})
	}
	g.Go(func() error { return c.publish(ctx, devices) })
	g.Go(func() error { return c.administer(ctx, devices) })
	return g.Wait()
}

// pause waits up to most, and reports false at the end.
func pause(ctx context.Context, r *rand.Rand, limit time.Duration) bool {
	t := time.NewTimer(time.Duration(r.Int64N(int64(limit))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// visit is one connection of a device, from CONNECT to whatever its end is.
func (c *churn) visit(ctx context.Context, r *rand.Rand, i int) {
	if !pause(ctx, r, 500*time.Millisecond) {
		return
	}
	topic := fmt.Sprintf("up/dev-%d", i)
	k, err := c.p.device(ctx, i, r.IntN(3), r.IntN(10) < 3, func(int) func(*message) {
		return func(*message) { c.received.Add(1) }
	}, func(p *packet.Connect) {
		if r.IntN(2) == 0 {
			p.CleanStart = r.IntN(4) == 0
			p.Properties.SetNumber(packet.SessionExpiryInterval, 3)
		}
		if r.IntN(2) == 0 {
			p.Will = &packet.Will{Topic: topic, QoS: byte(r.IntN(3)), Retain: r.IntN(2) == 0, Payload: []byte("gone")}
			p.Will.Properties.SetNumber(packet.WillDelayInterval, uint32(r.IntN(3)))
		}
	})
	if err != nil {
		c.refused.Add(1) // suspended, or the server's bounds
		return
	}
	c.made.Add(1)
	defer func() {
		if r.IntN(3) == 0 {
			_ = k.send(&packet.Disconnect{})
		}
		_ = k.nc.Close()
		<-k.end
	}()
	filters := []packet.Filter{{Topic: fmt.Sprintf("down/dev-%d", i), QoS: byte(r.IntN(3))}}
	if r.IntN(5) == 0 {
		filters = append(filters, packet.Filter{Topic: "fan/x", QoS: byte(r.IntN(3))})
	}
	if r.IntN(3) == 0 {
		filters = append(filters, packet.Filter{Topic: fmt.Sprintf("$share/g%d/take/x", r.IntN(4)), QoS: 1})
	}
	if k.send(&packet.Subscribe{ID: 1, Filters: filters}) != nil {
		return
	}
	for n := range 20 {
		m := &packet.Publish{Topic: topic, QoS: byte(r.IntN(3)), Retain: r.IntN(5) == 0, Payload: make([]byte, r.IntN(200))}
		if r.IntN(4) == 0 {
			m.Topic, m.Retain = "take/x", false
		}
		if m.QoS > 0 {
			m.ID = uint16(n + 1)
		}
		if k.send(m) != nil || !pause(ctx, r, 100*time.Millisecond) {
			return
		}
		c.sent.Add(1)
	drain:
		for {
			select {
			case <-k.acks:
			default:
				break drain
			}
		}
	}
}

// publish is the application's side: it publishes to devices that are there and away.
func (c *churn) publish(ctx context.Context, devices int) error {
	o, err := c.p.operator(ctx, "speak", nil)
	if err != nil {
		return err
	}
	defer waitClosed(o)
	const window = 200 // under the server's receive maximum
	open := 0
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-o.end:
			return fmt.Errorf("the application's connection ended: %+v %w", o.last, o.err)
		case <-ctx.Done():
			return nil
		}
		m := &packet.Publish{Topic: fmt.Sprintf("down/dev-%d", n%devices), QoS: byte(n % 3), Payload: make([]byte, 32)}
		if n%10 == 0 {
			m.Topic = "fan/x"
		}
		if m.QoS > 0 {
			m.ID = uint16(n%60000) + 1
		}
		if err := o.send(m); err != nil {
			return err
		}
		c.sent.Add(1)
		if m.QoS > 0 {
			open++
		}
		for more := true; more; {
			if open < window {
				select {
				case <-o.acks:
					open--
				default:
					more = false
				}
				continue
			}
			select {
			case <-o.acks:
				open--
			case <-o.end: // reported above
				more = false
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// administer suspends and resumes, and takes a topic away and gives it back.
func (c *churn) administer(ctx context.Context, devices int) error {
	a := c.p.watchword.admin
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			_, err := a.ApplyPolicy(context.WithoutCancel(ctx), "less", []byte(lessPolicy), 0)
			if watchword.CodeOf(err) == watchword.PreconditionFailed || err == nil {
				err = a.DeletePolicy(context.WithoutCancel(ctx), "less")
			}
			return err
		}
		id := watchword.SubjectID(fmt.Sprintf("dev-%d", n%devices))
		if _, err := a.Suspend(context.WithoutCancel(ctx), id, "soak"); err != nil {
			return err
		}
		if _, err := a.Resume(context.WithoutCancel(ctx), id); err != nil {
			return err
		}
		switch n % 10 {
		case 4:
			if _, err := a.ApplyPolicy(context.WithoutCancel(ctx), "less", []byte(lessPolicy), 0); err != nil {
				return err
			}
		case 7:
			if err := a.DeletePolicy(context.WithoutCancel(ctx), "less"); err != nil {
				return err
			}
		}
	}
}

const lessPolicy = `for = { kind = "load" }
[[deny]]
subscribe = ["fan/#"]
`
