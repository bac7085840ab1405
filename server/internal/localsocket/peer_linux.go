package localsocket

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxAddress is the longest path of a Unix socket: sockaddr_un has 108 bytes, with a zero at the end.
const maxAddress = 107

// address returns a path of the socket that fits a socket address. A long path goes through a descriptor of the folder, which release
// closes.
func address(dir string) (path string, release func(), err error) {
	path = filepath.Join(dir, Name)
	if len(path) <= maxAddress {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), Name), func() { _ = f.Close() }, nil // it was only opened to name the folder
}

// peerUID returns the user of the process that connected (SO_PEERCRED).
func peerUID(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	uid = -1
	var serr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); serr == nil {
			uid = int(cred.Uid)
		}
	})
	if err == nil {
		err = serr
	}
	return uid, err
}
