package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/testwait"
)

// answerOf is one that is not written yet.
func answerOf(a *API, method string, id watchword.SubjectID) (*responseWriter, *httptest.ResponseRecorder) {
	rec := httptest.NewRecorder()
	w := newResponseWriter(rec, httptest.NewRequest(method, "/", nil))
	w.quota = a.answerQuota
	w.setAccount(quota.Key{Tenant: tenant, Subject: id})
	w.guard()
	return w, rec
}

// What all answers of one subject take before they are with its connections is bounded, also where it reads none.
func TestUnreadResponsesAreBounded(t *testing.T) {
	a := &API{answerQuota: newResponseQuota(1<<20, 3<<20/2)}
	page := make([]byte, responseBuffer)
	var held []*responseWriter
	// fill has answers of a subject held back until there is no room for one more, and returns how many.
	fill := func(id watchword.SubjectID, bound string) (n int) {
		t.Helper()
		for ; n < 100; n++ {
			w, rec := answerOf(a, http.MethodGet, id)
			if _, err := w.Write(page); err == nil {
				held = append(held, w)
				continue
			}
			reason, started := w.finish()
			if watchword.CodeOf(reason) != watchword.Busy || started || !strings.Contains(reason.Error(), "("+bound+")") {
				t.Fatalf("%v, started %v", reason, started)
			}
			w.restart(http.Header{})
			if _, err := w.Write(page[:3000]); err != nil {
				t.Errorf("there is no room to say so: %v", err)
			}
			if reason, _ := w.finish(); reason != nil || rec.Body.Len() != 3000 {
				t.Errorf("%v: %d bytes", reason, rec.Body.Len())
			}
			w.detach()
			return n
		}
		return n
	}
	if n := fill("lamp", "limits.subject_body_bytes"); n != 1<<20/(responseBuffer-responseFreeBytes) {
		t.Errorf("one subject has room for %d", n)
	}
	if n := fill("pump", "limits.body_bytes"); n != 1<<19/(responseBuffer-responseFreeBytes) {
		t.Errorf("another has room for %d", n)
	}
	change, rec := answerOf(a, http.MethodPost, "lamp")
	if _, err := change.Write(page); err != nil {
		t.Errorf("an answer that tells of a change: %v", err)
	}
	if reason, _ := change.finish(); reason != nil || rec.Body.Len() != len(page) {
		t.Errorf("an answer that tells of a change: %v, %d bytes", reason, rec.Body.Len())
	}
	change.detach()
	stream, rec := answerOf(a, http.MethodGet, "lamp")
	_ = stream.stream()
	if _, err := stream.Write(page[:4000]); err != nil || rec.Body.Len() != 4000 {
		t.Errorf("a small event: %v", err)
	}
	if _, err := stream.Write(page); watchword.CodeOf(err) != watchword.Busy {
		t.Errorf("a large event: %v", err)
	}
	if reason, started := stream.finish(); !errors.Is(reason, errAnswerEnded) || !started {
		t.Errorf("a stream without room: %v, started %v", reason, started)
	}
	stream.detach()
	for _, w := range held {
		w.detach()
	}
	if n := a.answerQuota.Total(); n != 0 {
		t.Errorf("%d bytes are charged for nothing", n)
	}
	if n := fill("lamp", "limits.subject_body_bytes"); n != 1<<20/(responseBuffer-responseFreeBytes) {
		t.Errorf("when all are given there is room for %d", n)
	}
}

// An event of a stream is counted while it is written, and a stream without room for one is broken off.
func TestEventsThatAreNotReadAreCounted(t *testing.T) {
	a := &API{answerQuota: newResponseQuota(1<<20, 0)}
	w, rec := answerOf(a, http.MethodGet, "lamp")
	defer w.detach()
	s := newStream(&caller{session: &requestSession{response: w}})
	big := strings.Repeat("x", 40<<10)
	if err := s.send("event", "", big); err != nil || rec.Body.Len() < len(big) {
		t.Fatalf("%v: %d bytes", err, rec.Body.Len())
	}
	if n := a.answerQuota.Total(); n != 0 {
		t.Errorf("%d bytes are charged for what is written", n)
	}
	other, _ := answerOf(a, http.MethodGet, "lamp")
	defer other.detach()
	if err := other.charge(1<<20 - 8<<10); err != nil {
		t.Fatal(err)
	}
	if err := s.send("event", "", "small"); err != nil {
		t.Errorf("a small event: %v", err)
	}
	if err := s.send("event", "", big); watchword.CodeOf(err) != watchword.Busy {
		t.Errorf("an event for which there is no room: %v", err)
	}
	if reason, started := w.finish(); !errors.Is(reason, errAnswerEnded) || !started {
		t.Errorf("the stream then: %v, started %v", reason, started)
	}
}

// Bodies of requests share the account, from before they are read: a body may be sent as slowly as its request may last.
func TestBodiesUnderWayAreBounded(t *testing.T) {
	a := &API{answerQuota: newResponseQuota(1<<20, 0)}
	request := func(length int64) (*responseWriter, error) {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.ContentLength = length
		w, _ := answerOf(a, http.MethodPost, "lamp")
		return w, w.chargeRequestBody(r)
	}
	for length, want := range map[int64]int{32 << 10: 1 << 20 / (28 << 10), -1: 1 << 20 / (maxBody - responseFreeBytes), 1 << 40: 1 << 20 / (maxBody - responseFreeBytes)} {
		var under []*responseWriter
		for len(under) <= want {
			w, err := request(length)
			if err != nil {
				if watchword.CodeOf(err) != watchword.Busy || !strings.Contains(err.Error(), "(limits.subject_body_bytes)") {
					t.Fatal(err)
				}
				w.detach()
				break
			}
			if err := w.chargeRequestBody(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", 9000)))); err != nil { // counts once
				t.Fatal(err)
			}
			under = append(under, w)
		}
		if len(under) != want {
			t.Errorf("there is room for %d bodies of %d, want %d", len(under), length, want)
		}
		small, err := request(responseFreeBytes)
		if err != nil {
			t.Errorf("a small one: %v", err)
		}
		for _, w := range append(under, small) {
			w.detach()
		}
		if n := a.answerQuota.Total(); n != 0 {
			t.Errorf("%d bytes are charged for nothing", n)
		}
	}
}

// beginWriter tells when an answer begins to be written: all that it is charged is charged by then, and its next write waits
// for the reader. Telling before the last charge would measure an answer whose goroutine has not come so far.
type beginWriter struct {
	http.ResponseWriter
	began chan<- struct{}
}

func (w *beginWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *beginWriter) WriteHeader(status int) {
	w.began <- struct{}{}
	w.ResponseWriter.WriteHeader(status)
}

// What is counted is what the answers take of memory, within a quarter, however they are written.
func TestResponseMemoryIsChargedExactly(t *testing.T) {
	for name, shape := range map[string]struct{ each, pieces int }{
		"whole": {60_000, 1}, "in pieces": {60_000, 37}, "a page that is larger than what is held back": {300_000, 1}, "small ones": {10_000, 3},
	} {
		t.Run(name, func(t *testing.T) {
			a := &API{answerQuota: newResponseQuota(0, 0)}
			const readers = 40
			size := 1
			stuck := make(chan struct{}, readers)
			h := func(w http.ResponseWriter, r *http.Request) {
				aw := newResponseWriter(&beginWriter{w, stuck}, r)
				defer aw.detach()
				aw.quota = a.answerQuota
				page := bytes.Repeat([]byte("x"), size/shape.pieces)
				for range shape.pieces {
					_, _ = aw.Write(page)
				}
				page = nil
				_, _ = aw.finish() // the reader closes the connection in the end
			}
			serveOverPipes(t, false, h, func(c *http.Client) {
				// ask begins requests and does not read their answers.
				ask := func() (conns []io.Closer) {
					for range readers {
						conn, err := c.Transport.(*http.Transport).DialContext(t.Context(), "", "")
						if err != nil {
							t.Fatal(err)
						}
						if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
							t.Fatal(err)
						}
						conns = append(conns, conn)
						testwait.For(t, "an answer that is not read", stuck)
					}
					return conns
				}
				few := ask()
				before := heap()
				size = shape.each
				many := ask()
				used := heap() - before
				// What a connection and its request take beside the answer.
				before = heap()
				size = 1
				more := ask()
				used -= heap() - before
				counted := a.answerQuota.Total() + readers*responseFreeBytes
				t.Logf("%d bytes each, %d counted", used/readers, counted/readers)
				if r := float64(used) / float64(counted); r < 0.75 || r > 1.25 {
					t.Errorf("%.2f times what is counted", r)
				}
				for _, c := range append(append(few, many...), more...) {
					_ = c.Close()
				}
			})
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
