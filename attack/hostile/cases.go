package hostile

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Cases returns every case, new ones at each call: some of them count.
func Cases() []Case {
	return slices.Concat(unauthenticatedPeerCases(), tlsCases(), bodyCases(), tokenCases(), answerCases(), http1Cases(), http2Cases(), sessionCases(), packetCases(), floodCases(), commandCases())
}

// headerTake is how much of one connection a device may take whose server sends endless headers, or
// endless bytes that are no protocol: what it reads before it knows, and what the network holds.
const headerTake = 1 << 20

// bodyTake is the same for endless bodies: an answer may have 1 MiB, and a client of HTTP/2 may let
// 4 MiB come before anybody reads them.
const bodyTake = 6 << 20

// http1Take is the same for bodies over HTTP/1.1.
const http1Take = 2 << 20

// packetTake is the same for an MQTT packet that is too long: its header is enough to know.
const packetTake = 512 << 10

// on leaves all paths but some to the good server.
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

// silent answers nothing until the device goes away.
func silent(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // until its end, or the connection's
	<-r.Context().Done()
}

// stalling begins a good answer and leaves it at that.
func stalling(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte("{")) // a peer that is gone
	flush(w)
	silent(w, r)
}

func flush(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // a peer that is gone
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

// What an answer without end has, in bytes: a device that takes it all has failed by then, and the
// machine of the test has not. endless is for what a device may take a part of, see bodyTake.
const (
	endless = 8 << 20
	long    = 3 << 20
	repeats = 5_000 // of short parts
)

// filler is what stands for one byte that is repeated without end.
var filler = strings.Repeat("x", 1000)

// repeat sends a text again and again until the device goes away, or bytes have been sent.
func repeat(w io.Writer, text string, bytes int) {
	b := []byte(strings.Repeat(text, max(1, 16<<10/len(text))))
	for n := 0; n < min(bytes, repeats*len(text)); n += len(b) {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}
