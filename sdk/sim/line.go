package sim

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// line is one connection of a device, that may be bad.
type line struct {
	net.Conn
	of     *thing
	mqtt   bool
	slow   bool
	dead   atomic.Bool // nothing goes through, either way
	closed chan struct{}
	once   sync.Once
	snaps  sync.Once
}

// The fates of bad lines, of a hundred.
const (
	slowLines   = 20 // carry a few bytes at a time, until they break
	silentLines = 30 // go dead, and break a while later
	longSilence = 20 * time.Second
)

// dial makes the device's connections.
func (t *thing) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l := &line{Conn: nc, of: t, mqtt: address == t.mqttAddress(), closed: make(chan struct{})}
	t.open(l)
	if t.bad && t.id() != "" && t.fleet.breaking.Load() { // devices enroll where lines are good
		l.doom(t.chance)
	}
	return l, nil
}

// doom decides on the end of a bad line.
func (l *line) doom(chance func(func(*rand.Rand))) {
	var life, silence time.Duration
	fate := 0
	chance(func(r *rand.Rand) {
		fate = r.IntN(100)
		life = time.Duration(r.ExpFloat64() * float64(l.of.fleet.plan.Line))
		silence = time.Duration(r.Float64() * float64(longSilence))
	})
	silent := false
	switch {
	case fate < slowLines:
		if l.slow = true; l.mqtt {
			l.of.fleet.slow.Add(1)
		}
	case fate < slowLines+silentLines:
		silent = true
	}
	go func() {
		if !l.lasts(life) {
			return
		}
		if silent {
			if l.dead.Store(true); !l.of.fleet.breaking.Load() {
				l.snap() // no line is dead at the end
				return
			}
			if !l.lasts(silence) {
				return
			}
		}
		l.cut()
	}()
}

// lasts waits, and reports false where somebody closed the line meanwhile.
func (l *line) lasts(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.closed:
		return false
	}
}

// cut is snap, as long as lines may break.
func (l *line) cut() {
	if l.of.fleet.breaking.Load() {
		l.snap()
	}
}

// snap breaks the line as a power cut does: without a word.
func (l *line) snap() {
	l.snaps.Do(func() {
		if l.mqtt {
			l.of.broke(l)
		}
	})
	if tc, ok := l.Conn.(*net.TCPConn); ok {
		_ = tc.SetLinger(0) // the other side hears of it at once, or never: both are true to life
	}
	_ = l.Close()
}

// Close is also called by whoever uses the line.
func (l *line) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.of.shut(l)
	})
	return l.Conn.Close()
}

// Read gives nothing of what comes over a dead line.
func (l *line) Read(b []byte) (int, error) {
	if l.slow && len(b) > slowBytes {
		b = b[:slowBytes]
	}
	for {
		n, err := l.Conn.Read(b)
		if l.slow && n > 0 {
			l.lasts(slowPause)
		}
		if err != nil || !l.dead.Load() {
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
func (l *line) Write(b []byte) (n int, err error) {
	if l.dead.Load() {
		return len(b), nil
	}
	if !l.slow {
		return l.Conn.Write(b)
	}
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), slowBytes)]
		var k int
		k, err = l.Conn.Write(piece)
		n, b = n+k, b[k:]
		l.lasts(slowPause)
	}
	return n, err
}
