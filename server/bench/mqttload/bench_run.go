package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

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
