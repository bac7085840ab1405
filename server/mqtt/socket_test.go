package mqtt

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// accepted is the server's end of a real connection.
func accepted(t *testing.T) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() }) // closed already in some tests
	return nc
}

// A write that waits leaves a deadline behind, and one that does not wait must not
// trip over it.
func TestWriteAfterDeadline(t *testing.T) {
	nc := accepted(t)
	c := &conn{nc: nc, rawConn: rawConnOf(nc)}
	if err := c.send([]byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := nc.SetWriteDeadline(time.Unix(1, 0)); err != nil { // as if writeTimeout had gone by
		t.Fatal(err)
	}
	if _, err := nc.Write([]byte("x")); !os.IsTimeout(err) {
		t.Fatalf("the deadline does not count: %v", err)
	}
	if n, err := c.writeNonblocking([]byte("b")); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// A reader whose answer cannot be written, while it reads, takes the connection
// down and does not wait for itself.
func TestAWriteThatFailsWithinARead(t *testing.T) {
	nc := accepted(t)
	c := &conn{nc: nc, rawConn: rawConnOf(nc), session: &sessionState{}}
	c.out.changed.L = &c.session.mu
	failed := false
	err := c.rawConn.Read(func(uintptr) bool {
		if !failed {
			failed = true
			c.writeFailed()
		}
		return false // and waits for more
	})
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}
