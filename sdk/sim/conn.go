package sim

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one connection of a device, that may be bad.
type conn struct {
	net.Conn
	dev       *simDevice
	mqtt      bool
	slow      bool
	stalled   atomic.Bool // nothing goes through, either way
	closed    chan struct{}
	once      sync.Once
	resetOnce sync.Once
}

// The fates of bad lines, of a hundred.
const (
	slowPercent  = 20 // carry a few bytes at a time, until they break
	stallPercent = 30 // go dead, and break a while later
	maxStall     = 20 * time.Second
)

// dial makes the device's connections.
func (sd *simDevice) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l := &conn{Conn: nc, dev: sd, mqtt: address == sd.mqttAddress(), closed: make(chan struct{})}
	sd.connOpened(l)
	if sd.lossy && sd.id() != "" && sd.fleet.breaking.Load() { // devices enroll where lines are good
		l.scheduleFailure(sd.random)
	}
	return l, nil
}

// scheduleFailure decides on the end of a bad line.
func (c *conn) scheduleFailure(chance func(func(*rand.Rand))) {
	var life, silence time.Duration
	fate := 0
	chance(func(r *rand.Rand) {
		fate = r.IntN(100)
		life = time.Duration(r.ExpFloat64() * float64(c.dev.fleet.plan.ConnLifetime))
		silence = time.Duration(r.Float64() * float64(maxStall))
	})
	silent := false
	switch {
	case fate < slowPercent:
		if c.slow = true; c.mqtt {
			c.dev.fleet.slow.Add(1)
		}
	case fate < slowPercent+stallPercent:
		silent = true
	}
	go func() {
		if !c.waitOpen(life) {
			return
		}
		if silent {
			if c.stalled.Store(true); !c.dev.fleet.breaking.Load() {
				c.reset() // no line is dead at the end
				return
			}
			if !c.waitOpen(silence) {
				return
			}
		}
		c.breakConn()
	}()
}

// waitOpen waits, and reports false where somebody closed the line meanwhile.
func (c *conn) waitOpen(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.closed:
		return false
	}
}

// breakConn is snap, as long as lines may break.
func (c *conn) breakConn() {
	if c.dev.fleet.breaking.Load() {
		c.reset()
	}
}

// reset breaks the line as a power cut does: without a word.
func (c *conn) reset() {
	c.resetOnce.Do(func() {
		if c.mqtt {
			c.dev.connBroken(c)
		}
	})
	if tc, ok := c.Conn.(*net.TCPConn); ok {
		_ = tc.SetLinger(0) // the other side hears of it at once, or never: both are true to life
	}
	_ = c.Close()
}

// Close is also called by whoever uses the line.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.dev.connClosed(c)
	})
	return c.Conn.Close()
}

// Read gives nothing of what comes over a dead line.
func (c *conn) Read(b []byte) (int, error) {
	if c.slow && len(b) > slowBytes {
		b = b[:slowBytes]
	}
	for {
		n, err := c.Conn.Read(b)
		if c.slow && n > 0 {
			c.waitOpen(slowPause)
		}
		if err != nil || !c.stalled.Load() {
			return n, err
		}
	}
}

// A slow line carries so many bytes at a time, and so seldom: some 50 kB a second.
const (
	slowBytes = 256
	slowPause = 5 * time.Millisecond
)

// Write takes what goes nowhere over a dead line.
func (c *conn) Write(b []byte) (n int, err error) {
	if c.stalled.Load() {
		return len(b), nil
	}
	if !c.slow {
		return c.Conn.Write(b)
	}
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), slowBytes)]
		var k int
		k, err = c.Conn.Write(piece)
		n, b = n+k, b[k:]
		c.waitOpen(slowPause)
	}
	return n, err
}
