// Package localsocket is the Unix socket in a server's data folder by which a program of the same user reaches the running server.
// The folder has mode 0700 and the socket 0600; besides, a connection of another user than the server's, or root, is closed before
// anything is read from it.
package localsocket

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// Name is the file name of the socket in the data folder.
const Name = "control.sock"

// Listen makes the socket in a data folder, in the place of one that a server left behind. The caller holds the folder's lock.
func Listen(dir string, log *slog.Logger) (net.Listener, error) {
	if err := os.Remove(filepath.Join(dir, Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	path, release, err := address(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the path may go through a descriptor that is closed by then
	own := &listener{UnixListener: l, file: filepath.Join(dir, Name), log: log}
	if err := os.Chmod(own.file, 0o600); err != nil {
		return nil, errors.Join(err, own.Close())
	}
	return own, nil
}

// Dial connects to the server that runs on a data folder. The error is fs.ErrNotExist or ECONNREFUSED where none does.
func Dial(ctx context.Context, dir string) (net.Conn, error) {
	path, release, err := address(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

type listener struct {
	*net.UnixListener
	file string
	log  *slog.Logger
	once sync.Once
}

// Close ends the listener and removes the file, once: the next server may have made another by then.
func (l *listener) Close() (err error) {
	l.once.Do(func() { err = errors.Join(l.UnixListener.Close(), os.Remove(l.file)) })
	return err
}

// Accept returns the next connection of the same user, or of root.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && (uid == os.Geteuid() || uid == 0) {
			return c, nil
		}
		l.log.Warn("a local connection of another user was closed", slog.Int("uid", uid), slog.Any("err", err))
		_ = c.Close() // nothing was read from it
	}
}
