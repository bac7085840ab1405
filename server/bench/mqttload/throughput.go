package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

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
