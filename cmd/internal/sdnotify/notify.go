// Package sdnotify reports the state of this process to systemd, by the protocol of sd_notify(3): datagrams with lines
// NAME=VALUE to the Unix socket that $NOTIFY_SOCKET names. Where the variable is not set, nothing is sent.
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// sendTimeout is how long a datagram may wait for room in the socket's queue.
const sendTimeout = 2 * time.Second

// Notifier sends the state. A nil Notifier sends nothing. It is safe for concurrent use.
type Notifier struct {
	socket   string
	watchdog time.Duration
}

// Open reads $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID, and removes them from the environment, so that programs which
// this process starts cannot report in its name. It returns nil where $NOTIFY_SOCKET is not set, and an error where it is not
// the path of a Unix socket or an abstract one ("@NAME").
func Open() (*Notifier, error) {
	socket, usec, pid := os.Getenv("NOTIFY_SOCKET"), os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	switch {
	case socket == "":
		return nil, nil
	case !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@"):
		return nil, fmt.Errorf("NOTIFY_SOCKET %q is not supported: it must be a path or an abstract socket", socket)
	}
	n := &Notifier{socket: socket}
	if usec != "" && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		v, err := strconv.ParseInt(usec, 10, 64)
		if err != nil || v <= 0 || v > int64(1<<62)/1000 {
			return n, fmt.Errorf("WATCHDOG_USEC %q must be a number of microseconds: no watchdog signal is sent", usec)
		}
		n.watchdog = time.Duration(v) * time.Microsecond
	}
	return n, nil
}

// Watchdog returns the time after which systemd ends a process that sent no [Notifier.Alive]; 0 where it does not.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// Ready says that the start, or a reload, is complete.
func (n *Notifier) Ready(status string) error { return n.send("READY=1", statusLine(status)) }

// Reloading says that the configuration is read again. [Notifier.Ready] must follow, whether the new one is used or not.
func (n *Notifier) Reloading() error {
	lines := []string{"RELOADING=1"}
	if at, ok := monotonic(); ok { // required by Type=notify-reload
		lines = append(lines, "MONOTONIC_USEC="+strconv.FormatInt(at.Microseconds(), 10))
	}
	return n.send(lines...)
}

// Stopping says that the process ends.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1", statusLine("stops")) }

// Status sets the line that systemctl status shows.
func (n *Notifier) Status(text string) error { return n.send(statusLine(text)) }

// Alive tells the watchdog that the process works.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

// statusLine returns STATUS= with one line of text.
func statusLine(text string) string {
	return "STATUS=" + strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' || r == 0 }), " ")
}

// send connects for each datagram, since the service manager may have replaced the socket.
func (n *Notifier) send(lines ...string) (err error) {
	if n == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, err = c.Write([]byte(strings.Join(lines, "\n")))
	return err
}
