package httpapi

import (
	"errors"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
)

// Limits of what is written. An answer is buffered until it is complete or has answerBuffer bytes;
// from then on it is written in pieces of that size.
const (
	responseBuffer = 64 << 10
	// The writes of an answer may block for writeTimeout in all, plus the time that its bytes take
	// at minReadRate, plus a share of the time that the answer has lasted. A stream whose reader
	// pauses now and then can last for days; a reader of one byte a minute is disconnected.
	minReadRate   = 64 << 10
	cutCheckShare = 20
	// cutGrace is how long a write that is in progress when authority ends may continue.
	cutGrace = 2 * time.Millisecond
)

// responseWriter writes every answer. While an answer is guarded, it passes bytes to the connection
// only as long as the authority under which they were read is valid: see [responseWriter.refuse].
// All methods but refuse belong to the goroutine that answers.
type responseWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
	nc         net.Conn // the underlying connection; nil where there is none (a test's recorder)

	http2 bool

	began    time.Time
	blocked  time.Duration // total time that writes have taken
	sent     int64
	perWrite time.Duration // longest time of one write; 0: limited by the total alone

	status       int    // status that was not written yet; 0: none
	body         []byte // bytes that were not written yet
	direct       bool   // writes pass through without buffering
	broken       bool   // a write failed
	refusedWrite bool   // a write was refused

	quota     *quota.Ledger[responseAccount] // ledger of its memory; nil: not counted
	account   responseAccount
	charged   int64 // bytes charged for the answer
	input     int64 // bytes charged for the request body
	mandatory bool  // the answer reports a change: it is sent even where the quota is used up
	quotaErr  error // the quota error that stopped the answer

	writeToken chan struct{} // holds one token, owned by the goroutine that writes

	mu       sync.Mutex
	guarded  bool
	finished bool  // the request is finished
	refusal  error // why nothing more may be written
}

func newResponseWriter(w http.ResponseWriter, r *http.Request) *responseWriter {
	aw := &responseWriter{ResponseWriter: w, controller: http.NewResponseController(w), http2: r.ProtoMajor == 2, began: time.Now(), mandatory: r.Method != http.MethodGet && r.Method != http.MethodHead, writeToken: make(chan struct{}, 1)}
	aw.nc, _ = r.Context().Value(connKey{}).(net.Conn)
	aw.writeToken <- struct{}{}
	return aw
}

// Unwrap implements the interface that [http.ResponseController] expects.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guard makes the session able to stop the answer.
func (w *responseWriter) guard() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guarded = true
}

// release sends the rest of the answer even if the session ends: the result of a change, or the
// reason why a stream ends.
func (w *responseWriter) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guarded, w.refusedWrite = false, false
}

// refuse stops the answer: no further write begins. It is called while authority changes and does
// not block; [responseWriter.breakWrite] is called after it.
func (w *responseWriter) refuse(reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refusal == nil {
		w.refusal = reason
	}
}

// breakWrite stops a write that is in progress after refuse: when it returns, no more bytes of the
// answer are passed to the connection. It does not wait for the client.
func (w *responseWriter) breakWrite() {
	if w.refused() == nil || w.waitIdle(cutGrace) {
		return
	}
	w.closeConn(func() {
		_ = w.controller.SetWriteDeadline(time.Unix(1, 0)) // if it fails, the write continues and the connection is closed below
	})
	if !w.waitIdle(50 * cutGrace) {
		// The peer does not read over HTTP/2, where its stream cannot be reset before it reads, or
		// it announced a body over HTTP/1.1 and does not send it: net/http reads the body before it
		// writes.
		w.closeConn(func() {
			if w.nc != nil {
				_ = w.nc.Close() // fails only where the connection is closed already
			}
		})
	}
}

// closeConn calls how unless the connection serves another request already.
func (w *responseWriter) closeConn(how func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.finished {
		how()
	}
}

// detach marks the connection as free for another request.
func (w *responseWriter) detach() {
	w.uncharge(0)
	if w.input > 0 {
		w.quota.Release(w.account, w.input)
		w.input = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finished = true
}

// waitIdle waits up to d and reports whether no write is in progress.
func (w *responseWriter) waitIdle(d time.Duration) bool {
	select {
	case <-w.writeToken:
		w.writeToken <- struct{}{}
		return true
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w.writeToken:
		w.writeToken <- struct{}{}
		return true
	case <-t.C:
		return false
	}
}

// refused returns why nothing more may be written; nil if writing is allowed.
func (w *responseWriter) refused() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.guarded {
		return nil
	}
	return w.refusal
}

// WriteHeader stores the status until the first bytes are written.
func (w *responseWriter) WriteHeader(status int) {
	if w.direct {
		return // it was written before
	}
	if w.status == 0 {
		w.status = status
	}
}

// Write buffers while the answer is small.
func (w *responseWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if !w.direct && len(w.body)+len(b) <= responseBuffer {
		return len(b), w.buffer(b)
	}
	if err := w.charge(cap(w.body) + len(b)); err != nil {
		return 0, err
	}
	if err := w.stream(); err != nil {
		return 0, err
	}
	defer w.uncharge(0) // b belongs to the caller again
	n := 0
	for n < len(b) {
		piece := b[n:min(n+responseBuffer, len(b))]
		if err := w.send(piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// buffer appends b to the buffered answer.
func (w *responseWriter) buffer(b []byte) error {
	need := len(w.body) + len(b)
	if need > cap(w.body) {
		room := min(max(need, 2*cap(w.body)), responseBuffer)
		if err := w.charge(room); err != nil {
			return err
		}
		w.body = append(make([]byte, 0, room), w.body...)
	}
	w.body = append(w.body, b...)
	return nil
}

// The memory of an answer is charged beyond answerFree bytes, in steps.
const (
	responseFreeBytes  = 4 << 10
	responseChargeStep = 4 << 10
)

// responseAccount is the account that an answer's memory is charged to: a subject, or the network
// of a request without a token.
type responseAccount struct {
	quota.Key
	network netip.Prefix
}

// newResponseQuota makes the ledger of request bodies and of answers that the connection has not
// taken yet.
func newResponseQuota(subject, total int64) *quota.Ledger[responseAccount] {
	return quota.New[responseAccount](quota.Resource{
		Name: "bodies of requests under way and of answers that are not read yet", Unit: "bytes",
		Subject: quota.Bound{Max: subject, Name: "limits.subject_body_bytes"},
		Total:   quota.Bound{Max: total, Name: "limits.body_bytes"},
	})
}

// charge raises the charged memory of the answer to n bytes. Code: busy, for an answer to a read
// where the quota is used up: it becomes the answer if nothing was written yet, and breaks the
// answer off otherwise.
func (w *responseWriter) charge(n int) error {
	more := chargedBytes(n) - w.charged
	if w.quota == nil || more <= 0 {
		return nil
	}
	if w.mandatory {
		w.quota.Add(w.account, more)
	} else if err := w.quota.Reserve(w.account, more); err != nil {
		w.quotaErr, w.broken = err, w.direct
		return err
	}
	w.charged += more
	return nil
}

// chargeRequestBody charges the body's Content-Length, or the largest body of the route where none
// is given, until the answer is written. It is called before the body is read, once the subject is
// known; only the first call counts. Code: busy.
func (w *responseWriter) chargeRequestBody(r *http.Request) error {
	n := r.ContentLength
	if n < 0 || n > maxBody {
		n = maxBody
	}
	n = chargedBytes(int(n))
	if w.quota == nil || w.input > 0 || n == 0 {
		return nil
	}
	if err := w.quota.Reserve(w.account, n); err != nil {
		return err
	}
	w.input = n
	return nil
}

// uncharge releases what is charged above n bytes.
func (w *responseWriter) uncharge(n int) {
	if less := w.charged - chargedBytes(n); less > 0 {
		w.quota.Release(w.account, less)
		w.charged -= less
	}
}

func chargedBytes(n int) int64 {
	return int64(max(0, n-responseFreeBytes)+responseChargeStep-1) / responseChargeStep * responseChargeStep
}

// setAccount sets the account of the request. Nothing must be charged before, unless to the same
// account.
func (w *responseWriter) setAccount(k quota.Key) {
	if w.charged == 0 && w.input == 0 {
		w.account = responseAccount{Key: k}
	}
}

// stream writes what is buffered; later writes pass through at once.
func (w *responseWriter) stream() error {
	if w.direct {
		return nil
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	err := w.send(w.body)
	w.body = nil
	return err
}

// send passes bytes to the connection, unless the answer was refused.
func (w *responseWriter) send(b []byte) error {
	if w.broken {
		return errAnswerEnded
	}
	<-w.writeToken
	defer func() { w.writeToken <- struct{}{} }()
	if w.refused() != nil {
		w.refusedWrite = true
		return errAnswerEnded
	}
	began := time.Now()
	left := w.allowance(began)
	if left <= 0 {
		w.broken = true
		return errAnswerSlow
	}
	if w.perWrite > 0 {
		left = min(left, w.perWrite)
	}
	if !w.direct {
		w.direct = true
		w.ResponseWriter.WriteHeader(w.status)
	}
	err := w.deadline(began.Add(left))
	if w.refused() != nil { // breakWrite may have set its deadline before this one
		w.refusedWrite = true
		return errAnswerEnded
	}
	if err == nil && len(b) > 0 {
		_, err = w.ResponseWriter.Write(b)
	}
	if err == nil {
		err = w.controller.Flush()
	}
	if w.http2 && err == nil { // in HTTP/2 an expired deadline resets the stream, even while nothing is being written
		err = w.controller.SetWriteDeadline(time.Time{})
	}
	w.blocked += time.Since(began)
	w.sent += int64(len(b))
	if err != nil {
		w.broken = true
	}
	return err
}

// allowance returns how long the next write may take.
func (w *responseWriter) allowance(now time.Time) time.Duration {
	return writeTimeout + time.Duration(w.sent)*time.Second/minReadRate + now.Sub(w.began)/cutCheckShare - w.blocked
}

// finish writes what is buffered. It returns why the answer is incomplete: the caller sends that as
// the answer if nothing was written yet, and closes the connection otherwise.
func (w *responseWriter) finish() (reason error, started bool) {
	if w.quotaErr != nil && !w.direct {
		return w.quotaErr, false
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if !w.direct && !w.refusedWrite {
		if w.Header().Get("Content-Length") == "" && w.status != http.StatusNoContent && w.status != http.StatusNotModified {
			w.Header()["Content-Length"] = []string{strconv.Itoa(len(w.body))}
		}
		_ = w.stream() // broken and refusedWrite record the error
	}
	switch {
	case w.refusedWrite:
		return w.refused(), w.direct
	case w.broken:
		return errAnswerEnded, true
	}
	if !w.http2 { // net/http writes after the last bytes of a stream, which may have been written long ago
		if w.deadline(time.Now().Add(writeTimeout)) != nil {
			return errAnswerEnded, true // without a deadline that write could block forever
		}
	}
	return nil, w.direct
}

// deadline sets the write deadline. A response writer without deadlines, such as a test's recorder,
// is no error.
func (w *responseWriter) deadline(t time.Time) error {
	if err := w.controller.SetWriteDeadline(t); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// restart discards an answer of which nothing was written.
func (w *responseWriter) restart(header http.Header) {
	w.release()
	w.status = 0
	w.body, w.quotaErr, w.mandatory = nil, nil, true
	w.uncharge(0)
	h := w.Header()
	clear(h)
	maps.Copy(h, header)
}

var (
	errAnswerEnded = watchword.Refuse(watchword.Unavailable, "the answer was aborted")
	errAnswerSlow  = watchword.Refuse(watchword.Busy, "the client reads the answer too slowly")
)
