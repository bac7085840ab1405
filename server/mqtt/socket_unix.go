//go:build unix

package mqtt

import (
	"net"
	"syscall"
)

// rawConnOf returns the raw connection below nc for nonblocking writes, or nil.
func rawConnOf(nc net.Conn) syscall.RawConn {
	for {
		if t, ok := nc.(*net.TCPConn); ok {
			raw, err := t.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		}
		w, ok := nc.(interface{ Below() net.Conn })
		if !ok {
			return nil
		}
		nc = w.Below()
	}
}

// readNonblocking reads what the socket has. wait is true where it has nothing yet; n is 0 at the end of
// the stream.
func readNonblocking(fd uintptr, b []byte) (n int, wait bool, err error) {
	for {
		n, err = syscall.Read(int(fd), b)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return n, false, err
	}
}

// writeNonblocking writes what the socket has room for: n is less than len(b) where it is full.
func writeNonblocking(fd uintptr, b []byte) (n int, err error) {
	for n < len(b) {
		k, err := syscall.Write(int(fd), b[n:])
		switch err {
		case nil:
			n += k
		case syscall.EINTR:
		case syscall.EAGAIN:
			return n, nil
		default:
			return n, err
		}
	}
	return n, nil
}

// atEOF reports whether the next read would find the end of the stream, and nothing before it.
func atEOF(fd uintptr) bool {
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n == 0 && err == nil
}
