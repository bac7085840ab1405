package attack_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// whole are answers that hold a list and are not one: what is in them has a bound of its own.
var whole = map[string]string{
	"/v1/address":             "the server's issuers: 16",
	"/v1/devices/{id}":        "one device: 16 keys, 256 functions of 96 KiB together, 8 sessions",
	"/v1/operators/{id}":      "one operator: 32 keys, 8 sessions",
	"/v1/services/{id}":       "one service: 32 keys, 8 sessions",
	"/v1/operators/{id}/keys": "one operator: 32 keys",
	"/v1/services/{id}/keys":  "one service: 32 keys",
	"/v1/notices":             "one notice of each kind",
	"/v1/self/keys":           "the caller: 32 keys",
	"/v1/self/functions":      "a device's own: 256, and 96 KiB together",
}

// Every list of the description has pages, and each page is bounded, also where clients
// gave long names to all that they have.
func TestEveryListHasPages(t *testing.T) {
	srv := serve(t, func(c *server.Config) {
		c.Limits.SubjectSubscriptionBytes = 64 << 20
		c.Limits.ControlRate = 1 << 20
	})
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name string } `json:"parameters"`
			Responses  map[string]struct {
				Content map[string]struct {
					Schema json.RawMessage `json:"schema"`
				} `json:"content"`
			} `json:"responses"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct {
					Type json.RawMessage `json:"type"`
				} `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	must(t, json.Unmarshal([]byte(srv.request("GET", "/openapi.json", "", "").body), &doc))
	lists := []string{"/v1/audit"} // it is described without its answer
	for path, methods := range doc.Paths {
		get, there := methods["get"]
		if !there {
			continue
		}
		var schema struct {
			Ref string `json:"$ref"`
		}
		for _, c := range get.Responses["200"].Content {
			if len(c.Schema) > 0 {
				must(t, json.Unmarshal(c.Schema, &schema))
			}
		}
		props := doc.Components.Schemas[schema.Ref[strings.LastIndex(schema.Ref, "/")+1:]].Properties
		isList := false
		for _, p := range props {
			isList = isList || strings.Contains(string(p.Type), `"array"`)
		}
		if _, known := whole[path]; !isList || known {
			continue
		}
		lists = append(lists, path)
		params := []string{}
		for _, p := range get.Parameters {
			params = append(params, p.Name)
		}
		if _, next := props["next_page_token"]; !next || !slices.Contains(params, "page_size") || !slices.Contains(params, "page_token") {
			t.Errorf("GET %s answers with a list that has no pages", path)
		}
	}
	if len(lists) < 8 {
		t.Errorf("the description has the lists %v", lists)
	}

	// Long names, in all that there is a list of.
	d := srv.enroll("lamp-1", device.Options{}, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "plants", []byte("for = {}\n[[allow]]\nsubscribe = [\"plant/#\"]\n"), 0)
	must(t, err)
	tok, owner := srv.token(d), srv.narrowed(srv.operatorSigner(), srv.admin.Subject(), "")
	for n := range 3 {
		w, err := dialPaho(t, d, fmt.Sprint("lamp-1/", n), tok)
		must(t, err)
		for part := range 16 {
			s := &paho.Subscribe{}
			for k := range 40 {
				s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: fmt.Sprintf("$share/%s%d/plant/%d", strings.Repeat("g", 880), k, part), QoS: 1})
			}
			_, err := w.client.Subscribe(t.Context(), s)
			must(t, err)
		}
	}
	all := map[string]int{}
	for _, path := range lists {
		for token, n := "", 0; ; n++ {
			q := url.Values{"page_size": {"1000"}}
			if token != "" {
				q.Set("page_token", token)
			}
			who := owner
			if path == "/v1/self/sessions" {
				who = tok
			}
			a := srv.request("GET", path+"?"+q.Encode(), who, "")
			if a.status != 200 || len(a.body) > 640<<10 {
				t.Fatalf("page %d of %s: %d, %d bytes: %.200s", n, path, a.status, len(a.body), a.body)
			}
			all[path] += len(a.body)
			var page struct {
				Next string `json:"next_page_token"`
			}
			must(t, json.Unmarshal([]byte(a.body), &page))
			if token = page.Next; token == "" || n > 50 {
				break
			}
		}
	}
	if all["/v1/sessions"] < 1<<20 || all["/v1/self/sessions"] < 1<<20 {
		t.Errorf("bytes of lists: %v", all)
	}
	live, err := srv.admin.Sessions(t.Context(), "lamp-1")
	must(t, err)
	filters := 0
	for _, s := range live {
		if s.MQTT != nil {
			filters += len(s.MQTT.Subscriptions)
		}
	}
	if len(live) != 3 || filters != 3*16*40 {
		t.Errorf("the client has %d sessions with %d subscriptions", len(live), filters)
	}
}
