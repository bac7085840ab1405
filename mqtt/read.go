package mqtt

import (
	"context"
	"io"
	"syscall"
	"time"
)

// secondLook is how often connections are looked at whose peer may have gone
// unnoticed; see [conn.follow].
const secondLook = 250 * time.Millisecond

// follow reads a plain connection whose session stands, with one system call where
// [net.Conn.Read] needs two: a read that brought less than there was room for has
// emptied the socket, and the next one waits for the news of more. What that
// misses is an end that came with the last bytes, before they were read: for it
// [Broker.lookTwice] looks again. It returns when the connection leaves, or with
// the error that ended it.
func (c *conn) follow(ctx context.Context, in *inbox) (err error) {
	if in.have == 0 {
		in.release()
	}
	waiting := c.raw.Read(func(fd uintptr) (done bool) {
		for !c.leaving.Load() {
			in.lend() // for as long as there is something to read
			room := in.room()
			n, rerr := syscall.Read(int(fd), room)
			switch {
			case rerr == syscall.EINTR:
				continue
			case rerr == syscall.EAGAIN:
				if in.have == 0 {
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
			in.have += n
			used, rest := c.work(ctx, in.buf[:in.have])
			in.consume(used, rest)
			if n < len(room) {
				c.unsure.Store(true)
				return c.leaving.Load()
			}
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case c.gone.Load():
		return io.EOF
	}
	return waiting
}

// lookTwice wakes the readers whose peer has ended the connection without their
// notice.
func (b *Broker) lookTwice() {
	for b.sleep(secondLook) {
		for _, c := range b.connected(func(c *conn) bool { return c.unsure.Load() && c.unsure.Swap(false) }) {
			if c.hungUp() {
				c.gone.Store(true)
				_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // the error is that of a closed connection
			}
		}
	}
}

// hungUp reports whether the next read would find the end, and nothing before it.
func (c *conn) hungUp() (is bool) {
	err := c.raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		is = n == 0 && err == nil
	})
	return is && err == nil
}
