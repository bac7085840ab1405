package server

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/watchword-iot/watchword/internal/rates"
)

// The reasons of handshakes that fail, as the metric has them: the set is closed, whatever clients send.
const (
	handshakeVersion     = "version"     // the client offers no version that the server takes
	handshakeALPN        = "alpn"        // the client wants none of the server's application protocols
	handshakeCertificate = "certificate" // the client refused the server's certificate, with an alert
	handshakeTimeout     = "timeout"     // the client did not end it in time
	handshakePlain       = "plain"       // what came is no TLS
	handshakeClosed      = "closed"      // the client closed the connection without an alert
	handshakeBusy        = "busy"        // too many waited for their turn
	handshakeOther       = "other"
)

var handshakeReasons = []string{handshakeVersion, handshakeALPN, handshakeCertificate, handshakeTimeout, handshakePlain, handshakeClosed, handshakeBusy, handshakeOther}

// handshakeReason tells why a handshake failed. Go has no types for most of it, and net/http gives no more than the text;
// a test with real handshakes holds the texts.
func handshakeReason(text string) string {
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(text, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("too many handshakes"): // as internal/fair says it
		return handshakeBusy
	case has("unsupported versions", "protocol version"):
		return handshakeVersion
	case has("application protocol"):
		return handshakeALPN
	case has("i/o timeout", "deadline exceeded"):
		return handshakeTimeout
	case has("does not look like a TLS handshake", "HTTP request to an HTTPS server"):
		return handshakePlain
	case has("remote error: tls:") && has("certificate", "unknown authority"):
		return handshakeCertificate
	case has("EOF", "reset by peer", "broken pipe", "closed network connection"):
		return handshakeClosed
	}
	return handshakeOther
}

// Of handshakes that fail one a second is in the log of each network, ten at once, and so many of all.
const (
	handshakeLogRate  = 5 // a second
	handshakeLogBurst = 20
)

// handshakes counts the TLS handshakes that fail, and logs some of them. It is safe for concurrent use.
type handshakes struct {
	log   *slog.Logger
	now   func() time.Time
	total *prometheus.CounterVec
	from  *rates.Map[netip.Prefix]

	mu         sync.Mutex
	logLimiter *rate.Limiter
	leftOut    int64 // since the last line
}

func newHandshakes(l *slog.Logger, now func() time.Time) *handshakes {
	h := &handshakes{
		log: l, now: now, logLimiter: rate.NewLimiter(handshakeLogRate, handshakeLogBurst), from: rates.NewBurst[netip.Prefix](1, 10, ""),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "watchword_tls_handshakes_failed_total", Help: "TLS handshakes that failed, by listener and reason.",
		}, []string{"listener", "reason"}),
	}
	for _, listener := range []string{"https", "mqtts"} {
		for _, reason := range handshakeReasons {
			h.total.WithLabelValues(listener, reason) // there from the start, so that a rate can be taken of the first
		}
	}
	return h
}

// failed counts one, and logs it if there is room.
func (h *handshakes) failed(listener, remote, text string) {
	reason := handshakeReason(text)
	defer h.total.WithLabelValues(listener, reason).Inc() // who sees the count finds the line
	now := h.now()
	ap, _ := netip.ParseAddrPort(remote) // the zero address counts with its like
	h.mu.Lock()
	if h.from.Take(rates.Network(ap.Addr().Unmap()), now) != nil || !h.logLimiter.AllowN(now, 1) {
		h.leftOut++
		h.mu.Unlock()
		return
	}
	leftOut := h.leftOut
	h.leftOut = 0
	h.mu.Unlock()
	const most = 200 // the client's protocols stand in it
	if len(text) > most {
		text = text[:most] + "…"
	}
	h.log.LogAttrs(context.Background(), slog.LevelInfo, "TLS handshake failed",
		slog.String("listener", listener), slog.String("reason", reason), slog.String("remote", remote), slog.String("err", text), slog.Int64("left_out", leftOut))
}

// mqtts is told by the MQTT engine of a connection that ended within its handshake.
func (h *handshakes) mqtts(remote string, err error) {
	if errors.Is(err, net.ErrClosed) { // by this side: the server goes
		return
	}
	h.failed("mqtts", remote, err.Error())
}

// errorLog is what net/http writes its own lines to: handshakes that fail are counted, everything else is logged at debug.
func (h *handshakes) errorLog() *log.Logger { return log.New(httpLines{h}, "", 0) }

type httpLines struct{ of *handshakes }

func (l httpLines) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	if rest, ok := strings.CutPrefix(text, "http: TLS handshake error from "); ok {
		remote, reason, _ := strings.Cut(rest, ": ")
		l.of.failed("https", remote, reason)
		return len(line), nil
	}
	l.of.log.Debug(text)
	return len(line), nil
}
