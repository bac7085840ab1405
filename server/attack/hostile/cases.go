package hostile

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Cases returns all cases, new ones at each call, since some have counters.
func Cases() []Case {
	return slices.Concat(unauthenticatedPeerCases(), tlsCases(), bodyCases(), tokenCases(), answerCases(), http1Cases(), http2Cases(), sessionCases(), packetCases(), floodCases(), commandCases())
}

// headerTake is how much of one connection a device may read where headers, or bytes of no
// protocol, never end: what it reads before it notices, and the network's buffers.
const headerTake = 1 << 20

// bodyTake is the same for endless bodies: an answer may have 1 MiB, and an HTTP/2 client may let 4
// MiB arrive before it reads.
const bodyTake = 6 << 20

// http1Take is the same for bodies over HTTP/1.1.
const http1Take = 2 << 20

// packetTake is the same for an MQTT packet that is too long, which its header shows.
const packetTake = 512 << 10

// on limits f to some paths; the good server answers the others.
func on(f func(w http.ResponseWriter, r *http.Request), paths ...string) func(*Server, http.ResponseWriter, *http.Request) bool {
	return func(_ *Server, w http.ResponseWriter, r *http.Request) bool {
		if !slices.Contains(paths, r.URL.Path) {
			return false
		}
		f(w, r)
		return true
	}
}

// always is [on] for every path.
func always(f func(w http.ResponseWriter, r *http.Request)) func(*Server, http.ResponseWriter, *http.Request) bool {
	return func(_ *Server, w http.ResponseWriter, r *http.Request) bool {
		f(w, r)
		return true
	}
}

// silent answers nothing until the device closes the connection.
func silent(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // until its end, or the connection's
	<-r.Context().Done()
}

// stalling begins a valid answer and stops.
func stalling(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte("{")) // the peer has closed the connection
	flush(w)
	silent(w, r)
}

func flush(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // the peer has closed the connection
}

// trickle sends a byte every few seconds and never ends.
func trickle(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		if _, err := w.Write([]byte(" ")); err != nil {
			return
		}
		flush(w)
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
}

// Sizes of endless answers, in bytes: a device that reads all of it has failed, and the test's
// machine has not run out of memory. endless is for answers that a device may read a part of, see
// bodyTake.
const (
	endless = 8 << 20
	long    = 3 << 20
	repeats = 5_000 // of short parts
)

// filler is repeated for an endless text.
var filler = strings.Repeat("x", 1000)

// repeat sends a text until the device closes the connection, or bytes have been sent.
func repeat(w io.Writer, text string, bytes int) {
	b := []byte(strings.Repeat(text, max(1, 16<<10/len(text))))
	for n := 0; n < min(bytes, repeats*len(text)); n += len(b) {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}
