package attack_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

func TestBadInputAtEndpoints(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a"})
	dev := srv.token(d)
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	before, err := srv.admin.Entries(t.Context(), 0, 10_000)
	must(t, err)
	big := strings.Repeat("x", 40<<10)
	for _, tc := range []struct {
		name, token, method, path, body string
		header                          string
		status                          int
		code                            watchword.Code
		field                           string
	}{
		{"no JSON", op, "POST", "/v1/devices", `{"id":`, "", 400, watchword.BadRequest, ""},
		{"an unknown field", op, "POST", "/v1/devices", `{"id":"x","admin":true}`, "", 400, watchword.BadRequest, "admin"},
		{"a wrong type", op, "POST", "/v1/devices", `{"id":7}`, "", 400, watchword.BadRequest, "id"},
		{"a member twice", op, "POST", "/v1/devices", `{"id":"x","id":"y"}`, "", 400, watchword.BadRequest, ""},
		{"bad UTF-8", op, "POST", "/v1/devices", "{\"id\":\"\xff\"}", "", 400, watchword.BadRequest, ""},
		{"no body", op, "POST", "/v1/devices", "", "", 400, watchword.BadRequest, ""},
		{"another content type", op, "POST", "/v1/devices", `{"id":"x"}`, "Content-Type: text/plain", 415, watchword.UnsupportedMediaType, ""},
		{"oversize", op, "POST", "/v1/devices", `{"id":"` + big + `"}`, "", 413, watchword.TooLarge, ""},
		{"an id that tries to escape into a path", op, "POST", "/v1/devices", `{"id":"../x"}`, "", 400, watchword.BadRequest, "id"},
		{"an id that tries to escape into a topic", op, "POST", "/v1/devices", `{"id":"a/+/#"}`, "", 400, watchword.BadRequest, "id"},
		{"an empty id", op, "POST", "/v1/devices", `{"id":""}`, "", 400, watchword.BadRequest, "id"},
		{"a label that tries to widen", op, "POST", "/v1/devices", `{"id":"x","labels":{"site":"#"}}`, "", 400, watchword.BadRequest, "labels.site"},
		{"a label key with a selector in it", op, "POST", "/v1/devices", `{"id":"x","labels":{"a=b,c":"d"}}`, "", 400, watchword.BadRequest, "labels"},
		{"too many labels", op, "POST", "/v1/devices", `{"id":"x","labels":{` + manyLabels(40) + `}}`, "", 400, watchword.BadRequest, "labels"},
		{"a bad duration", op, "POST", "/v1/devices", `{"id":"x","ttl":"soon"}`, "", 400, watchword.BadRequest, "ttl"},
		{"an id that is taken", op, "POST", "/v1/devices", `{"id":"lamp-1"}`, "", 409, watchword.Conflict, ""},
		{"a page size beyond", op, "GET", "/v1/devices?page_size=100000", "", "", 400, watchword.BadRequest, "page_size"},
		{"an invalid selector", op, "GET", "/v1/devices?label=a/b", "", "", 400, watchword.BadRequest, "label"},
		{"an If-Match that is none", op, "PUT", "/v1/devices/lamp-1/labels", `{"labels":{}}`, "If-Match: yesterday", 400, watchword.BadRequest, "If-Match"},
		{"an old version", op, "PUT", "/v1/devices/lamp-1/labels", `{"labels":{}}`, `If-Match: "1"`, 412, watchword.PreconditionFailed, ""},
		{"a device that does not exist", op, "GET", "/v1/devices/ghost", "", "", 404, watchword.NotFound, ""},
		{"an operator is no device", op, "POST", "/v1/devices/operator/revoke", `{}`, "", 404, watchword.NotFound, ""},
		{"a policy with a mistake", op, "PUT", "/v1/policies/p", "for = { kind = 1 }", "Content-Type: application/toml", 422, watchword.PolicyInvalid, ""},
		{"a policy's name that escapes", op, "PUT", "/v1/policies/a%2Fb", "x = 1", "Content-Type: application/toml", 404, watchword.NotFound, ""},
		{"args that are no object", op, "POST", "/v1/commands", `{"device":"lamp-1","function":"f","args":[1]}`, "", 400, watchword.BadRequest, "args"},
		{"args too deep", op, "POST", "/v1/commands", `{"device":"lamp-1","function":"f","args":` + strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9) + `}`, "", 400, watchword.BadRequest, "args"},
		{"args too large", op, "POST", "/v1/commands", `{"device":"lamp-1","function":"f","args":{"a":"` + strings.Repeat("x", 9<<10) + `"}}`, "", 413, watchword.TooLarge, "args"},
		{"a function's name that escapes", op, "POST", "/v1/commands", `{"device":"lamp-1","function":"a/*"}`, "", 400, watchword.BadRequest, "function"},
		{"a command for days", op, "POST", "/v1/commands", `{"device":"lamp-1","function":"f","ttl":"25h"}`, "", 400, watchword.BadRequest, "ttl"},
		{"an invalid order", op, "POST", "/v1/commands", `{"device":"lamp-1","function":"f","order":"x"}`, "", 422, watchword.OrderInvalid, ""},
		{"a command to a device that does not exist", op, "POST", "/v1/commands", `{"device":"ghost","function":"f"}`, "", 404, watchword.NotFound, ""},
		{"a wait beyond", op, "GET", "/v1/commands/cmd_x?wait=2h", "", "", 400, watchword.BadRequest, "wait"},
		{"another method", op, "PATCH", "/v1/devices/lamp-1", "", "", 405, watchword.MethodNotAllowed, ""},
		{"nowhere", op, "GET", "/v1/nowhere", "", "", 404, watchword.NotFound, ""},

		{"a device lists devices", dev, "GET", "/v1/devices", "", "", 403, watchword.Denied, ""},
		{"a device revokes itself", dev, "POST", "/v1/devices/lamp-1/revoke", `{}`, "", 403, watchword.Denied, ""},
		{"a device applies a policy", dev, "PUT", "/v1/policies/p", "x", "Content-Type: application/toml", 403, watchword.Denied, ""},
		{"a device reads the log", dev, "GET", "/v1/audit", "", "", 403, watchword.Denied, ""},
		{"a device watches all devices' events", dev, "GET", "/v1/events", "", "", 403, watchword.Denied, ""},
		{"a device calls without being allowed, a device that exists", dev, "POST", "/v1/commands", `{"device":"lamp-1","function":"f"}`, "", 403, watchword.Denied, ""},
		{"a device calls without being allowed, a device that does not exist", dev, "POST", "/v1/commands", `{"device":"ghost","function":"f"}`, "", 403, watchword.Denied, ""},
		{"a path that climbs", dev, "GET", "/v1/self/../devices", "", "", 404, watchword.NotFound, ""},
		{"an event too large", dev, "POST", "/v1/self/events/lux", big, "", 413, watchword.TooLarge, ""},
		{"a stream that escapes", dev, "POST", "/v1/self/events/a/+", "1", "", 400, watchword.BadRequest, "stream"},
		{"a state that is no object", dev, "PUT", "/v1/self/state", "[]", "", 400, watchword.BadRequest, "state"},
		{"functions twice", dev, "PUT", "/v1/self/functions", `{"functions":[{"name":"a"},{"name":"a"}]}`, "", 400, watchword.BadRequest, "functions"},
		{"an invalid schema", dev, "PUT", "/v1/self/functions", `{"functions":[{"name":"a","schema":{"type":7}}]}`, "", 400, watchword.BadRequest, "functions.a"},
		{"a schema that reaches out", dev, "PUT", "/v1/self/functions", `{"functions":[{"name":"a","schema":{"$ref":"file:///etc/passwd"}}]}`, "", 400, watchword.BadRequest, "functions.a"},
		{"a schema that fans out", dev, "PUT", "/v1/self/functions", `{"functions":[{"name":"a","schema":{"items":{"allOf":[` + strings.TrimSuffix(strings.Repeat(`{"$ref":"#"},`, 8), ",") + `]}}}]}`, "", 400, watchword.BadRequest, "functions.a"},
		{"schemas with too many objects together", dev, "PUT", "/v1/self/functions", `{"functions":[` + manySchemas(6) + `]}`, "", 400, watchword.BadRequest, "functions"},
		{"a nonce too short", dev, "GET", "/v1/self/commands?nonce=x", "", "", 400, watchword.BadRequest, "nonce"},
		{"an invalid number", dev, "GET", "/v1/self/commands?after=x", "", "", 400, watchword.BadRequest, "after"},

		{"the token endpoint with JSON", "", "POST", "/oauth/token", `{}`, "", 415, watchword.UnsupportedMediaType, ""},
		{"a parameter twice", "", "POST", "/oauth/token", "grant_type=client_credentials&grant_type=x", "Content-Type: application/x-www-form-urlencoded", 400, watchword.BadRequest, ""},
		{"another grant", "", "POST", "/oauth/token", "grant_type=password", "Content-Type: application/x-www-form-urlencoded", 400, watchword.GrantUnsupported, ""},
		{"a form too large", "", "POST", "/oauth/token", "a=" + big, "Content-Type: application/x-www-form-urlencoded", 413, watchword.TooLarge, ""},
		{"an assertion in the URL", "", "POST", "/oauth/token?client_assertion=x", "grant_type=client_credentials", "Content-Type: application/x-www-form-urlencoded", 400, watchword.BadRequest, ""},
		{"an enrollment without keys", "", "POST", "/v1/enroll", `{"code":"VeVQQbwamaTywZYHmewK5g"}`, "", 400, watchword.BadRequest, "keys.sign"},
		{"an enrollment with a private key", "", "POST", "/v1/enroll", `{"code":"VeVQQbwamaTywZYHmewK5g","keys":{"sign":{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},"seal":{}},"proof":"x"}`, "", 400, watchword.BadRequest, "keys.sign"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			var headers []string
			if tc.header != "" {
				headers = append(headers, tc.header)
			}
			a := srv.request(tc.method, tc.path, tc.token, tc.body, headers...)
			if a.status != tc.status || a.code != tc.code || tc.field != "" && a.field != tc.field {
				t.Errorf("got %d %q field %q, want %d %q %q: %s", a.status, a.code, a.field, tc.status, tc.code, tc.field, a.body)
			}
			if !strings.HasPrefix(tc.path, "/oauth") && a.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("content type %q", a.header.Get("Content-Type"))
			}
			if len(tc.body) > 1000 && strings.Contains(a.body, tc.body[20:900]) {
				t.Error("the answer repeats what was sent")
			}
		})
	}
	after, err := srv.admin.Entries(t.Context(), int64(len(before)), 10_000)
	must(t, err)
	for _, e := range after {
		if e.Outcome == "done" && e.Kind != "token.issue" && e.Kind != "log.read" {
			t.Errorf("something was done all the same: %+v", e)
		}
	}
}

// manySchemas are functions whose schemas have 750 objects each.
func manySchemas(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(`{"name":"f%d","schema":{"allOf":[%s]}}`, i, strings.TrimSuffix(strings.Repeat(`{},`, 749), ",")))
	}
	return strings.Join(out, ",")
}

func manyLabels(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(`"k%d":"v"`, i))
	}
	return strings.Join(out, ",")
}

func TestDenialDoesNotRevealExistence(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	srv.enroll("lamp-2", device.Options{}, nil)
	tok := srv.token(d)
	strip := func(a answer) string {
		i := strings.Index(a.body, `"trace_id"`)
		return fmt.Sprint(a.status, a.body[:max(i, 0)])
	}
	for _, path := range []string{"/v1/devices/%s", "/v1/devices/%s/twin", "/v1/commands/%s"} {
		there, gone := strip(srv.request("GET", fmt.Sprintf(path, "lamp-2"), tok, "")), strip(srv.request("GET", fmt.Sprintf(path, "ghost"), tok, ""))
		if there != gone {
			t.Errorf("%s:\n%s\n%s", path, there, gone)
		}
	}
}

func TestExpiredTokenIsReported(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	tok := srv.token(d)
	_, err := srv.admin.Suspend(t.Context(), "lamp-1", "test")
	must(t, err)
	if a := srv.request("GET", "/v1/self", tok, ""); a.code != watchword.SubjectSuspended {
		t.Errorf("suspended: %d %q", a.status, a.code)
	}
	assertion, err := d.Assertion(time.Minute)
	must(t, err)
	if a := srv.exchangeAssertion(assertion); a.status != 401 {
		t.Errorf("a token for a suspended one: %d %s", a.status, a.body)
	}
	_, err = srv.admin.Resume(t.Context(), "lamp-1")
	must(t, err)
	if a := srv.request("GET", "/v1/self", tok, ""); a.status != 200 {
		t.Errorf("resumed, with all it had: %d %s", a.status, a.body)
	}
	_, err = srv.admin.Revoke(t.Context(), "lamp-1", "test")
	must(t, err)
	if a := srv.request("GET", "/v1/self", tok, ""); a.status != 401 {
		t.Errorf("revoked: %d %s", a.status, a.body)
	}
}
