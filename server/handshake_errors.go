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

	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
)

// Reasons of failed TLS handshakes, as labels of the metric; the set is closed.
const (
	handshakeVersion     = "version"     // no TLS version in common
	handshakeALPN        = "alpn"        // no application protocol in common (ALPN)
	handshakeCertificate = "certificate" // the client sent an alert about the server's certificate
	handshakeTimeout     = "timeout"     // the handshake took too long
	handshakePlain       = "plain"       // the client does not speak TLS
	handshakeClosed      = "closed"      // the client closed the connection without an alert
	handshakeBusy        = "busy"        // too many handshakes were waiting
	handshakeOther       = "other"
)

var handshakeReasons = []string{handshakeVersion, handshakeALPN, handshakeCertificate, handshakeTimeout, handshakePlain, handshakeClosed, handshakeBusy, handshakeOther}

// handshakeReason classifies a failed handshake by the text of its error. Most of these errors have
// no type in Go, and net/http logs only text; a test with real handshakes holds the texts.
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
	case has("too many handshakes"): // text of internal/fair
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

// Limits of logged handshake failures: one a second of each network (burst 10), and so many of all.
const (
	handshakeLogRate  = 5 // a second
	handshakeLogBurst = 20
)

// handshakes counts failed TLS handshakes and logs some of them. It is safe for concurrent use.
type handshakes struct {
	log   *slog.Logger
	now   func() time.Time
	total *prometheus.CounterVec
	from  *ratelimit.Map[netip.Prefix]

	mu         sync.Mutex
	logLimiter *rate.Limiter
	leftOut    int64 // failures not logged since the last line
}

func newHandshakes(l *slog.Logger, now func() time.Time) *handshakes {
	h := &handshakes{
		log: l, now: now, logLimiter: rate.NewLimiter(handshakeLogRate, handshakeLogBurst), from: ratelimit.NewBurst[netip.Prefix](1, 10, ""),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "watchword_tls_handshakes_failed_total", Help: "TLS handshakes that failed, by listener and reason.",
		}, []string{"listener", "reason"}),
	}
	for _, listener := range []string{"https", "mqtts", "metrics"} {
		for _, reason := range handshakeReasons {
			h.total.WithLabelValues(listener, reason) // created at start, so that the first failure has a rate
		}
	}
	return h
}

// failed counts a failure, and logs it within the limits.
func (h *handshakes) failed(listener, remote, text string) {
	reason := handshakeReason(text)
	defer h.total.WithLabelValues(listener, reason).Inc() // counted after logging: a reader that sees the count finds the line
	now := h.now()
	ap, _ := netip.ParseAddrPort(remote) // unparsable addresses share one limit
	h.mu.Lock()
	if h.from.Take(fair.Network(ap.Addr().Unmap()), now) != nil || !h.logLimiter.AllowN(now, 1) {
		h.leftOut++
		h.mu.Unlock()
		return
	}
	leftOut := h.leftOut
	h.leftOut = 0
	h.mu.Unlock()
	const most = 200 // the text contains protocol names chosen by the client
	if len(text) > most {
		text = text[:most] + "…"
	}
	h.log.LogAttrs(context.Background(), slog.LevelInfo, "TLS handshake failed",
		slog.String("listener", listener), slog.String("reason", reason), slog.String("remote", remote), slog.String("err", text), slog.Int64("left_out", leftOut))
}

// mqtts is called by the MQTT engine for a connection that ended within its handshake.
func (h *handshakes) mqtts(remote string, err error) {
	if errors.Is(err, net.ErrClosed) { // closed by this server
		return
	}
	h.failed("mqtts", remote, err.Error())
}

// errorLog returns the logger for net/http: failed handshakes are counted, other lines are logged
// at level debug.
func (h *handshakes) errorLog(listener string) *log.Logger {
	return log.New(httpLines{h, listener}, "", 0)
}

type httpLines struct {
	of       *handshakes
	listener string
}

func (l httpLines) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	if rest, ok := strings.CutPrefix(text, "http: TLS handshake error from "); ok {
		remote, reason, _ := strings.Cut(rest, ": ")
		l.of.failed(l.listener, remote, reason)
		return len(line), nil
	}
	l.of.log.Debug(text)
	return len(line), nil
}
