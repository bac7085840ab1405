//go:build !linux

package localsocket

import (
	"net"
	"os"
	"path/filepath"
)

func address(dir string) (path string, release func(), err error) {
	return filepath.Join(dir, Name), func() {}, nil
}

// peerUID has no common form on other systems: there the modes of folder and socket decide alone.
func peerUID(*net.UnixConn) (uid int, err error) { return os.Geteuid(), nil }
