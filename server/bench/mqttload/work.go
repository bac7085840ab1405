package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

type message = packet.Publish

type benchRun struct {
	dir       string
	scale     float64
	against   string // another build of this program, whose server takes mosquitto's place
	watchword *benchServer
	reference *benchServer
	runs      int
}

func (l *benchRun) scaled(full int) int { return max(1, int(float64(full)*l.scale)) }

// peers starts both, once, with so many devices.
func (l *benchRun) peers(ctx context.Context, devices int) ([]*benchServer, error) {
	var err error
	if l.watchword == nil {
		l.runs++
		if l.watchword, err = startWatchword(filepath.Join(l.dir, strconv.Itoa(l.runs)), ""); err != nil {
			return nil, err
		}
	}
	switch {
	case l.reference != nil:
	case l.against != "":
		other = "other build"
		l.reference, err = startWatchword(filepath.Join(l.dir, "other"+strconv.Itoa(l.runs)), l.against)
	default:
		l.reference, err = startMosquitto(l.dir)
	}
	if err == nil && l.reference.watchword != nil {
		l.reference.name = other
		err = l.reference.watchword.enroll(ctx, devices)
	}
	if err != nil {
		return nil, err
	}
	return []*benchServer{l.reference, l.watchword}, l.watchword.watchword.enroll(ctx, devices)
}

func (l *benchRun) stop() (err error) {
	for _, p := range []*benchServer{l.watchword, l.reference} {
		if p != nil {
			err = errors.Join(err, p.stop())
		}
	}
	l.watchword, l.reference = nil, nil
	return err
}

// fleet connects so many devices.
func (p *benchServer) fleet(ctx context.Context, n int, on func(int) func(*message), filter func(int) string, qos byte) ([]*client, error) {
	out := make([]*client, n)
	var g errgroup.Group
	g.SetLimit(32)
	for i := range n {
		g.Go(func() (err error) {
			if out[i], err = p.device(ctx, i, 0, false, on); err == nil && filter != nil {
				err = out[i].subscribe(filter(i), qos)
			}
			return err
		})
	}
	return out, g.Wait()
}

func waitClosed(cs ...*client) {
	for _, c := range cs {
		_ = c.nc.Close() // nothing is lost
	}
	for _, c := range cs {
		<-c.end
	}
}

func micros(d time.Duration, n int) float64 { return float64(d.Microseconds()) / float64(n) }

func printRow(name string, us, them float64, unit string, promise float64) {
	fmt.Printf("| %s | %.2f | %.2f | %s | %.2f | ≤ %.2f |\n", name, us, them, unit, us/them, promise)
}

// other is the server for comparison.
var other = "mosquitto"

func printHeading(title string) {
	fmt.Printf("\n### %s\n\n| | Watchword | "+other+" | | ratio | promised |\n|---|---|---|---|---|---|\n", title)
}

// rounds is how often each is measured, in turn; the median counts.
var rounds = 3

func median(of []float64) float64 {
	s := slices.Sorted(slices.Values(of))
	return s[len(s)/2]
}

// ingest: 500 publishers, one subscriber.
func (l *benchRun) ingest(ctx context.Context) error {
	ps, err := l.peers(ctx, publishers)
	if err != nil {
		return err
	}
	printHeading("Ingest, 500 → 1, 32 bytes, claims checked on each, CPU of the server for each message")
	for _, qos := range []byte{0, 1} {
		for _, flight := range []int{1, 20} {
			cost := make([][]float64, len(ps))
			for range rounds {
				for i, p := range ps {
					c, err := l.ingestOnce(ctx, p, qos, flight)
					if err != nil {
						return fmt.Errorf("%s: %w", p.name, err)
					}
					cost[i] = append(cost[i], c)
				}
			}
			printRow(fmt.Sprintf("QoS %d, %d in flight", qos, flight), median(cost[1]), median(cost[0]), "µs", 0.7)
		}
	}
	return nil
}

const publishers = 500

// ingestOnce has every publisher send so many at once: with QoS 0 at a rate that
// both servers keep up with, with QoS 1 when the last ones were acknowledged.
func (l *benchRun) ingestOnce(ctx context.Context, p *benchServer, qos byte, flight int) (float64, error) {
	const rate = 50_000 // a second, of all, with QoS 0
	each := max(l.scaled(400)/flight, 1) * flight
	var got atomic.Int64
	all := make(chan struct{})
	total := int64(publishers * each)
	op, err := p.operator(ctx, "sub", func(*message) {
		if got.Add(1) == total {
			close(all)
		}
	})
	if err != nil {
		return 0, err
	}
	if err := op.subscribe("devices/+/events/lux", qos); err != nil {
		return 0, err
	}
	fleet, err := p.fleet(ctx, publishers, nil, nil, 0)
	if err != nil {
		return 0, err
	}
	before := p.cpu()
	var g errgroup.Group
	for i, c := range fleet {
		g.Go(func() error {
			m := &packet.Publish{Topic: fmt.Sprintf("devices/dev-%d/events/lux", i), QoS: qos, Payload: make([]byte, 32)}
			pause := time.NewTicker(publishers * time.Duration(flight) * time.Second / rate)
			defer pause.Stop()
			for n := 0; n < each; n += flight {
				var b []byte
				for k := range flight {
					if qos > 0 {
						m.ID = uint16((n+k)%65535) + 1
					}
					b = packet.Append(b, m, packet.V5)
				}
				if _, err := c.nc.Write(b); err != nil {
					return err
				}
				if qos == 0 {
					<-pause.C
					continue
				}
				for range flight {
					select {
					case <-c.acks:
					case <-c.end:
						return fmt.Errorf("the connection ended: %+v", c.last)
					}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	select {
	case <-all:
	case <-op.end:
		return 0, fmt.Errorf("the subscriber was cut: %+v %w", op.last, op.err)
	case <-time.After(30 * time.Second):
		return 0, fmt.Errorf("%d of %d arrived", got.Load(), total)
	}
	cost := micros(p.cpu()-before, int(total))
	waitClosed(append(fleet, op)...)
	return cost, nil
}

// fanOut: one publisher, 500 subscribers.
func (l *benchRun) fanOut(ctx context.Context) error {
	ps, err := l.peers(ctx, subscribers)
	if err != nil {
		return err
	}
	printHeading("Fan-out, 1 → 500, QoS 0 to the subscribers, CPU of the server for each delivery")
	for _, flight := range []int{1, 20} {
		cost := make([][]float64, len(ps))
		for range rounds {
			for i, p := range ps {
				c, err := l.fanOutOnce(ctx, p, flight)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				cost[i] = append(cost[i], c)
			}
		}
		printRow(fmt.Sprintf("%d in flight", flight), median(cost[1]), median(cost[0]), "µs", map[int]float64{1: 0.6, 20: 0.15}[flight])
	}
	return nil
}

const subscribers = 500

func (l *benchRun) fanOutOnce(ctx context.Context, p *benchServer, flight int) (float64, error) {
	publishes := l.scaled(400)
	if flight > 1 {
		publishes = l.scaled(2000)
	}
	var got atomic.Int64
	done := make(chan struct{}, 1<<16)
	fleet, err := p.fleet(ctx, subscribers, func(int) func(*message) {
		return func(*message) {
			if got.Add(1)%subscribers == 0 {
				done <- struct{}{}
			}
		}
	}, func(int) string { return "fan/x" }, 0)
	if err != nil {
		return 0, err
	}
	op, err := p.operator(ctx, "pub", nil)
	if err != nil {
		return 0, err
	}
	before := p.cpu()
	m := &packet.Publish{Topic: "fan/x", Payload: make([]byte, 32)}
	for sent := 0; sent < publishes; {
		batch := min(flight, publishes-sent)
		var b []byte
		for range batch {
			b = packet.Append(b, m, packet.V5)
		}
		if _, err := op.nc.Write(b); err != nil {
			return 0, err
		}
		for range batch {
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				return 0, fmt.Errorf("%d deliveries after %d publishes", got.Load(), sent)
			}
		}
		sent += batch
	}
	cost := micros(p.cpu()-before, publishes*subscribers)
	waitClosed(append(fleet, op)...)
	return cost, nil
}

// roundTrips: down to one of 2,500 devices and up again, 1,000 a second.
func (l *benchRun) roundTrips(ctx context.Context) error {
	devices, rate, seconds := l.scaled(2500), 1000, l.scaled(10)
	ps, err := l.peers(ctx, devices)
	if err != nil {
		return err
	}
	printHeading(fmt.Sprintf("Round trips to %d devices at %d a second, QoS 1 both ways", devices, rate))
	var cost, p99 []float64
	for _, p := range ps {
		var mu sync.Mutex
		var took []time.Duration
		start := time.Now()
		all := make(chan struct{})
		total := rate * seconds
		op, err := p.operator(ctx, "both", func(m *message) {
			at, err := strconv.ParseInt(string(m.Payload), 10, 64)
			if err != nil {
				return
			}
			mu.Lock()
			took = append(took, time.Since(start)-time.Duration(at))
			if len(took) == total {
				close(all)
			}
			mu.Unlock()
		})
		if err != nil {
			return err
		}
		if err := op.subscribe("up/+", 1); err != nil {
			return err
		}
		fleet := make([]*client, devices)
		var g errgroup.Group
		g.SetLimit(32)
		for i := range devices {
			g.Go(func() (err error) {
				up := &packet.Publish{Topic: fmt.Sprintf("up/dev-%d", i), QoS: 1}
				ready := make(chan struct{})
				fleet[i], err = p.device(ctx, i, 0, false, func(int) func(*message) {
					return func(m *message) {
						<-ready
						up.ID = up.ID%60000 + 1
						up.Payload = m.Payload
						_ = fleet[i].send(up) // a lost one is missed at the end
						select {
						case <-fleet[i].acks:
						default:
						}
					}
				})
				close(ready)
				if err == nil {
					err = fleet[i].subscribe(fmt.Sprintf("down/dev-%d", i), 1)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
		before := p.cpu()
		tick := time.NewTicker(5 * time.Millisecond)
		sent := 0
		from := time.Now()
		for sent < total {
			<-tick.C
			for due := min(total, int(time.Since(from).Seconds()*float64(rate))); sent < due; sent++ {
				m := &packet.Publish{Topic: fmt.Sprintf("down/dev-%d", rand.IntN(devices)), QoS: 1, ID: uint16(sent%60000) + 1, Payload: strconv.AppendInt(nil, int64(time.Since(start)), 10)}
				if err := op.send(m); err != nil {
					return err
				}
				select {
				case <-op.acks:
				default:
				}
			}
		}
		tick.Stop()
		select {
		case <-all:
		case <-time.After(20 * time.Second):
			return fmt.Errorf("%s: %d of %d came back", p.name, len(took), total)
		}
		cost = append(cost, micros(p.cpu()-before, total))
		slices.Sort(took)
		p99 = append(p99, float64(took[len(took)*99/100].Microseconds())/1000)
		waitClosed(append(fleet, op)...)
	}
	printRow("CPU for each round trip", cost[1], cost[0], "µs", 1.5)
	fmt.Printf("| p99 | %.2f | %.2f | ms | | ≤ 5 ms |\n", p99[1], p99[0])
	return nil
}

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
