//go:build unix

// Package testport gives tests TCP ports on loopback for servers that need a fixed port, or that start again on the same
// one. Only tests import it.
package testport

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// The range is below the ports that the kernel gives to connections and to listeners on port 0
// (32768 on Linux, 49152 elsewhere), so that none of those takes a reserved port while no server
// listens on it.
const first, count = 20000, 12000

// Reserve returns a port on which nothing listens. It belongs to the test until the test ends: other calls, in other
// processes too, return other ports.
func Reserve(t testing.TB) string {
	t.Helper()
	start := rand.IntN(count)
	for i := range count {
		port := strconv.Itoa(first + (start+i)%count)
		f, err := lock(port)
		if err != nil {
			continue
		}
		if free(port) {
			t.Cleanup(func() { _ = f.Close() }) // the file stays: if it were deleted, two tests could lock two files of one name
			return port
		}
		_ = f.Close()
	}
	t.Fatalf("no free port from %d to %d", first, first+count-1)
	return ""
}

// lock opens the file of a port and locks it until it is closed; an error where another test has it.
func lock(port string) (*os.File, error) {
	dir := filepath.Join(os.TempDir(), "watchword-test-ports-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, port), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// free reports whether a server can listen on the port, with each loopback address that the machine has.
func free(port string) bool {
	for _, address := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(address, port))
		switch {
		case err == nil:
			_ = l.Close()
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT): // a machine without IPv6
		default:
			return false
		}
	}
	return true
}
