package sim

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one connection of a device. It may be slow, stall or break.
type conn struct {
	net.Conn
	dev       *simDevice
	mqtt      bool
	slow      bool
	stalled   atomic.Bool // no data passes in either direction
	closed    chan struct{}
	once      sync.Once
	resetOnce sync.Once
}

// Percentages of lossy connections that are slow or stall; the others break at once.
const (
	slowPercent  = 20 // carry a few bytes at a time, until they break
	stallPercent = 30 // stall, and break later
	maxStall     = 20 * time.Second
)

// dial opens a connection of the device.
func (sd *simDevice) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l := &conn{Conn: nc, dev: sd, mqtt: address == sd.mqttAddress(), closed: make(chan struct{})}
	sd.connOpened(l)
	if sd.lossy && sd.id() != "" && sd.fleet.breaking.Load() { // devices enroll over reliable connections
		l.scheduleFailure(sd.random)
	}
	return l, nil
}

// scheduleFailure chooses how and when a lossy connection fails.
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
				c.reset() // no connection is stalled at the end of the run
				return
			}
			if !c.waitOpen(silence) {
				return
			}
		}
		c.breakConn()
	}()
}

// waitOpen waits for d, and returns false if the connection was closed meanwhile.
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

// breakConn calls reset, while the run still breaks connections.
func (c *conn) breakConn() {
	if c.dev.fleet.breaking.Load() {
		c.reset()
	}
}

// reset breaks the connection as a power cut does: without closing it in the protocol.
func (c *conn) reset() {
	c.resetOnce.Do(func() {
		if c.mqtt {
			c.dev.connBroken(c)
		}
	})
	if tc, ok := c.Conn.(*net.TCPConn); ok {
		_ = tc.SetLinger(0) // the peer may see the reset at once or never; both happen in practice
	}
	_ = c.Close()
}

// Close closes the connection. The user of the connection calls it too.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.dev.connClosed(c)
	})
	return c.Conn.Close()
}

// Read returns no data of a stalled connection.
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

// A slow connection carries this many bytes at these intervals: some 50 kB a second.
const (
	slowBytes = 256
	slowPause = 5 * time.Millisecond
)

// Write discards the data of a stalled connection.
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
