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

// ServeHTTP takes MQTT over WebSocket (MQTT 5.0 §6). It asks for no origin: what a
// connection may do comes from its CONNECT alone, which no browser adds by itself.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := &hijacker{ResponseWriter: w, frames: newFrameValidator(b.options.PacketBytes)}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}, InsecureSkipVerify: true})
	if err != nil {
		return // it has answered
	}
	if ws.Subprotocol() != "mqtt" {
		_ = ws.Close(websocket.StatusProtocolError, "the subprotocol here is mqtt") // nothing is left to be told
		return
	}
	b.Handle(&webSocketConn{Conn: websocket.NetConn(b.ctx, ws, websocket.MessageBinary), ws: ws, frameConn: h.frameConn})
}

// hijacker gives WebSocket a connection whose frames are checked, and whose reading is bounded
// after the end.
type hijacker struct {
	http.ResponseWriter
	frames    frameValidator
	frameConn *frameConn
}

// Hijack is [http.Hijacker]'s.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.frameConn = &frameConn{Conn: nc, frames: h.frames, discardLeft: lingerBytes, closed: make(chan struct{})}
	// What came with the request is checked as all that follows.
	if h.frameConn.buffered, err = io.ReadAll(io.LimitReader(rw.Reader, int64(rw.Reader.Buffered()))); err != nil {
		return nil, nil, errors.Join(err, nc.Close())
	}
	return h.frameConn, bufio.NewReadWriter(bufio.NewReader(h.frameConn), rw.Writer), nil
}

// frameConn is the connection that WebSocket frames are read from. Its reader and whoever
// waits for the peer's close frame take turns, and both throw away what comes after the
// end: it counts for them.
type frameConn struct {
	net.Conn
	frames      frameValidator
	buffered    []byte                     // what came with the request; read first
	frameErr    atomic.Pointer[frameError] // what was wrong with a frame: nothing is read from it on
	ended       atomic.Bool                // the MQTT connection has; no more than left is read
	discardLeft int                        // the one's who reads
	once        sync.Once
	closed      chan struct{}
}

// Read is net.Conn's, up to a frame that is refused. Where the bound is met it waits for
// Close: an error would close the connection before the peer has read the final packet.
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

// discard throws away what comes after a frame that was refused, once the connection has ended.
func (u *frameConn) discard(b []byte) error {
	for u.ended.Load() {
		if _, err := u.read(b); err != nil {
			return err
		}
	}
	return u.frameErr.Load()
}

// Close is net.Conn's.
func (u *frameConn) Close() error {
	u.once.Do(func() { close(u.closed) })
	return u.Conn.Close()
}

// webSocketConn is a connection over WebSocket.
type webSocketConn struct {
	net.Conn
	ws        *websocket.Conn
	frameConn *frameConn
	deadline  atomic.Int64 // of reading, in nanoseconds; 0 for none
	closeErr  atomic.Pointer[error]
}

// Read is net.Conn's, with its word for a deadline.
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

// SetReadDeadline is net.Conn's; Read has to know it.
func (s *webSocketConn) SetReadDeadline(t time.Time) error {
	at := int64(0)
	if !t.IsZero() {
		at = t.UnixNano()
	}
	s.deadline.Store(at)
	return s.Conn.SetReadDeadline(t)
}

// SetDeadline sets both.
func (s *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// CloseWrite says the last words: 1008 where the connection may not go on (RFC 6455
// §7.4.1). Nothing is written after it.
func (s *webSocketConn) CloseWrite() error {
	code, words := websocket.StatusNormalClosure, ""
	if p := s.closeErr.Load(); p != nil && errors.Is(*p, errTakenOver) {
		code, words = websocket.StatusPolicyViolation, "the client connected again"
	} else if bad, ok := frameErrorOf(p); ok {
		code, words = bad.code, bad.cause.Detail
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
	defer time.AfterFunc(closeTimeout, func() {
		_ = s.frameConn.Close() // to have Close return below, which reports how the connection ended
	}).Stop()
	return s.ws.Close(code, words)
}

func frameErrorOf(p *error) (*frameError, bool) {
	if p == nil {
		return nil, false
	}
	return errors.AsType[*frameError](*p)
}

// Close is net.Conn's. It says nothing, and waits for nobody: CloseWrite did.
func (s *webSocketConn) Close() error {
	return errors.Join(s.frameConn.Close(), s.Conn.Close())
}
