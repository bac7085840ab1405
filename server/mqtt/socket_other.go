//go:build !unix

package mqtt

import (
	"errors"
	"net"
	"syscall"
)

// rawConnOf returns nil on this system: connections are read and written by [net.Conn] alone.
func rawConnOf(net.Conn) syscall.RawConn { return nil }

// The following are not called where rawConnOf returns nil.

func readNonblocking(uintptr, []byte) (int, bool, error) { return 0, false, errors.ErrUnsupported }

func writeNonblocking(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

func atEOF(uintptr) bool { return false }
