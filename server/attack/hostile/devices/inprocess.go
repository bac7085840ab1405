package devices

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server/attack/hostile"
)

// ending is how long a device may take to stop.
const ending = 2 * time.Minute

// InProcess is a device of sdk/device in this process. Close it at the end.
type InProcess struct {
	*device.Device

	mu   sync.Mutex
	acts []int64
	stop context.CancelFunc
	ran  chan error
}

// OpenInProcess opens a device's folder. dial is as in [device.Options], and log may be nil.
func OpenInProcess(dir string, dial func(ctx context.Context, network, address string) (net.Conn, error), log *slog.Logger) (*InProcess, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d, err := device.OpenWith(dir, device.Options{Dial: dial, Log: log})
	if err != nil {
		return nil, err
	}
	p := &InProcess{Device: d}
	d.Handle(hostile.Function, func(_ context.Context, c *device.Command) (any, error) {
		var in struct {
			N int64 `json:"n"`
		}
		if err := c.Args(&in); err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.acts = append(p.acts, in.N)
		return map[string]int64{"n": in.N}, nil
	})
	d.OnConfig(func(context.Context, device.Config) error { return nil })
	return p, nil
}

// Start implements [hostile.Device].
func (p *InProcess) Start() error {
	ctx, stop := context.WithCancel(context.Background())
	p.stop, p.ran = stop, make(chan error, 1)
	go func() { p.ran <- p.Run(ctx) }()
	return nil
}

// Stop implements [hostile.Device].
func (p *InProcess) Stop() error {
	select {
	case err := <-p.ran:
		p.stop()
		return errors.Join(errors.New("the device had ended by itself"), err)
	default:
	}
	p.stop()
	t := time.NewTimer(ending)
	defer t.Stop()
	select {
	case err := <-p.ran:
		return err
	case <-t.C:
		return errors.New("the device does not end")
	}
}

// Acted implements [hostile.Device].
func (p *InProcess) Acted() ([]int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.acts), nil
}
