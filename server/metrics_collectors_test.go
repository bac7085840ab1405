package server_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server"
)

// scrape returns the metrics of a running server.
func scrape(t *testing.T, info server.Info) string {
	t.Helper()
	status, body, err := fetch(t, "GET", "http://"+info.Metrics+"/metrics", "")
	check(t, err)
	if status != 200 {
		t.Fatalf("/metrics: %d", status)
	}
	return body
}

func TestMetricsOfARunningServer(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	info, stop := runAt(t, c, quiet)
	defer stop()
	jwk, err := os.ReadFile(filepath.Join(c.Data, "operator.jwk"))
	check(t, err)
	key, err := jose.ParsePrivateJWK(jwk, jose.ForSigning)
	check(t, err)
	cl := client(t, info, "operator", key, nil)
	_, err = cl.CreateDevice(t.Context(), "lamp-1", nil, 0)
	check(t, err)
	other, err := jose.GenerateKey(jose.P256)
	check(t, err)
	if _, err := client(t, info, "operator", other, nil).Device(t.Context(), "lamp-1"); err == nil {
		t.Error("another key is accepted")
	}
	if _, err := cl.Device(t.Context(), "no-lamp"); err == nil {
		t.Error("a device that does not exist is found")
	}
	body := scrape(t, info)
	for _, line := range []string{
		`watchword_http_requests_total\{route="POST /v1/devices",status="201"\} 1`,
		`watchword_http_requests_total\{route="GET /v1/devices/\{id\}",status="404"\} 1`,
		`watchword_http_requests_total\{route="POST /oauth/token",status="200"\} 1`,
		`watchword_http_request_seconds_count\{route="POST /v1/devices"\} 1`,
		`watchword_tokens_issued_total 1`,
		`watchword_tokens_refused_total\{code="client_invalid"\} 1`,
		`watchword_devices\{state="new"\} 1`, `watchword_devices\{state="active"\} 0`, `watchword_devices\{state="suspended"\} 0`, `watchword_devices\{state="revoked"\} 0`,
		`watchword_store_write_seconds_count [1-9][0-9]*`,
		`watchword_store_bytes\{file="database"\} [1-9][0-9.e+]*`, `watchword_store_bytes\{file="wal"\} [1-9][0-9.e+]*`,
		`watchword_log_entries [1-9][0-9]*`, `watchword_log_checkpoint_entries [0-9]+`, `watchword_log_cosigned_entries [0-9]+`,
		`watchword_expiry_seconds\{of="certificate"\} [1-9][0-9.e+]*`, `watchword_expiry_seconds\{of="trust_bundle"\} [1-9][0-9.e+]*`,
		`watchword_backup_failed 0`,
		`watchword_build_info\{goversion="go[^"]+",version="test"\} 1`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(body) {
			t.Errorf("no %s", line)
		}
	}
	for _, raw := range []string{"lamp-1", "no-lamp"} {
		if strings.Contains(body, raw) {
			t.Errorf("a label has the path of a request: %s", raw)
		}
	}
	checkQueries(t, body)
	checkWithPromtool(t, body)
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	check(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "watchword_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

var (
	metricName  = regexp.MustCompile(`\b(?:watchword|process|go)_[a-z0-9_]+\b`)
	selector    = regexp.MustCompile(`\b((?:watchword|process|go)_[a-z0-9_]+)\{([^}]*)\}`)
	labelName   = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	grouping    = regexp.MustCompile(`by \(([^)]*)\)`)
	ruleQuery   = regexp.MustCompile(`(?m)^        expr: (.+)$`)
	ofCollector = []string{"instance", "job"} // labels that Prometheus adds
)

// checkQueries fails for each query of the dashboard and of the alert rules that names a metric or a label which the scrape has not.
func checkQueries(t *testing.T, body string) {
	t.Helper()
	labels := map[string][]string{} // of each metric
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := metricName.FindString(line)
		if labels[name] == nil {
			labels[name] = []string{}
		}
		if m := selector.FindStringSubmatch(line); m != nil {
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				labels[name] = append(labels[name], l[1])
			}
		}
	}
	var queries []string
	b, err := os.ReadFile("../deploy/grafana/dashboard.json")
	check(t, err)
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	check(t, json.Unmarshal(b, &dashboard))
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			queries = append(queries, q.Expr)
		}
	}
	rules, err := os.ReadFile("../deploy/prometheus/alerts.yml")
	check(t, err)
	for _, m := range ruleQuery.FindAllStringSubmatch(string(rules), -1) {
		queries = append(queries, m[1])
	}
	if len(queries) < 30 {
		t.Fatalf("found %d queries", len(queries))
	}
	for _, q := range queries {
		known := slices.Clone(ofCollector)
		names := metricName.FindAllString(q, -1)
		for _, name := range names {
			if labels[name] == nil {
				t.Errorf("no scrape has %s: %s", name, q)
			}
			known = append(known, labels[name]...)
		}
		for _, m := range selector.FindAllStringSubmatch(q, -1) {
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(ofCollector, l[1]) && !slices.Contains(labels[m[1]], l[1]) {
					t.Errorf("%s has no label %s: %s", m[1], l[1], q)
				}
			}
		}
		for _, m := range grouping.FindAllStringSubmatch(q, -1) {
			for l := range strings.SplitSeq(m[1], ", ") {
				if !slices.Contains(known, l) {
					t.Errorf("no metric has the label %s: %s", l, q)
				}
			}
		}
		if len(names) == 0 && !strings.Contains(q, "up{") {
			t.Errorf("no metric: %s", q)
		}
	}
}

// checkWithPromtool has Prometheus's own tool check the alert rules and a scrape. tools/install-outside.sh fetches it.
func checkWithPromtool(t *testing.T, body string) {
	t.Helper()
	tool, err := filepath.Abs("../bin/outside/promtool")
	check(t, err)
	if _, err := os.Stat(tool); err != nil {
		if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
			t.Error(err)
		}
		t.Log("not checked: ", err)
		return
	}
	if out, err := exec.CommandContext(t.Context(), tool, "check", "rules", "../deploy/prometheus/alerts.yml").CombinedOutput(); err != nil || !strings.Contains(string(out), "SUCCESS: 14 rules found") {
		t.Errorf("%v: %s", err, out)
	}
	c := exec.CommandContext(t.Context(), tool, "check", "metrics")
	c.Stdin = strings.NewReader(body)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
