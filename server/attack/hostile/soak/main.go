// Command soak lets devices of the SDK meet every case of a hostile server for some minutes, in real
// time and over TCP, each with a good server before and after every case. It prints what was seen as
// Markdown, and ends with status 1 where a device did not hold a case: it acted on what is not signed,
// or twice, connected or asked too often, did not obey within a pause of the good server's return, or
// did not end.
//
//	go run ./server/attack/hostile/soak -minutes 10 -devices 8 -seed 1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/server/attack/hostile"
	"github.com/watchword-iot/watchword/server/attack/hostile/devices"
)

func main() {
	minutes := flag.Float64("minutes", 10, "how long")
	count := flag.Int("devices", 8, "devices, each with a server of its own; they share the cases")
	seed := flag.Uint64("seed", 1, "of the order of the cases")
	most := flag.Duration("case", 10*time.Second, "how long a case lasts at most")
	flag.Parse()
	if *count < 1 || *minutes <= 0 || *most < time.Second {
		fmt.Fprintln(os.Stderr, "soak: at least one device, some time, and a second a case")
		os.Exit(2)
	}
	log.SetOutput(io.Discard) // net/http's client logs invalid HTTP answers there
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, time.Duration(*minutes*float64(time.Minute)), *count, *seed, *most); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

type result struct {
	seen hostile.SoakResult
	err  error
}

func run(ctx context.Context, lasts time.Duration, count int, seed uint64, most time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "watchword-soak-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	heap := watchHeap()
	begun := time.Now()
	results := make([]result, count)
	var mu sync.Mutex
	var all sync.WaitGroup
	for n := range count {
		all.Go(func() {
			seen, err := one(ctx, filepath.Join(dir, fmt.Sprint(n)), hostile.Plan{
				Seed: seed, Number: n, Devices: count, For: lasts, MaxCase: most, TCP: true,
				Limits: hostile.Limits{MaxPause: hostile.Standard.MaxPause, Deadline: hostile.Standard.Deadline, PerSecond: 40, PerMinute: hostile.Standard.PerMinute},
				OnCase: func(name string, out hostile.Outcome, err error) {
					mu.Lock()
					defer mu.Unlock()
					word := "held"
					if err != nil {
						word = err.Error()
					}
					fmt.Fprintf(os.Stderr, "%s  device %d: %s: back after %v: %s\n", time.Since(begun).Round(time.Second), n, name, out.RecoveryTime.Round(time.Millisecond), word)
				},
			})
			results[n] = result{seen, err}
		})
	}
	all.Wait()
	return print(results, heap(), time.Since(begun))
}

func one(ctx context.Context, dir string, p hostile.Plan) (seen hostile.SoakResult, err error) {
	https, err1 := net.Listen("tcp", "127.0.0.1:0")
	mqtts, err2 := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err1, err2); err != nil {
		return seen, err
	}
	s, err := hostile.New(https, mqtts)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	d, err := devices.OpenInProcess(dir, nil, nil)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := errors.Join(d.Enroll(ctx, s.Link()), d.Start()); err != nil {
		return seen, err
	}
	seen, err = hostile.Soak(ctx, s, d, p)
	return seen, errors.Join(err, d.Stop())
}

// watchHeap samples the heap ten times a second. The returned function stops it and returns the
// largest value, of devices and servers together, in bytes.
func watchHeap() func() uint64 {
	end, most := make(chan struct{}), make(chan uint64)
	go func() {
		var highest uint64
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			highest = max(highest, m.HeapInuse)
			select {
			case <-t.C:
			case <-end:
				most <- highest
				return
			}
		}
	}()
	return func() uint64 {
		close(end)
		return <-most
	}
}

func print(results []result, heap uint64, took time.Duration) error {
	var sum hostile.SoakResult
	var errs []error
	for n, r := range results {
		sum.Cases += r.seen.Cases
		sum.Orders += r.seen.Orders
		sum.Worst.Attempts += r.seen.Worst.Attempts
		sum.Worst.PerSecond, sum.Worst.PerMinute = max(sum.Worst.PerSecond, r.seen.Worst.PerSecond), max(sum.Worst.PerMinute, r.seen.Worst.PerMinute)
		sum.RecoveryTimes = append(sum.RecoveryTimes, r.seen.RecoveryTimes...)
		if r.err != nil {
			errs = append(errs, fmt.Errorf("device %d: %w", n, r.err))
		}
	}
	slices.Sort(sum.RecoveryTimes)
	at := func(share float64) time.Duration {
		if len(sum.RecoveryTimes) == 0 {
			return 0
		}
		return sum.RecoveryTimes[min(int(share*float64(len(sum.RecoveryTimes))), len(sum.RecoveryTimes)-1)].Round(time.Millisecond)
	}
	fmt.Printf("| | |\n|---|---|\n")
	for _, row := range [][2]string{
		{"devices, time", fmt.Sprintf("%d, %v", len(results), took.Round(time.Second))},
		{"cases met, a good server before and after each", fmt.Sprint(sum.Cases)},
		{"commands of the good server, each done once", fmt.Sprint(sum.Orders)},
		{"connections and requests while servers were bad", fmt.Sprint(sum.Worst.Attempts)},
		{"of one device in any second, any minute, at most", fmt.Sprintf("%d, %d", sum.Worst.PerSecond, sum.Worst.PerMinute)},
		{"from the good server's return to the next command's receipt: p50, p90, p99, most", fmt.Sprintf("%v, %v, %v, %v", at(0.5), at(0.9), at(0.99), at(1))},
		{"heap of all devices and servers together, at most", fmt.Sprintf("%d MB", heap>>20)},
		{"cases not held", fmt.Sprint(len(errs))},
	} {
		fmt.Printf("| %s | %s |\n", row[0], row[1])
	}
	return errors.Join(errs...)
}
