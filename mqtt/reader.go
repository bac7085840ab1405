package mqtt

import (
	"context"
	"io"
	"time"
)

// halfClosedCheckInterval is how often connections are looked at whose peer may have gone
// unnoticed; see [conn.readPlain].
const halfClosedCheckInterval = 250 * time.Millisecond

// readPlain reads a plain connection whose session stands, with one system call where
// [net.Conn.Read] needs two: a read that brought less than there was room for has
// emptied the socket, and the next one waits for the news of more. What that
// misses is an end that came with the last bytes, before they were read: for it
// [Broker.wakeHalfClosed] looks again. It returns when the connection leaves, or with
// the error that ended it.
func (c *conn) readPlain(ctx context.Context, in *readBuffer) (err error) {
	if in.buffered == 0 {
		in.release()
	}
	waiting := c.rawConn.Read(func(fd uintptr) (done bool) {
		for !c.closing.Load() {
			in.borrow() // for as long as there is something to read
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

// wakeHalfClosed wakes the readers whose peer has ended the connection without their
// notice.
func (b *Broker) wakeHalfClosed() {
	for b.sleep(halfClosedCheckInterval) {
		for _, c := range b.connections(func(c *conn) bool { return c.maybeHalfClosed.Load() && c.maybeHalfClosed.Swap(false) }) {
			if c.peerClosed() {
				c.detached.Store(true)
				_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // the error is that of a closed connection
			}
		}
	}
}

// peerClosed reports whether the next read would find the end, and nothing before it.
func (c *conn) peerClosed() (is bool) {
	err := c.rawConn.Control(func(fd uintptr) {
		is = atEOF(fd)
	})
	return is && err == nil
}
