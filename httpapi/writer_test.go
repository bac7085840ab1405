package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
)

// countingListener counts what is handed to its connections.
type countingListener struct {
	net.Listener
	handed atomic.Int64
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l}, err
}

func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.l.handed.Add(int64(n))
	return n, err
}

var errTaken = watchword.Refuse(watchword.SubjectRevoked, "taken away")

// A client that does not read holds up neither who takes its right away nor gets a byte that was not handed over before.
func TestNothingIsHandedOverAfterAnAnswerIsRefused(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			writers := make(chan *answerWriter, 1)
			ended := make(chan error, 1)
			l := &countingListener{}
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				nc, _ := r.Context().Value(connKey{}).(net.Conn)
				aw := newAnswerWriter(w, nc)
				aw.guard()
				writers <- aw
				page := bytes.Repeat([]byte("secret "), 1<<15)
				for {
					if _, err := aw.Write(page); err != nil {
						ended <- err
						panic(http.ErrAbortHandler)
					}
				}
			}))
			l.Listener = srv.Listener
			srv.Listener = l
			srv.Config.ConnContext = ConnContext
			srv.EnableHTTP2 = http2
			if http2 {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			defer srv.Close()
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			aw := <-writers
			for last := int64(-1); last != l.handed.Load(); { // until the client's buffers are full, and the write waits
				last = l.handed.Load()
				aw.idle(50 * time.Millisecond)
			}
			aw.refuse(errTaken)
			handed := l.handed.Load()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the write succeeded")
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the handler's write goes on after refuse returned")
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil {
				t.Error("the answer looks whole")
			}
			// What TLS and HTTP/2 say at the end (an alert, a reset) is no part of the answer.
			if later := l.handed.Load() - handed; later > 200 {
				t.Errorf("%d bytes were handed over after refuse returned; the client read %d", later, n)
			}
		})
	}
}

func TestAnAnswerThatIsHeldBackIsRefusedWhole(t *testing.T) {
	rec := httptest.NewRecorder()
	aw := newAnswerWriter(rec, nil)
	aw.guard()
	aw.Header().Set("ETag", "x")
	_, _ = aw.Write([]byte("secret"))
	aw.refuse(errTaken)
	why, started := aw.finish()
	if !errors.Is(why, errTaken) || started || rec.Body.Len() > 0 {
		t.Fatalf("%v, started %v, %q", why, started, rec.Body)
	}
	aw.restart(http.Header{"Trace-Id": {"t"}})
	aw.WriteHeader(http.StatusForbidden)
	_, _ = aw.Write([]byte("problem"))
	if why, _ := aw.finish(); why != nil || rec.Code != http.StatusForbidden || rec.Body.String() != "problem" || rec.Header().Get("ETag") != "" || rec.Header().Get("Trace-Id") != "t" {
		t.Errorf("%v: %d %q %v", why, rec.Code, rec.Body, rec.Header())
	}
}

func TestAReleasedAnswerIsGiven(t *testing.T) {
	rec := httptest.NewRecorder()
	aw := newAnswerWriter(rec, nil)
	aw.guard()
	aw.refuse(errTaken)
	aw.release()
	aw.WriteHeader(http.StatusCreated)
	_, _ = aw.Write([]byte("done"))
	if why, started := aw.finish(); why != nil || !started || rec.Code != http.StatusCreated || rec.Body.String() != "done" || rec.Header().Get("Content-Length") != "4" {
		t.Errorf("%v %v: %d %q %v", why, started, rec.Code, rec.Body, rec.Header())
	}
}

// patientWriter takes each write as long as it says, or fails at its deadline.
type patientWriter struct {
	*httptest.ResponseRecorder
	mu    sync.Mutex
	until time.Time
	takes time.Duration
}

func (w *patientWriter) SetWriteDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = t
	return nil
}

func (w *patientWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	until := w.until
	w.mu.Unlock()
	if left := time.Until(until); left < w.takes {
		time.Sleep(left)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(w.takes)
	return len(b), nil
}

// Whoever reads a byte now and then is cut off within minutes, however each read is in time.
func TestAReaderWithoutPaceIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aw := newAnswerWriter(&patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: 9 * time.Second}, nil)
		aw.guard()
		aw.each = sseTimeout
		began := time.Now()
		err := aw.stream()
		for err == nil && time.Since(began) < time.Hour {
			err = aw.send([]byte("event"))
		}
		if took := time.Since(began); err == nil || took > 2*time.Minute {
			t.Errorf("cut off after %v: %v", took, err)
		}
	})
}

// A reader that keeps pace is served for as long as it wants, also with a slow moment now and then.
func TestAReaderThatPausesNowAndThenIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: 9 * time.Second}
		aw := newAnswerWriter(w, nil)
		aw.each = sseTimeout
		if err := aw.stream(); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			time.Sleep(time.Hour)
			if err := aw.send([]byte("event")); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// An answer may be written for its whole time whenever it comes: a request that waited is not cut for that.
func TestAnAnswerMayBeWrittenHoweverLateItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: writeTimeout - time.Second}
		aw := newAnswerWriter(w, nil)
		time.Sleep(maxWait)
		_, _ = io.WriteString(aw, strings.Repeat("x", 100))
		if why, _ := aw.finish(); why != nil {
			t.Error(why)
		}
		w = &patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: writeTimeout + time.Minute}
		aw = newAnswerWriter(w, nil)
		_, _ = aw.Write([]byte("x"))
		if why, _ := aw.finish(); why == nil {
			t.Error("a peer that does not read for that long is not cut off")
		}
	})
}
