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
	answerBuffer = 64 << 10
	// A reader may let writes wait writeTimeout in all, and longer by the time that it would take at slowest bytes a
	// second and by a share of the time that the answer has lasted: so a stream may go on for days with a pause now and
	// then, and whoever takes a byte a minute is cut off.
	slowest    = 64 << 10
	pauseShare = 20
	// cutGrace is how long a write that is under way when authority ends may take to finish by itself.
	cutGrace = 2 * time.Millisecond
)

// answerWriter is the one writer of every answer. Under a guard it hands bytes to the connection only while the
// authority that they were read under covers them: see [answerWriter.refuse]. Its methods are for the one goroutine
// that answers, but for refuse.
type answerWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
	nc net.Conn // the connection under it; nil where there is none to close (a test's recorder)

	http2 bool

	began   time.Time
	blocked time.Duration // how long writes have taken
	sent    int64
	each    time.Duration // the most that one write may take; 0: no more than all

	status int    // of a header that is held back; 0: none
	body   []byte // that is held back
	direct bool   // nothing is held back any more
	broken bool   // a write failed
	short  bool   // a write was refused

	answers *quota.Ledger[answerAccount] // where its memory is counted; nil: nowhere
	account answerAccount
	charged int64 // for the answer
	input   int64 // for the body of its request
	must    bool  // it tells of a change: it is given whatever the bounds say
	full    error // there was no room for it

	gate chan struct{} // holds one token, which whoever writes has

	mu      sync.Mutex
	guarded bool
	over    bool  // the request is
	why     error // why nothing more is written
}

func newAnswerWriter(w http.ResponseWriter, r *http.Request) *answerWriter {
	aw := &answerWriter{ResponseWriter: w, rc: http.NewResponseController(w), http2: r.ProtoMajor == 2, began: time.Now(), must: r.Method != http.MethodGet && r.Method != http.MethodHead, gate: make(chan struct{}, 1)}
	aw.nc, _ = r.Context().Value(connKey{}).(net.Conn)
	aw.gate <- struct{}{}
	return aw
}

// Unwrap is for [http.ResponseController].
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guard makes the answer one that a session watches over.
func (w *answerWriter) guard() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guarded = true
}

// release lets the rest of the answer pass whatever becomes of the session: what says how an act ended, or why a
// stream has.
func (w *answerWriter) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guarded, w.short = false, false
}

// refuse ends the answer: no write of it begins any more. It is called while authority changes and waits for nothing;
// [answerWriter.cut] is called after it.
func (w *answerWriter) refuse(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil {
		w.why = why
	}
}

// cut breaks off a write that is under way where the answer was refused: when it returns, nothing more of the answer is
// handed to the connection. It waits for no client.
func (w *answerWriter) cut() {
	if w.refused() == nil || w.idle(cutGrace) {
		return
	}
	w.breakOff(func() {
		_ = w.rc.SetWriteDeadline(time.Unix(1, 0)) // where it fails the write goes on, and the connection is closed below
	})
	if !w.idle(50 * cutGrace) {
		// A peer of HTTP/2 that takes nothing at all: its stream cannot be reset before it reads. Or one of HTTP/1.1 that
		// announced a body and does not send it: net/http waits for that before it writes.
		w.breakOff(func() {
			if w.nc != nil {
				_ = w.nc.Close() // it fails where the connection is closed already; nothing more can be done
			}
		})
	}
}

// breakOff does something to the connection, unless that belongs to another request already.
func (w *answerWriter) breakOff(how func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		how()
	}
}

// end says that the connection is another request's from here on.
func (w *answerWriter) end() {
	w.gives(0)
	if w.input > 0 {
		w.answers.Give(w.account, w.input)
		w.input = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}

// idle reports whether no write is under way, waiting up to d for that.
func (w *answerWriter) idle(d time.Duration) bool {
	select {
	case <-w.gate:
		w.gate <- struct{}{}
		return true
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w.gate:
		w.gate <- struct{}{}
		return true
	case <-t.C:
		return false
	}
}

// refused returns why nothing more may be written; nil if it may.
func (w *answerWriter) refused() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.guarded {
		return nil
	}
	return w.why
}

// WriteHeader holds the status back until the first bytes go.
func (w *answerWriter) WriteHeader(status int) {
	if w.direct {
		return // it went before
	}
	if w.status == 0 {
		w.status = status
	}
}

// Write holds bytes back while the answer is small.
func (w *answerWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if !w.direct && len(w.body)+len(b) <= answerBuffer {
		return len(b), w.hold(b)
	}
	if err := w.takes(cap(w.body) + len(b)); err != nil {
		return 0, err
	}
	if err := w.stream(); err != nil {
		return 0, err
	}
	defer w.gives(0) // b is its caller's again
	n := 0
	for n < len(b) {
		piece := b[n:min(n+answerBuffer, len(b))]
		if err := w.send(piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// hold keeps b until the answer is whole.
func (w *answerWriter) hold(b []byte) error {
	need := len(w.body) + len(b)
	if need > cap(w.body) {
		room := min(max(need, 2*cap(w.body)), answerBuffer)
		if err := w.takes(room); err != nil {
			return err
		}
		w.body = append(make([]byte, 0, room), w.body...)
	}
	w.body = append(w.body, b...)
	return nil
}

// The memory of an answer is counted beyond answerFree, in steps.
const (
	answerFree = 4 << 10
	answerStep = 4 << 10
)

// answerAccount is who is charged for the memory of answers: a subject, or the network that a request without a token came from.
type answerAccount struct {
	quota.Key
	network netip.Prefix
}

// newAnswerQuota counts the bodies of requests under way, and of answers that are not with the connection yet.
func newAnswerQuota(subject, total int64) *quota.Ledger[answerAccount] {
	return quota.New[answerAccount](quota.Resource{
		Name: "bodies of requests under way and of answers that are not read yet", Unit: "bytes",
		Subject: quota.Bound{Max: subject, Name: "limits.subject_body_bytes"},
		Total:   quota.Bound{Max: total, Name: "limits.body_bytes"},
	})
}

// takes counts what the answer takes from now on, n bytes, where that is more than before. Code: busy, where it only
// reads and there is no room: it is answered so where nothing of it was written, and broken off otherwise.
func (w *answerWriter) takes(n int) error {
	more := counted(n) - w.charged
	if w.answers == nil || more <= 0 {
		return nil
	}
	if w.must {
		w.answers.Add(w.account, more)
	} else if err := w.answers.Take(w.account, more); err != nil {
		w.full, w.broken = err, w.direct
		return err
	}
	w.charged += more
	return nil
}

// receives counts the body that r announces (one of no announced length as the longest that is read), until the answer is
// given. It is called before the body is read, once it is known whose it is; only the first call counts. Code: busy.
func (w *answerWriter) receives(r *http.Request) error {
	n := r.ContentLength
	if n < 0 || n > maxBody {
		n = maxBody
	}
	n = counted(int(n))
	if w.answers == nil || w.input > 0 || n == 0 {
		return nil
	}
	if err := w.answers.Take(w.account, n); err != nil {
		return err
	}
	w.input = n
	return nil
}

// gives gives back what is counted above n bytes.
func (w *answerWriter) gives(n int) {
	if less := w.charged - counted(n); less > 0 {
		w.answers.Give(w.account, less)
		w.charged -= less
	}
}

func counted(n int) int64 {
	return int64(max(0, n-answerFree)+answerStep-1) / answerStep * answerStep
}

// of says whose request it is. Nothing is counted of it yet, or it is the same.
func (w *answerWriter) of(k quota.Key) {
	if w.charged == 0 && w.input == 0 {
		w.account = answerAccount{Key: k}
	}
}

// stream writes what was held back; what is written from now on goes at once.
func (w *answerWriter) stream() error {
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
func (w *answerWriter) send(b []byte) error {
	if w.broken {
		return errAnswerEnded
	}
	<-w.gate
	defer func() { w.gate <- struct{}{} }()
	if w.refused() != nil {
		w.short = true
		return errAnswerEnded
	}
	began := time.Now()
	left := w.allowance(began)
	if left <= 0 {
		w.broken = true
		return errAnswerSlow
	}
	if w.each > 0 {
		left = min(left, w.each)
	}
	if !w.direct {
		w.direct = true
		w.ResponseWriter.WriteHeader(w.status)
	}
	err := w.deadline(began.Add(left))
	if w.refused() != nil { // cut may have set its deadline before this one
		w.short = true
		return errAnswerEnded
	}
	if err == nil && len(b) > 0 {
		_, err = w.ResponseWriter.Write(b)
	}
	if err == nil {
		err = w.rc.Flush()
	}
	if w.http2 && err == nil { // there the deadline's end resets the stream, also where nothing is being written
		err = w.rc.SetWriteDeadline(time.Time{})
	}
	w.blocked += time.Since(began)
	w.sent += int64(len(b))
	if err != nil {
		w.broken = true
	}
	return err
}

// allowance is how long the next write may take.
func (w *answerWriter) allowance(now time.Time) time.Duration {
	return writeTimeout + time.Duration(w.sent)*time.Second/slowest + now.Sub(w.began)/pauseShare - w.blocked
}

// finish writes what is held back. It returns why the answer is not what it should have been: the caller answers with
// that if nothing was written, and breaks the connection off otherwise.
func (w *answerWriter) finish() (why error, started bool) {
	if w.full != nil && !w.direct {
		return w.full, false
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if !w.direct && !w.short {
		if w.Header().Get("Content-Length") == "" && w.status != http.StatusNoContent && w.status != http.StatusNotModified {
			w.Header()["Content-Length"] = []string{strconv.Itoa(len(w.body))}
		}
		_ = w.stream() // broken and short say so
	}
	switch {
	case w.short:
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
func (w *answerWriter) deadline(t time.Time) error {
	if err := w.rc.SetWriteDeadline(t); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// restart forgets an answer of which nothing was written.
func (w *answerWriter) restart(header http.Header) {
	w.release()
	w.status = 0
	w.body, w.full, w.must = nil, nil, true
	w.gives(0)
	h := w.Header()
	clear(h)
	maps.Copy(h, header)
}

var (
	errAnswerEnded = watchword.Refuse(watchword.Unavailable, "the answer was broken off")
	errAnswerSlow  = watchword.Refuse(watchword.Busy, "the answer is read too slowly")
)
