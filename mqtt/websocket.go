package mqtt

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword"
)

// ServeHTTP takes MQTT over WebSocket (MQTT 5.0 §6). It asks for no origin: what a
// connection may do comes from its CONNECT alone, which no browser adds by itself.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}, InsecureSkipVerify: true})
	if err != nil {
		return // it has answered
	}
	if ws.Subprotocol() != "mqtt" {
		_ = ws.Close(websocket.StatusProtocolError, "the subprotocol here is mqtt") // nothing is left to be told
		return
	}
	b.Handle(&socket{Conn: websocket.NetConn(b.ctx, ws, websocket.MessageBinary), ws: ws})
}

// socket is a connection over WebSocket.
type socket struct {
	net.Conn
	ws       *websocket.Conn
	deadline atomic.Int64 // of reading, in nanoseconds; 0 for none
	why      atomic.Pointer[error]
}

// Read is net.Conn's, with its word for a deadline.
func (s *socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if at := s.deadline.Load(); err != nil && at > 0 && time.Now().UnixNano() >= at && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// SetReadDeadline is net.Conn's; Read has to know it.
func (s *socket) SetReadDeadline(t time.Time) error {
	at := int64(0)
	if !t.IsZero() {
		at = t.UnixNano()
	}
	s.deadline.Store(at)
	return s.Conn.SetReadDeadline(t)
}

// SetDeadline sets both.
func (s *socket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// CloseWrite says the last words: 1008 where the connection may not go on (RFC 6455
// §7.4.1). Nothing is written after it.
func (s *socket) CloseWrite() error {
	code, words := websocket.StatusNormalClosure, ""
	if p := s.why.Load(); p != nil && errors.Is(*p, errTaken) {
		code, words = websocket.StatusPolicyViolation, "the client connected again"
	} else if p != nil {
		switch code, words = websocket.StatusPolicyViolation, string(codeOf(*p)); codeOf(*p) {
		case watchword.Unavailable:
			code = websocket.StatusGoingAway
		case watchword.TooLarge:
			code = websocket.StatusMessageTooBig
		case watchword.Internal:
			code = websocket.StatusInternalError
		}
	}
	// Close waits for the peer's word, and so for the reader. The error is that of a
	// connection that is gone.
	defer time.AfterFunc(byeTimeout, func() { _ = s.Conn.SetReadDeadline(time.Unix(1, 0)) }).Stop()
	return s.ws.Close(code, words)
}
