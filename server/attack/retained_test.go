package attack_test

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// oddTopics is topics with characters that have a meaning in a path.
var oddTopics = []string{
	"a", "a/b", "a/b/c", "a//b", "/a", "a/", "//", ".", "..", "a/../b", "a/./b", "../../v1/devices", "a%2Fb", "100%", "a b", "a?x=1", "a;b", "$stats/x", "é/ü", "%", "self/state", strings.Repeat("long/", 60) + strings.Repeat("x", 724),
}

func retain(t *testing.T, w *pahoClient, topic, payload string) {
	t.Helper()
	_, err := w.client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Retain: true, Payload: []byte(payload), Properties: &paho.PublishProperties{ContentType: "text/plain"}})
	must(t, err)
}

func listed(t *testing.T, srv *testServer, q admin.RetainedQuery) (topics []string) {
	t.Helper()
	must(t, srv.admin.Retained(t.Context(), q, func(m api.Retained) error {
		topics = append(topics, m.Topic)
		return nil
	}))
	return topics
}

func TestOperatorsSeeAndRemoveRetainedMessages(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.PublishRate = 1 << 20 })
	srv.http = srv.client()
	_, err := srv.admin.ApplyPolicy(t.Context(), "all", []byte("for = { kind = \"odd\" }\n[[allow]]\npublish = [\"#\", \"$stats/#\"]\n"), -1)
	must(t, err)
	one := srv.enroll("one", device.Options{}, watchword.Labels{"kind": "odd"})
	two := srv.enroll("two", device.Options{}, watchword.Labels{"kind": "odd"})
	w, w2 := connectPaho(t, one, ""), connectPaho(t, two, "")
	for _, topic := range oddTopics {
		retain(t, w, topic, "of "+topic)
	}
	many := 520 // more than a page of the client
	for n := range many {
		retain(t, w2, fmt.Sprintf("many/%04d/x", n), "x")
	}

	all := listed(t, srv, admin.RetainedQuery{Owner: "one"})
	want := slices.Clone(oddTopics)
	slices.SortFunc(want, func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) })
	if !slices.Equal(all, want) {
		t.Errorf("got %q\nwant %q", all, want)
	}
	if n := len(listed(t, srv, admin.RetainedQuery{Owner: "two"})); n != many {
		t.Errorf("%d of %d are listed", n, many)
	}
	if n := len(listed(t, srv, admin.RetainedQuery{})); n != many+len(oddTopics) {
		t.Errorf("%d of %d are listed", n, many+len(oddTopics))
	}
	if got := listed(t, srv, admin.RetainedQuery{Filter: "many/+/x", Owner: "one"}); got != nil {
		t.Errorf("%q", got)
	}
	if got := listed(t, srv, admin.RetainedQuery{Filter: "a/+"}); !slices.Equal(got, []string{"a/", "a/b"}) {
		t.Errorf("%q", got)
	}
	wants(t, "an invalid filter", srv.admin.Retained(t.Context(), admin.RetainedQuery{Filter: "a/#/b"}, nil), watchword.BadRequest)

	for _, topic := range oddTopics {
		m, err := srv.admin.RetainedMessage(t.Context(), topic)
		if err != nil || m.Topic != topic || string(m.Payload) != "of "+topic || m.Owner != "one" || !m.Deliverable || m.ContentType != "text/plain" || m.Bytes != len("of "+topic) || m.MemoryBytes < m.Bytes {
			t.Errorf("%q: %v %+v", topic, err, m)
		}
	}
	_, err = srv.admin.Suspend(t.Context(), "one", "")
	must(t, err)
	if m, err := srv.admin.RetainedMessage(t.Context(), "a"); err != nil || m.Deliverable {
		t.Errorf("of a suspended subject: %v %+v", err, m)
	}
	for _, topic := range oddTopics {
		must(t, srv.admin.DeleteRetained(t.Context(), topic))
		wants(t, topic, srv.admin.DeleteRetained(t.Context(), topic), watchword.NotFound)
	}
	if got := listed(t, srv, admin.RetainedQuery{Owner: "one"}); got != nil {
		t.Errorf("%q are left", got)
	}
	shown, deleted := map[string]bool{}, map[string]bool{}
	entries, err := srv.admin.FindEntries(t.Context(), admin.LogQuery{Kind: "retained.*"}, 1000)
	must(t, err)
	for _, e := range entries {
		switch {
		case e.Kind == audit.RetainedShow && e.Data["owner"] == "one":
			shown[e.Object] = true
		case e.Kind == audit.RetainedDelete && e.Data["owner"] == "one" && e.Outcome == string(audit.Done):
			deleted[e.Object] = true
		}
	}
	if len(shown) != len(oddTopics) || len(deleted) != len(oddTopics) {
		t.Errorf("the log has %d shown and %d deleted of %d", len(shown), len(deleted), len(oddTopics))
	}
}

// Rights to single topics are rights to paths, however a topic is written into one.
func TestRightsToRetainedMessages(t *testing.T) {
	srv := serve(t, nil)
	srv.http = srv.client()
	_, err := srv.admin.ApplyPolicy(t.Context(), "some", []byte(`for = {}
[[allow]]
publish = ["#"]
get = ["/v1/retained/open/#"]
[[deny]]
get = ["/v1/retained/open/+/secret", "/v1/retained/open/shut/#"]
`), -1)
	must(t, err)
	d := srv.enroll("one", device.Options{}, nil)
	w := connectPaho(t, d, "")
	tok := srv.token(d)
	for _, topic := range []string{"open/a", "open/x/secret", "open/shut/../a", "open//secret", "open/../shut", "shut", "open/a/", "open/shut//"} {
		retain(t, w, topic, topic)
	}
	encoded := func(topic string) string { return strings.ReplaceAll(url.PathEscape(topic), ".", "%2E") }
	for path, status := range map[string]int{
		encoded("open/a"): 200, "open/a": 200, encoded("open/a/"): 200, encoded("open/../shut"): 200, // the topic that is so called, and no step up
		encoded("open/x/secret"): 403, "open/x/secret": 403, encoded("open//secret"): 403, encoded("open/shut/../a"): 403, encoded("open/shut//"): 403, encoded("shut"): 403,
		"": 404, "open/../shut": 404, "open//secret": 404, "open/./a": 404, encoded("open/none"): 404, "open/a%00": 400, "open%2F%2B": 400, "open/%23": 400,
	} {
		if a := srv.request("GET", "/v1/retained/"+path, tok, ""); a.status != status {
			t.Errorf("%s: %d %s, want %d", path, a.status, a.body, status)
		} else if status == 200 && !strings.Contains(a.body, base64.StdEncoding.EncodeToString([]byte("open"))[:4]) {
			t.Errorf("%s: %s", path, a.body)
		}
		if a := srv.request("DELETE", "/v1/retained/"+path, tok, ""); a.status == 204 {
			t.Errorf("%s was deleted without a right", path)
		}
	}
	// A right covers topics that no client may publish to any more, so that they can be removed.
	if a := srv.request("GET", "/v1/retained/open/a%01", tok, ""); a.status == 403 {
		t.Errorf("a control character: %d %s", a.status, a.body)
	}
	for _, path := range []string{"/v1/retained", "/v1/devices/%2E%2E", "/v1/retained/../devices", "/v1/retained%2F..%2Fdevices", "/v1/%72etained"} {
		if a := srv.request("GET", path, tok, ""); a.status < 400 {
			t.Errorf("%s: %d", path, a.status)
		}
	}
}
