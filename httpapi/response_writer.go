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

// The bounds of what is written. An answer is held back until it is whole or has answerBuffer bytes; from then on each
// write goes to the connection in pieces of that size.
const (
	responseBuffer = 64 << 10
	// A reader may let writes wait writeTimeout in all, and longer by the time that it would take at slowest bytes a
	// second and by a share of the time that the answer has lasted: so a stream may go on for days with a pause now and
	// then, and whoever takes a byte a minute is cut off.
	minReadRate   = 64 << 10
	cutCheckShare = 20
	// cutGrace is how long a write that is under way when authority ends may take to finish by itself.
	cutGrace = 2 * time.Millisecond
)

// responseWriter is the one writer of every answer. Under a guard it hands bytes to the connection only while the
// authority that they were read under covers them: see [responseWriter.refuse]. Its methods are for the one goroutine
// that answers, but for refuse.
type responseWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
	nc         net.Conn // the connection under it; nil where there is none to close (a test's recorder)

	http2 bool

	began    time.Time
	blocked  time.Duration // how long writes have taken
	sent     int64
	perWrite time.Duration // the most that one write may take; 0: no more than all

	status       int    // of a header that is held back; 0: none
	body         []byte // that is held back
	direct       bool   // nothing is held back any more
	broken       bool   // a write failed
	refusedWrite bool   // a write was refused

	quota     *quota.Ledger[responseAccount] // where its memory is counted; nil: nowhere
	account   responseAccount
	charged   int64 // for the answer
	input     int64 // for the body of its request
	mandatory bool  // it tells of a change: it is given whatever the bounds say
	quotaErr  error // there was no room for it

	writeToken chan struct{} // holds one token, which whoever writes has

	mu       sync.Mutex
	guarded  bool
	finished bool  // the request is
	refusal  error // why nothing more is written
}

func newResponseWriter(w http.ResponseWriter, r *http.Request) *responseWriter {
	aw := &responseWriter{ResponseWriter: w, controller: http.NewResponseController(w), http2: r.ProtoMajor == 2, began: time.Now(), mandatory: r.Method != http.MethodGet && r.Method != http.MethodHead, writeToken: make(chan struct{}, 1)}
	aw.nc, _ = r.Context().Value(connKey{}).(net.Conn)
	aw.writeToken <- struct{}{}
	return aw
}

// Unwrap is for [http.ResponseController].
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guard makes the answer one that a session watches over.
func (w *responseWriter) guard() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guarded = true
}

// release lets the rest of the answer pass whatever becomes of the session: what says how an act ended, or why a
// stream has.
func (w *responseWriter) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guarded, w.refusedWrite = false, false
}

// refuse ends the answer: no write of it begins any more. It is called while authority changes and waits for nothing;
// [responseWriter.breakWrite] is called after it.
func (w *responseWriter) refuse(reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refusal == nil {
		w.refusal = reason
	}
}

// breakWrite breaks off a write that is under way where the answer was refused: when it returns, nothing more of the answer is
// handed to the connection. It waits for no client.
func (w *responseWriter) breakWrite() {
	if w.refused() == nil || w.waitIdle(cutGrace) {
		return
	}
	w.closeConn(func() {
		_ = w.controller.SetWriteDeadline(time.Unix(1, 0)) // where it fails the write goes on, and the connection is closed below
	})
	if !w.waitIdle(50 * cutGrace) {
		// A peer of HTTP/2 that takes nothing at all: its stream cannot be reset before it reads. Or one of HTTP/1.1 that
		// announced a body and does not send it: net/http waits for that before it writes.
		w.closeConn(func() {
			if w.nc != nil {
				_ = w.nc.Close() // it fails where the connection is closed already; nothing more can be done
			}
		})
	}
}

// closeConn does something to the connection, unless that belongs to another request already.
func (w *responseWriter) closeConn(how func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.finished {
		how()
	}
}

// detach says that the connection is another request's from here on.
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

// waitIdle reports whether no write is under way, waiting up to d for that.
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

// refused returns why nothing more may be written; nil if it may.
func (w *responseWriter) refused() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.guarded {
		return nil
	}
	return w.refusal
}

// WriteHeader holds the status back until the first bytes go.
func (w *responseWriter) WriteHeader(status int) {
	if w.direct {
		return // it went before
	}
	if w.status == 0 {
		w.status = status
	}
}

// Write holds bytes back while the answer is small.
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
	defer w.uncharge(0) // b is its caller's again
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

// buffer keeps b until the answer is whole.
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

// The memory of an answer is counted beyond answerFree, in steps.
const (
	responseFreeBytes  = 4 << 10
	responseChargeStep = 4 << 10
)

// responseAccount is who is charged for the memory of answers: a subject, or the network that a request without a token came from.
type responseAccount struct {
	quota.Key
	network netip.Prefix
}

// newResponseQuota counts the bodies of requests under way, and of answers that are not with the connection yet.
func newResponseQuota(subject, total int64) *quota.Ledger[responseAccount] {
	return quota.New[responseAccount](quota.Resource{
		Name: "bodies of requests under way and of answers that are not read yet", Unit: "bytes",
		Subject: quota.Bound{Max: subject, Name: "limits.subject_body_bytes"},
		Total:   quota.Bound{Max: total, Name: "limits.body_bytes"},
	})
}

// charge counts what the answer takes from now on, n bytes, where that is more than before. Code: busy, where it only
// reads and there is no room: it is answered so where nothing of it was written, and broken off otherwise.
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

// chargeRequestBody counts the body that r announces (one of no announced length as the longest that is read), until the answer is
// given. It is called before the body is read, once it is known whose it is; only the first call counts. Code: busy.
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

// uncharge gives back what is counted above n bytes.
func (w *responseWriter) uncharge(n int) {
	if less := w.charged - chargedBytes(n); less > 0 {
		w.quota.Release(w.account, less)
		w.charged -= less
	}
}

func chargedBytes(n int) int64 {
	return int64(max(0, n-responseFreeBytes)+responseChargeStep-1) / responseChargeStep * responseChargeStep
}

// setAccount says whose request it is. Nothing is counted of it yet, or it is the same.
func (w *responseWriter) setAccount(k quota.Key) {
	if w.charged == 0 && w.input == 0 {
		w.account = responseAccount{Key: k}
	}
}

// stream writes what was held back; what is written from now on goes at once.
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

// send hands bytes to the connection, if they may go.
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
	if w.refused() != nil { // cut may have set its deadline before this one
		w.refusedWrite = true
		return errAnswerEnded
	}
	if err == nil && len(b) > 0 {
		_, err = w.ResponseWriter.Write(b)
	}
	if err == nil {
		err = w.controller.Flush()
	}
	if w.http2 && err == nil { // there the deadline's end resets the stream, also where nothing is being written
		err = w.controller.SetWriteDeadline(time.Time{})
	}
	w.blocked += time.Since(began)
	w.sent += int64(len(b))
	if err != nil {
		w.broken = true
	}
	return err
}

// allowance is how long the next write may take.
func (w *responseWriter) allowance(now time.Time) time.Duration {
	return writeTimeout + time.Duration(w.sent)*time.Second/minReadRate + now.Sub(w.began)/cutCheckShare - w.blocked
}

// finish writes what is held back. It returns why the answer is not what it should have been: the caller answers with
// that if nothing was written, and breaks the connection off otherwise.
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
		_ = w.stream() // broken and short say so
	}
	switch {
	case w.refusedWrite:
		return w.refused(), w.direct
	case w.broken:
		return errAnswerEnded, true
	}
	if !w.http2 { // what net/http writes behind the last bytes of a stream, which may lie long back
		if w.deadline(time.Now().Add(writeTimeout)) != nil {
			return errAnswerEnded, true // without a deadline that write could take for ever
		}
	}
	return nil, w.direct
}

// deadline sets until when writes may take. A response writer that has no deadlines, as a test's recorder, is no error.
func (w *responseWriter) deadline(t time.Time) error {
	if err := w.controller.SetWriteDeadline(t); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// restart forgets an answer of which nothing was written.
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
	errAnswerEnded = watchword.Refuse(watchword.Unavailable, "the answer was broken off")
	errAnswerSlow  = watchword.Refuse(watchword.Busy, "the answer is read too slowly")
)
