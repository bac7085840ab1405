package mqtt

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword"
)

// ServeHTTP serves MQTT over WebSocket (MQTT 5.0 §6). Origin is not checked: only CONNECT authenticates, and browsers add
// no credentials to it.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	named, _ := watchword.CutTenantPath(r.URL.Path)
	h := &hijacker{ResponseWriter: w, frames: newFrameValidator(b.options.PacketBytes)}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}, InsecureSkipVerify: true})
	if err != nil {
		return // the library has answered
	}
	if ws.Subprotocol() != "mqtt" {
		_ = ws.Close(websocket.StatusProtocolError, "the subprotocol here is mqtt") // the connection has ended
		return
	}
	b.Handle(&webSocketConn{Conn: websocket.NetConn(b.ctx, ws, websocket.MessageBinary), ws: ws, frameConn: h.frameConn, host: r.Host, tenant: named})
}

// hijacker gives the WebSocket library a connection whose frames are validated.
type hijacker struct {
	http.ResponseWriter
	frames    frameValidator
	frameConn *frameConn
}

// Hijack implements [http.Hijacker].
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.frameConn = &frameConn{Conn: nc, frames: h.frames, discardLeft: lingerBytes, closed: make(chan struct{})}
	// Bytes that came with the request are validated too.
	if h.frameConn.buffered, err = io.ReadAll(io.LimitReader(rw.Reader, int64(rw.Reader.Buffered()))); err != nil {
		return nil, nil, errors.Join(err, nc.Close())
	}
	return h.frameConn, bufio.NewReadWriter(bufio.NewReader(h.frameConn), rw.Writer), nil
}

// frameConn is the connection below a WebSocket. Its reader, and the goroutine that waits for the
// peer's close frame, read in turn; after the end of the MQTT connection input is discarded up to a
// limit.
type frameConn struct {
	net.Conn
	frames      frameValidator
	buffered    []byte                     // bytes that came with the request; read first
	frameErr    atomic.Pointer[frameError] // an invalid frame: nothing is read after it
	ended       atomic.Bool                // the MQTT connection has ended; at most discardLeft is read
	discardLeft int                        // used by the reader
	once        sync.Once
	closed      chan struct{}
}

// Read implements [net.Conn], up to an invalid frame. At the limit it blocks until Close: an error
// would close the connection before the peer has read the final packet.
func (u *frameConn) Read(b []byte) (int, error) {
	if u.frameErr.Load() != nil {
		return 0, u.discard(b)
	}
	n, err := u.read(b)
	good, bad := u.frames.validate(b[:n])
	if bad != nil {
		if u.frameErr.Store(bad); good == 0 {
			return 0, bad
		}
		return good, nil
	}
	return n, err
}

func (u *frameConn) read(b []byte) (int, error) {
	if len(u.buffered) > 0 {
		n := copy(b, u.buffered)
		u.buffered = u.buffered[n:]
		return n, nil
	}
	if !u.ended.Load() {
		return u.Conn.Read(b)
	}
	if u.discardLeft <= 0 {
		<-u.closed
		return 0, net.ErrClosed
	}
	n, err := u.Conn.Read(b[:min(len(b), u.discardLeft)])
	u.discardLeft -= max(n, lingerReadCost)
	return n, err
}

// discard discards input after an invalid frame, once the connection has ended.
func (u *frameConn) discard(b []byte) error {
	for u.ended.Load() {
		if _, err := u.read(b); err != nil {
			return err
		}
	}
	return u.frameErr.Load()
}

// Close implements [net.Conn].
func (u *frameConn) Close() error {
	u.once.Do(func() { close(u.closed) })
	return u.Conn.Close()
}

// webSocketConn is an MQTT connection over WebSocket.
type webSocketConn struct {
	net.Conn
	ws        *websocket.Conn
	frameConn *frameConn
	host      string             // of the request
	tenant    watchword.TenantID // that the path of the request names; empty: none
	deadline  atomic.Int64       // read deadline in Unix nanoseconds; 0: none
	closeErr  atomic.Pointer[error]
}

// Read implements [net.Conn]; at the deadline it returns [os.ErrDeadlineExceeded].
func (s *webSocketConn) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if bad := s.frameConn.frameErr.Load(); err != nil && bad != nil {
		return n, bad
	}
	if at := s.deadline.Load(); err != nil && at > 0 && time.Now().UnixNano() >= at && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// SetReadDeadline implements [net.Conn]; Read uses the deadline.
func (s *webSocketConn) SetReadDeadline(t time.Time) error {
	at := int64(0)
	if !t.IsZero() {
		at = t.UnixNano()
	}
	s.deadline.Store(at)
	return s.Conn.SetReadDeadline(t)
}

// SetDeadline sets both deadlines.
func (s *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// CloseWrite sends the close frame: 1008 where the connection was refused (RFC 6455 §7.4.1).
// Nothing is written after it.
func (s *webSocketConn) CloseWrite() error {
	code, words := websocket.StatusNormalClosure, ""
	if p := s.closeErr.Load(); p != nil && errors.Is(*p, errTakenOver) {
		code, words = websocket.StatusPolicyViolation, "the client identifier connected again"
	} else if bad, ok := frameErrorOf(p); ok {
		code, words = bad.code, bad.cause.Detail
	} else if p != nil {
		switch code, words = websocket.StatusPolicyViolation, string(errorCodeOf(*p)); errorCodeOf(*p) {
		case watchword.Unavailable:
			code = websocket.StatusGoingAway
		case watchword.TooLarge:
			code = websocket.StatusMessageTooBig
		case watchword.Internal:
			code = websocket.StatusInternalError
		}
	}
	// Close waits for the peer's close frame, and so for the reader. An error means that the
	// connection is closed.
	defer time.AfterFunc(closeTimeout, func() {
		_ = s.frameConn.Close() // so that Close returns; the read reports the end
	}).Stop()
	return s.ws.Close(code, words)
}

func frameErrorOf(p *error) (*frameError, bool) {
	if p == nil {
		return nil, false
	}
	return errors.AsType[*frameError](*p)
}

// Close implements [net.Conn]. It sends nothing and does not wait: CloseWrite did.
func (s *webSocketConn) Close() error {
	return errors.Join(s.frameConn.Close(), s.Conn.Close())
}
