package mqtt

import (
	"context"
	"io"
	"time"
)

// halfClosedCheckInterval is how often connections with a possibly pending EOF are checked; see
// [conn.readPlain].
const halfClosedCheckInterval = 250 * time.Millisecond

// readPlain reads a plain TCP connection with one system call where [net.Conn.Read] needs two: a
// read that did not fill the buffer has emptied the socket, so the next one waits for readiness.
// This misses an EOF that arrived together with the last bytes; [Broker.wakeHalfClosed] checks for
// it. It returns when the connection is closing, or with the error that ended it.
func (c *conn) readPlain(ctx context.Context, in *readBuffer) (err error) {
	if in.buffered == 0 {
		in.release()
	}
	waiting := c.rawConn.Read(func(fd uintptr) (done bool) {
		for !c.closing.Load() {
			in.borrow() // while there is something to read
			room := in.room()
			n, wait, rerr := readNonblocking(fd, room)
			switch {
			case wait:
				if in.buffered == 0 {
					in.release()
				}
				return false
			case rerr != nil:
				err = rerr
				return true
			case n == 0:
				err = io.EOF
				return true
			}
			in.buffered += n
			used, rest := c.handlePackets(ctx, in.buf[:in.buffered])
			in.consume(used, rest)
			if n < len(room) {
				c.maybeHalfClosed.Store(true)
				return c.closing.Load()
			}
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case c.detached.Load():
		return io.EOF
	}
	return waiting
}

// wakeHalfClosed wakes readers whose peer has closed the connection unnoticed.
func (b *Broker) wakeHalfClosed() {
	for b.sleep(halfClosedCheckInterval) {
		for _, c := range b.connections(func(c *conn) bool { return c.maybeHalfClosed.Load() && c.maybeHalfClosed.Swap(false) }) {
			if c.peerClosed() {
				c.detached.Store(true)
				_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // an error means that the connection is closed
			}
		}
	}
}

// peerClosed reports whether the next read would return EOF.
func (c *conn) peerClosed() (is bool) {
	err := c.rawConn.Control(func(fd uintptr) {
		is = atEOF(fd)
	})
	return is && err == nil
}
