package mqtt_test

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// A peer over WebSocket that says nothing any more, as a laptop that was closed, does not
// keep the server from going.
func TestUnresponsiveWebSocketPeerIsClosed(t *testing.T) {
	srv := newTestServer(t, mqtt.Options{})
	s := httptest.NewServer(srv.broker)
	defer s.Close()
	ws, _, err := websocket.Dial(t.Context(), s.URL, &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.Write(t.Context(), websocket.MessageBinary, packet.Append(nil, hello(packet.V5, "d", srv.token("d", time.Hour)), packet.V5)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.Read(t.Context()); err != nil { // CONNACK, and then nothing is read
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // the library alone waits for ten
	defer cancel()
	if err := srv.broker.Close(ctx); err != nil {
		t.Error(err)
	}
	srv.guard.Close(nil)
}
