package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// StartWait is how long a client of a server on this machine waits for it to listen, since the server may have been started a moment
// ago; and startRetry the interval of its attempts.
const (
	StartWait  = 2 * time.Second
	startRetry = 50 * time.Millisecond
)

// serverFile is what server.json in a data folder says about the server that runs on it, or ran last.
type serverFile struct {
	URL      string              `json:"url"`
	HTTPS    string              `json:"https"`
	Issuer   string              `json:"issuer"`
	CA       string              `json:"ca"`
	Operator watchword.SubjectID `json:"operator"`
}

// readServerFile reads server.json. Codes: not_found if no server was started with the folder, file_untrusted, config_invalid.
func readServerFile(dir string) (f serverFile, err error) {
	const most = 64 << 10 // bytes
	path := filepath.Join(dir, "server.json")
	b, err := durable.ReadTrusted(path, most)
	if errors.Is(err, fs.ErrNotExist) {
		return f, watchword.Refuse(watchword.NotFound, "no server was started with the data folder %s", dir)
	}
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, watchword.Wrap(err, watchword.ConfigInvalid, "%s is damaged", path)
	}
	return f, nil
}

// localAddress returns the address by which this machine reaches a server that listens on listens: the server's public name
// may not resolve here.
func localAddress(listens string) string {
	a, err := netip.ParseAddrPort(listens)
	if err != nil || !a.Addr().IsUnspecified() {
		return listens
	}
	return net.JoinHostPort("localhost", strconv.Itoa(int(a.Port())))
}

// localDialer connects to a server whose address differs from that of its URL. It is safe for concurrent use.
type localDialer struct {
	folder  string // data folder of the server; empty: the address is fixed
	address string

	mu    sync.Mutex
	until time.Time // end of the wait for a server that starts; zero before the first refused connection
}

// dial connects. While a server on this machine refuses the connection, it tries again until [StartWait] has passed since the first
// refusal, at the address that server.json then states.
func (l *localDialer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	address := l.address
	for {
		c, err := d.DialContext(ctx, network, address)
		if err == nil || l.folder == "" || !errors.Is(err, syscall.ECONNREFUSED) || !l.wait(ctx) {
			return c, err
		}
		if f, ferr := readServerFile(l.folder); ferr == nil {
			address = localAddress(f.HTTPS)
		}
	}
}

// wait waits before the next attempt. It returns false if the time for a start has passed, or ctx has ended.
func (l *localDialer) wait(ctx context.Context) bool {
	l.mu.Lock()
	if l.until.IsZero() {
		l.until = time.Now().Add(StartWait)
	}
	over := time.Now().After(l.until)
	l.mu.Unlock()
	if over {
		return false
	}
	select {
	case <-time.After(startRetry):
		return true
	case <-ctx.Done():
		return false
	}
}
