package server

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/keyring"
)

// measured are the metrics that parts of the server count into. The values of their labels are bounded: routes of the API, HTTP
// statuses, error codes and states of commands. It is safe for concurrent use.
type measured struct {
	requests  *prometheus.CounterVec
	latency   *prometheus.HistogramVec
	issued    prometheus.Counter
	refused   *prometheus.CounterVec
	commands  *prometheus.CounterVec
	receipts  prometheus.Histogram
	storeWait prometheus.Histogram
}

func newMeasured() *measured {
	m := &measured{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "watchword_http_requests_total", Help: "HTTP requests that were answered, by route (method and path pattern; other: no route has the path) and status.",
		}, []string{"route", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "watchword_http_request_seconds", Help: "How long HTTP requests took from their headers to the end of the answer, by route. Streams of events are not measured.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"route"}),
		issued: prometheus.NewCounter(prometheus.CounterOpts{Name: "watchword_tokens_issued_total", Help: "Access tokens that were issued."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "watchword_tokens_refused_total", Help: "Requests for an access token that were refused, by error code; docs/errors.md explains the codes.",
		}, []string{"code"}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "watchword_commands_total", Help: "Commands that entered a state, by state. A command enters several: queued, sent, delivered and one of the final states, such as done, failed or expired.",
		}, []string{"state"}),
		receipts: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "watchword_command_receipt_seconds", Help: "How long it took from the order of a command to the signed receipt of the device.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86400},
		}),
		storeWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "watchword_store_write_seconds", Help: "How long a write to the store took until it was durable on the disk, with the time that it waited for others.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
	}
	for _, state := range []watchword.CommandState{
		watchword.Queued, watchword.Sent, watchword.Delivered, watchword.Accepted, watchword.Done, watchword.Refused, watchword.Failed, watchword.Interrupted,
		watchword.Expired, watchword.Cancelled, watchword.Unknown, watchword.Undeliverable,
	} {
		m.commands.WithLabelValues(string(state)) // created at the start, so that the first command has a rate
	}
	return m
}

func (m *measured) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.latency, m.issued, m.refused, m.commands, m.receipts, m.storeWait}
}

// request counts an HTTP request. took is negative for a stream.
func (m *measured) request(route string, status int, took time.Duration) {
	if route == "" {
		route = "other"
	}
	if http.StatusText(status) == "" {
		status = 0 // no status that this server answers with: the connection broke off before one
	}
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	if took >= 0 {
		m.latency.WithLabelValues(route).Observe(took.Seconds())
	}
}

// token counts a request for an access token.
func (m *measured) token(err error) {
	if err == nil {
		m.issued.Inc()
		return
	}
	m.refused.WithLabelValues(string(watchword.CodeOf(err))).Inc()
}

// command counts a command that entered a state.
func (m *measured) command(r command.Row) {
	m.commands.WithLabelValues(string(r.State)).Inc()
	if r.Status != "" && !r.SettledAt.IsZero() {
		m.receipts.Observe(max(r.SettledAt.Sub(r.Created), 0).Seconds())
	}
}

// scrapeTime is how long a scrape waits for the store.
const scrapeTime = 2 * time.Second

// stateCollector collects what is read at each scrape: of the store, its files, the log and what expires.
type stateCollector struct{ s *Server }

// Describe sends nothing: what the store does not answer in time is left out.
func (stateCollector) Describe(chan<- *prometheus.Desc) {}

// gauge sends a value with labels as name and value in turn.
func gauge(out chan<- prometheus.Metric, value float64, name, help string, labels ...string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), prometheus.GaugeValue, value, values...)
}

// Collect sends the current values.
func (c stateCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	now := c.s.o.Now()
	gauge(out, 1, "watchword_build_info", "1; the labels are the version of the program and of the Go toolchain that built it.", "version", c.s.o.Version, "goversion", runtime.Version())
	c.collectDevices(ctx, out)
	c.collectStore(out)
	c.collectLog(ctx, out, now)
	c.collectExpiry(out, now)
	failed := 0.0
	c.s.backups.mu.Lock()
	if c.s.backups.scheduled != nil {
		failed = 1
	}
	c.s.backups.mu.Unlock()
	gauge(out, failed, "watchword_backup_failed", "1 if the last scheduled backup failed, else 0.")
}

func (c stateCollector) collectDevices(ctx context.Context, out chan<- prometheus.Metric) {
	sum := map[watchword.State]int64{}
	for _, t := range c.s.o.tenants() {
		counts, err := c.s.registry.Totals(ctx, t, watchword.Device)
		if err != nil {
			return // unavailable, as /readyz says
		}
		for state, n := range counts {
			sum[state] += n
		}
	}
	for _, state := range []watchword.State{watchword.New, watchword.Active, watchword.Suspended, watchword.Revoked} {
		gauge(out, float64(sum[state]), "watchword_devices", "Devices that are registered, by state: new (not enrolled yet), active, suspended, revoked.", "state", string(state))
	}
}

func (c stateCollector) collectStore(out chan<- prometheus.Metric) {
	for file, kind := range map[string]string{databaseFile: "database", databaseFile + "-wal": "wal"} {
		size := 0.0
		if info, err := os.Stat(filepath.Join(c.s.cfg.Data, file)); err == nil {
			size = float64(info.Size())
		}
		gauge(out, size, "watchword_store_bytes", "Bytes of the files of the store: database, and wal, the write-ahead log, whose content moves into the database from time to time.", "file", kind)
	}
}

func (c stateCollector) collectLog(ctx context.Context, out chan<- prometheus.Metric, now time.Time) {
	tree, err := c.s.store.Tree(ctx)
	if err != nil {
		return
	}
	gauge(out, float64(tree.Size()), "watchword_log_entries", "Entries of the audit log.")
	signed, cosigned := c.s.checkpoints.Sizes()
	gauge(out, float64(signed), "watchword_log_checkpoint_entries", "Entries that the last signed checkpoint of the audit log covers.")
	gauge(out, float64(cosigned), "watchword_log_cosigned_entries", "Entries that the last checkpoint covers which enough witnesses have cosigned; without witnesses, the last signed one.")
	if last, err := c.s.store.LastCheckpoint(ctx); err == nil && !last.At.IsZero() {
		gauge(out, now.Sub(last.At).Seconds(), "watchword_log_checkpoint_age_seconds", "How long ago the last checkpoint of the audit log was signed. One is signed only where there are new entries.")
	}
}

func (c stateCollector) collectExpiry(out chan<- prometheus.Metric, now time.Time) {
	const help = "Seconds until what is named ends: certificate, which clients get over TLS, and trust_bundle, with which devices verify the keys of the server. Negative: it has ended."
	if pair, err := c.s.certificate(&tls.ClientHelloInfo{ServerName: hostOf(c.s.info.URL)}); err == nil && pair.Leaf != nil {
		gauge(out, pair.Leaf.NotAfter.Sub(now).Seconds(), "watchword_expiry_seconds", help, "of", "certificate")
	}
	st := c.s.rotator.Status(now)
	if !st.BundleExpires.IsZero() {
		gauge(out, st.BundleExpires.Sub(now).Seconds(), "watchword_expiry_seconds", help, "of", "trust_bundle")
	}
	ends := map[keyring.Role]time.Time{} // of the last key of each role that has an end
	for _, k := range st.Keys {
		if k.State.Valid() && k.Ends.After(ends[k.Role]) {
			ends[k.Role] = k.Ends
		}
	}
	for role, end := range ends {
		gauge(out, end.Sub(now).Seconds(), "watchword_key_expiry_seconds", "Seconds until the last key of a role that has an end is removed from the trust bundle. A role whose keys have none is not listed.", "role", string(role))
	}
}
