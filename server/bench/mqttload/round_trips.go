package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

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
