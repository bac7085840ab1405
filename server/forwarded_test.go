package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server"
)

// upgradeFrom asks for a WebSocket from a loopback address with a header X-Forwarded-For, and returns it or the status of the refusal.
func upgradeFrom(t *testing.T, info server.Info, from, forwardedFor string) (*websocket.Conn, int) {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(ctx, network, info.HTTPS)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	ws, r, err := websocket.Dial(t.Context(), "wss://localhost/mqtt", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: tr}, Subprotocols: []string{"mqtt"}, HTTPHeader: http.Header{"X-Forwarded-For": {forwardedFor}},
	})
	if err != nil {
		if r == nil {
			t.Fatal(err)
		}
		return nil, r.StatusCode
	}
	t.Cleanup(func() { _ = ws.CloseNow() }) // it may be closed
	return ws, r.StatusCode
}

// Clients behind one proxy are limited one by one, and not as if they were one; a closed connection gives its place back.
func TestAForwardedClientHasItsOwnLimit(t *testing.T) {
	const each = 3
	c := config(t, t.TempDir()+"/data")
	c.Server.TrustedProxies, c.Limits.PerAddress = []string{"127.0.0.2"}, each
	info := running(t, c)
	var first *websocket.Conn
	for client := range each + 1 { // more clients than one address may have connections
		for n := range each {
			ws, status := upgradeFrom(t, info, "127.0.0.2", fmt.Sprint("192.0.2.", client))
			if status != http.StatusSwitchingProtocols {
				t.Fatalf("connection %d of client %d: %d", n+1, client, status)
			}
			if first == nil {
				first = ws
			}
		}
	}
	if _, status := upgradeFrom(t, info, "127.0.0.2", "192.0.2.0"); status != http.StatusTooManyRequests {
		t.Errorf("one too many: %d", status)
	}
	if err := first.CloseNow(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	for wait := testwait.Within(); ; wait.Check(t, "the place of a closed connection") {
		if _, status := upgradeFrom(t, info, "127.0.0.2", "192.0.2.0"); status == http.StatusSwitchingProtocols {
			break
		}
	}
	if _, status := upgradeFrom(t, info, "127.0.0.3", "192.0.2.9"); status != http.StatusSwitchingProtocols {
		t.Errorf("a client that is not a proxy: %d", status)
	}
}

// A request whose two headers differ is refused as any other, with a problem that says what is wrong; from a client that is no proxy the
// headers mean nothing.
func TestForwardedHeadersThatDiffer(t *testing.T) {
	c := config(t, t.TempDir()+"/data")
	c.Server.TrustedProxies = []string{"127.0.0.2"}
	info := running(t, c)
	for from, want := range map[string]int{"127.0.0.2": http.StatusBadRequest, "127.0.0.3": http.StatusOK} {
		tr := &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(ctx, network, info.HTTPS)
			},
		}
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost/v1/trust", nil)
		check(t, err)
		q.Header.Set("X-Forwarded-For", "192.0.2.1")
		q.Header.Set("Forwarded", "for=192.0.2.2")
		r, err := tr.RoundTrip(q)
		check(t, err)
		check(t, r.Body.Close())
		tr.CloseIdleConnections()
		if r.StatusCode != want || want != http.StatusOK && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/problem+json") {
			t.Errorf("from %s: %s, %s", from, r.Status, r.Header.Get("Content-Type"))
		}
	}
}
