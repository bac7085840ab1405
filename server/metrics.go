package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// operationsServer serves /metrics, /healthz and /readyz on a listener of its own. On loopback it has no TLS; see checkHost. Where a
// token is configured, /metrics requires it, and /readyz says without it only whether the server is ready.
func (s *Server) operationsServer() *http.Server {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), brokerCollector{s.broker}, s.handshakes.total,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_sessions", Help: "Live sessions, over all transports, and requests that wait; not those that are being answered."}, func() float64 {
			return float64(s.guard.Count())
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "watchword_log_lines_left_out_total", Help: "Lines that were not printed, since their budget was used up."}, func() float64 {
			return float64(s.o.budget.LeftOut())
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "watchword_store_statements_total", Help: "Queries that the store has run."}, func() float64 {
			n, _ := s.store.Reads()
			return float64(n)
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "watchword_store_rows_read_total", Help: "Rows that the queries of the store have returned."}, func() float64 {
			_, n := s.store.Reads()
			return float64(n)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_clock_trusted", Help: "1 while the clock of the machine is trusted, else 0."}, func() float64 {
			if s.clock.Check() != nil {
				return 0
			}
			return 1
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_superseded", Help: "1 if another server was restored from a backup of this one, else 0."}, func() float64 {
			if s.keys.CheckNotSuperseded() != nil {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_clock_offset_seconds", Help: "How far the clock of the machine is ahead of the time that the server goes by; 0 while it is trusted."}, func() float64 {
			st := s.clock.Read()
			return st.Wall.Sub(st.Time).Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_backup_age_seconds", Help: "How long ago the last complete backup was made; +Inf: none is known."}, func() float64 {
			if age, ok := s.backupAge(); ok {
				return age.Seconds()
			}
			return math.Inf(1)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_endings", Help: "How many things that a person relies on end within a week; GET /v1/notices lists them."}, func() float64 {
			return float64(len(s.endingWarnings()))
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "watchword_backup_failures_total", Help: "Scheduled backups that failed."}, func() float64 {
			return float64(s.backups.failures.Load())
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_backup_journal_lag_seconds", Help: "For how long the journal lacks changes of authority; 0 where none is kept."}, func() float64 {
			return s.journal.lag(s.o.Now()).Seconds()
		}))
	if s.acme != nil {
		r.MustRegister(s.acmeMetrics()...)
	}
	r.MustRegister(append(s.measured.collectors(), stateCollector{s})...)
	mux := http.NewServeMux()
	metrics, authorized := promhttp.HandlerFor(r, promhttp.HandlerOpts{}), bearerCheck(s.cfg.Metrics.Token)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !authorized(r) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="metrics"`)
			http.Error(w, "the token of metrics.token_file is required", http.StatusUnauthorized)
			return
		}
		metrics.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := s.store.Ping(ctx); err != nil { // a write: the server is ready only if it can store
			notReady(w, authorized(r), err)
			return
		}
		if err := cmp.Or(s.clock.Check(), s.keys.CheckNotSuperseded()); err != nil {
			notReady(w, authorized(r), err)
			return
		}
		w.WriteHeader(http.StatusOK)
		if !authorized(r) {
			return
		}
		for _, line := range slices.Concat(s.backupWarnings(), s.acmeWarnings(), s.endingWarnings()) {
			_, _ = fmt.Fprintf(w, "warning: %s\n", line) // the error means that the client has closed the connection
		}
	})
	var handler http.Handler = mux
	if s.cfg.Metrics.Token == "" { // a web page has no token, and collectors reach the server by any name
		handler = checkHost(s.cfg.hosts(), mux)
	}
	h := newHTTPServer(handler)
	h.ErrorLog = s.handshakes.errorLog("metrics")
	h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout, h.MaxHeaderBytes = 10*time.Second, 10*time.Second, 30*time.Second, 16<<10
	return h
}

// metricsOnLoopback reports whether only this machine reaches the metrics.
func (s *Server) metricsOnLoopback() bool {
	loopback, err := loopbackAddress(s.cfg.Metrics.Listen)
	return err == nil && loopback
}

// bearerCheck returns a function that reports whether a request has the token in its header Authorization (RFC 6750 §2.1). An empty
// token lets every request pass. The time that a comparison takes does not depend on the token.
func bearerCheck(token string) func(*http.Request) bool {
	want := sha256.Sum256([]byte(token))
	return func(r *http.Request) bool {
		if token == "" {
			return true
		}
		scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(sent))
		return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1
	}
}

// notReady answers 503, with the reason if it may be shown.
func notReady(w http.ResponseWriter, show bool, err error) {
	text := "not ready"
	if show {
		text = publicText(err)
	}
	http.Error(w, text, http.StatusServiceUnavailable)
}

// publicText returns the part of an error that may be shown.
func publicText(err error) string {
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		return e.Detail
	}
	return "the store does not answer"
}

func (s *Server) serveOperations(l net.Listener) error {
	if err := s.operationsHTTP.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// brokerCollector collects the metrics of the MQTT engine.
type brokerCollector struct{ broker *mqtt.Broker }

var refusalsDesc = prometheus.NewDesc("watchword_mqtt_refusals_total", "What was refused over MQTT, by code.", []string{"code"}, nil)

// Describe sends nothing, so Prometheus does not check the set of metrics.
func (e brokerCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the current values.
func (e brokerCollector) Collect(out chan<- prometheus.Metric) {
	st := e.broker.Stats()
	for _, m := range []struct {
		name, help string
		kind       prometheus.ValueType
		value      int64
	}{
		{"connections", "Connections, with those before CONNECT.", prometheus.GaugeValue, st.Connections},
		{"clients", "Connected clients.", prometheus.GaugeValue, st.Clients},
		{"subscriptions", "Standing subscriptions.", prometheus.GaugeValue, st.Subscriptions},
		{"subscription_bytes", "Bytes of memory that subscriptions take.", prometheus.GaugeValue, st.SubscriptionBytes},
		{"connection_bytes", "Bytes that topic aliases and packet identifiers of QoS 2 take, beyond 4 KiB of each connection or session.", prometheus.GaugeValue, st.ConnectionBytes},
		{"queued_bytes", "Bytes that are queued for connected clients, beyond 16 KiB of each.", prometheus.GaugeValue, st.QueuedBytes},
		{"connects_total", "Accepted CONNECTs.", prometheus.CounterValue, st.Connects},
		{"connects_refused_total", "Refused CONNECTs.", prometheus.CounterValue, st.RefusedConnects},
		{"connections_shed_total", "Connections of a flood, closed before anything was spent on them.", prometheus.CounterValue, st.FloodClosed},
		{"publishes_received_total", "Publishes from clients.", prometheus.CounterValue, st.Received},
		{"publishes_sent_total", "Publishes to clients.", prometheus.CounterValue, st.Sent},
		{"commands_handed_over_total", "Commands put on their way.", prometheus.CounterValue, st.Commands},
		{"messages_too_large_total", "Messages that a client would not take.", prometheus.CounterValue, st.TooLarge},
		{"slow_clients_closed_total", "Connections cut since they were not read.", prometheus.CounterValue, st.SlowClosed},
		{"publishes_delayed_total", "Publishes that waited for their rate.", prometheus.CounterValue, st.DelayedPublishes},
		{"takeovers_total", "Connections whose client connected again.", prometheus.CounterValue, st.Takeovers},
		{"refreshes_total", "Sessions that were refreshed with a newer token.", prometheus.CounterValue, st.Refreshes},
		{"messages_dropped_total", "Messages that found no room where they were to wait.", prometheus.CounterValue, st.Dropped},
		{"messages_expired_total", "Messages whose life ended before they were sent.", prometheus.CounterValue, st.Expired},
		{"sessions", "Sessions that outlive their connection, with one or without.", prometheus.GaugeValue, st.PersistentSessions},
		{"offline_messages", "Messages that wait for sessions.", prometheus.GaugeValue, st.OfflineMessages},
		{"offline_bytes", "Bytes of messages that wait for sessions.", prometheus.GaugeValue, st.OfflineBytes},
		{"retained_messages", "Topics with a retained message.", prometheus.GaugeValue, st.Retained},
		{"retained_bytes", "Bytes of memory that retained messages take, with those that wait to be written.", prometheus.GaugeValue, st.RetainedBytes},
		{"wills", "Wills that stand: of connections, and of those that ended and whose will is not due yet.", prometheus.GaugeValue, st.Wills},
		{"will_bytes", "Bytes of these.", prometheus.GaugeValue, st.WillBytes},
	} {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("watchword_mqtt_"+m.name, m.help, nil, nil), m.kind, float64(m.value))
	}
	for code, n := range st.Refusals {
		out <- prometheus.MustNewConstMetric(refusalsDesc, prometheus.CounterValue, float64(n), string(code))
	}
}
