package attack_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// Labels of the objects of the rows, by policies of roleMatrix. With the second ones an object also has a permission that the
// admin neither has nor may give.
const (
	meterLabels = `{"kind":"meter"}`
	powerLabels = `{"kind":"meter","power":"yes"}`
)

// roleMatrix is a server with one subject of each role.
type roleMatrix struct {
	*testServer
	names    []string // of the roles, in the order of roleRow.may
	keys     []operatorKey
	tokens   []string
	viewer   operatorKey // whose sessions and tokens are closed
	retainer *pahoClient // an owner's connection
	makers   map[string]func() map[string]string
	labels   string // of the objects that makers make
	store    *sqlite.Store
	seq      int64 // of the last entry that was read
	n        int   // of the last id
	k        operatorKey
}

func newRoleMatrix(t *testing.T) *roleMatrix {
	t.Helper()
	m := &roleMatrix{testServer: serve(t, nil), labels: meterLabels, names: append(slices.Clone(policy.BuiltInRoles), "custom", "")}
	m.http = m.client()
	ctx := t.Context()
	for name, doc := range map[string]string{
		"custom": "role = \"custom\"\nmay_give = [\"topic:plant/#\"]\n[[allow]]\nget = [\"/#\"]\npost = [\"/#\"]\nput = [\"/#\"]\npatch = [\"/#\"]\ndelete = [\"/#\"]\n",
		"meters": "for = { kind = \"meter\" }\n[[allow]]\npublish = [\"meter/power\"]\n",
		"power":  "for = { power = \"yes\" }\n[[allow]]\npost = [\"/v1/keys/#\"]\n",
	} {
		_, err := m.admin.ApplyPolicy(ctx, name, []byte(doc), 0)
		must(t, err)
	}
	for _, role := range m.names {
		id := watchword.SubjectID("a-" + role)
		s, err := m.admin.CreateOperator(ctx, id, role, 0)
		if role == "" {
			id = "a-service"
			s, err = m.admin.CreateService(ctx, id, nil, 0)
		}
		must(t, err)
		k := m.enrollKey(id, s.Enrollment, "first")
		m.keys, m.tokens = append(m.keys, k), append(m.tokens, k.bearer())
	}
	s, err := m.admin.CreateOperator(ctx, "vera", "viewer", 0)
	must(t, err)
	m.viewer = m.enrollKey("vera", s.Enrollment, "first")
	m.retainer = m.keys[0].mqtt(m.tokens[0], string(m.keys[0].id))
	m.store, err = sqlite.Open(ctx, filepath.Join(m.dir, "watchword.db"), sqlite.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, m.store.Close()) })
	m.makers = m.newMakers()
	return m
}

// newMakers returns what makes the objects that the requests of rows name.
func (m *roleMatrix) newMakers() map[string]func() map[string]string {
	t, ctx := m.t, m.t.Context()
	id := func() watchword.SubjectID { m.n++; return watchword.SubjectID(fmt.Sprint("x-", m.n)) }
	one := func(name, value string) map[string]string { return map[string]string{name: value} }
	labels := func() (l watchword.Labels) { must(t, json.Unmarshal([]byte(m.labels), &l)); return l }
	newDevice := func(l watchword.Labels) watchword.SubjectID {
		d, err := m.admin.CreateDevice(ctx, id(), l, 0)
		must(t, err)
		return d.ID
	}
	newService := func() api.Subject { return mustValue(m.admin.CreateService(ctx, id(), labels(), 0))(t) }
	newOperator := func() api.Subject { return mustValue(m.admin.CreateOperator(ctx, id(), "viewer", 0))(t) }
	keyOf := func(s api.Subject) string {
		return fmt.Sprintf("%s/keys/%s", s.ID, m.enrollKey(s.ID, s.Enrollment, "laptop").kid())
	}
	return map[string]func() map[string]string{
		"new":          func() map[string]string { return one("new", string(id())) },
		"labels":       func() map[string]string { return one("labels", m.labels) },
		"device":       func() map[string]string { return one("device", string(newDevice(labels()))) },
		"plain-device": func() map[string]string { return one("plain-device", string(newDevice(nil))) },
		"suspended-device": func() map[string]string {
			d := newDevice(labels())
			mustValue(m.admin.Suspend(ctx, d, ""))(t)
			return one("suspended-device", string(d))
		},
		"deleted-device": func() map[string]string {
			d := newDevice(nil)
			must(t, m.admin.DeleteDevice(ctx, d))
			return one("deleted-device", string(d))
		},
		"service": func() map[string]string { return one("service", string(newService().ID)) },
		"suspended-service": func() map[string]string {
			s := newService()
			m.enrollKey(s.ID, s.Enrollment, "laptop")
			mustValue(m.admin.Services().Suspend(ctx, s.ID, ""))(t)
			return one("suspended-service", string(s.ID))
		},
		"service-key": func() map[string]string { return one("service-key", keyOf(newService())) },
		"operator":    func() map[string]string { return one("operator", string(newOperator().ID)) },
		"suspended-operator": func() map[string]string {
			s := newOperator()
			m.enrollKey(s.ID, s.Enrollment, "laptop")
			mustValue(m.admin.Operators().Suspend(ctx, s.ID, ""))(t)
			return one("suspended-operator", string(s.ID))
		},
		"operator-key": func() map[string]string { return one("operator-key", keyOf(newOperator())) },
		"pairing": func() map[string]string {
			d := m.newUnenrolled(string(id()), time.Now).ask()
			return map[string]string{"pairing": d.user, "pairing-key": string(d.sign.Public().ID())}
		},
		"login": func() map[string]string {
			c := m.newLoginClient(time.Now).ask()
			return map[string]string{"login": c.UserCode, "login-key": string(c.sign.Public().ID()), "pin": c.pin}
		},
		"notice": func() map[string]string {
			cfg := server.Defaults()
			cfg.Data = m.dir
			mustValue(server.RecoverOperator(ctx, cfg, id(), server.Options{}))(t)
			all := mustValue(m.admin.Notices(ctx))(t).Notices
			n := all[len(all)-1]
			return one("notice", fmt.Sprintf("%s?object=%s&at=%s", n.Kind, n.Object, n.At.Format(time.RFC3339)))
		},
		"policy": func() map[string]string {
			name := string(id())
			newDevice(watchword.Labels{"kind": name})
			mustValue(m.admin.ApplyPolicy(ctx, name, fmt.Appendf(nil, "for = { kind = %q }\n[[allow]]\npublish = [\"meter/power\"]\n", name), 0))(t)
			return one("policy", name)
		},
		"command": func() map[string]string {
			a := m.request("POST", "/v1/commands", m.tokens[0], object("device", newDevice(nil), "function", "f", "args", struct{}{}))
			return one("command", a.member(t, "id"))
		},
		"session": func() map[string]string {
			var s struct {
				Session string `json:"session"`
			}
			must(t, json.Unmarshal([]byte(next(t, m.stream("/v1/events", m.viewer.bearer()), "session").Data), &s))
			return one("session", s.Session)
		},
		"jti": func() map[string]string { return one("jti", claims(t, m.viewer.bearer())["jti"].(string)) },
		"retained": func() map[string]string {
			topic := "plant/" + string(id())
			r, ok := m.retainer.client, true
			_, err := r.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Retain: ok, Payload: []byte("x")})
			must(t, err)
			return one("retained", strings.ReplaceAll(topic, "/", "%2F"))
		},
		"server-key": func() map[string]string {
			mustValue(m.admin.RotateKey(ctx, "time", true))(t)
			for _, k := range mustValue(m.admin.ServerKeys(ctx))(t).Keys {
				if k.Role == "time" && k.State == "retiring" {
					return one("server-key", string(k.ID))
				}
			}
			t.Fatal("no time key is retiring")
			return nil
		},
		"own-key": func() map[string]string {
			manage := m.admin.Operators()
			if m.k.id == "a-service" {
				manage = m.admin.Services()
			}
			e := mustValue(manage.Link(ctx, m.k.id, time.Hour, 0))(t)
			return one("own-key", string(m.enrollKey(m.k.id, &e, "second").kid()))
		},
		"link": func() map[string]string {
			s := newService()
			return one("link", string(s.ID)+" "+s.Enrollment.Code)
		},
		"own-token": func() map[string]string { return one("own-token", m.k.bearer()) },
	}
}

// fill replaces the names in braces by objects, which are made at their first use and kept in values.
func (m *roleMatrix) fill(text string, values map[string]string) string {
	for name, make := range m.makers {
		if !strings.Contains(text, "{"+name+"}") || values[name] != "" {
			continue
		}
		for k, v := range make() {
			values[k] = v
		}
	}
	for k, v := range values {
		text = strings.ReplaceAll(text, "{"+k+"}", v)
	}
	return text
}

// newKinds returns the kinds of the acts since the last call, without those of kindsWithoutOperation.
func (m *roleMatrix) newKinds() (kinds []string) {
	m.t.Helper()
	all, err := audit.Entries(m.t.Context(), m.store, m.seq, 10_000)
	must(m.t, err)
	for _, e := range all {
		m.seq++
		if _, of := kindsWithoutOperation[e.Kind]; !of && e.Outcome == audit.Done && !slices.Contains(kinds, e.Kind) {
			kinds = append(kinds, e.Kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// ask sends the request of a row by one role.
func (m *roleMatrix) ask(row roleRow, role int, values map[string]string) answer {
	m.t.Helper()
	m.k = m.keys[role]
	method, path, _ := strings.Cut(row.op, " ")
	if row.path != "" {
		path = row.path
	}
	path, body, kind := m.fill(path, values), m.fill(row.body+row.form, values), "application/json"
	switch {
	case row.form != "":
		kind = "application/x-www-form-urlencoded"
	case strings.HasPrefix(path, "/v1/policies/"):
		kind = "application/toml"
	}
	m.newKinds() // those of the objects
	if row.do != nil {
		return row.do(m, m.k, map[string]string{"method": method, "path": path, "body": body, "token": m.tokens[role]})
	}
	return m.request(method, path, m.tokens[role], body, "Content-Type: "+kind)
}

// try compares the answer to one role with the row.
func (m *roleMatrix) try(row roleRow, role int, want byte, values map[string]string) {
	m.t.Helper()
	a := m.ask(row, role, values)
	kinds := strings.Join(m.newKinds(), " ")
	what := fmt.Sprintf("%s %s by %q, the objects with %s: %d %s", row.op, row.path, m.names[role], m.labels, a.status, a.body)
	if a.status < http.StatusBadRequest {
		a.code = "" // of an enrollment
	}
	got := byte('?')
	switch {
	case a.code == watchword.Denied:
		got = 'n'
	case a.code == watchword.ExceedsOwn:
		got = 'x'
	case a.code == row.code && (row.code != "" || a.status < 300):
		got = 'y'
	}
	if got != want {
		m.t.Errorf("%s: %c, want %c", what, got, want)
	}
	if got == 'y' {
		for k := range values {
			delete(values, k) // used
		}
	}
	switch {
	case want == 'y' && row.code == "" && !slices.Contains(strings.Split(row.kinds, "|"), kinds):
		m.t.Errorf("%s: the log has %q, want %q", what, kinds, row.kinds)
	case want != 'y' && kinds != "":
		m.t.Errorf("%s: it was refused, and the log has %q", what, kinds)
	}
}

// TestRolesByOperation holds roleRows: what each role may do, what it is refused because it would give or take more than its own,
// and what the log has of it.
func TestRolesByOperation(t *testing.T) {
	m := newRoleMatrix(t)
	for _, row := range roleRows {
		m.labels = meterLabels
		values := map[string]string{}
		for role := range m.names {
			m.try(row, role, row.may[role], values)
		}
		if text := row.path + row.body; row.may != compared || !strings.Contains(text, "device}") && !strings.Contains(text, "service") && !strings.Contains(text, "{labels}") {
			continue
		}
		// The same, where the object has or gets more than the admin may give.
		m.labels = powerLabels
		clear(values)
		for role, want := range []byte("yx   x") {
			if want != ' ' {
				m.try(row, role, want, values)
			}
		}
	}
}

// Each operation of the OpenAPI document has a row, each row is of one, and each kind of an audit entry is that of a row or of no
// operation.
func TestRoleRowsAreComplete(t *testing.T) {
	srv := serve(t, nil)
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	must(t, json.Unmarshal([]byte(srv.request("GET", "/openapi.json", "", "").body), &doc))
	described := map[string]bool{}
	for path, methods := range doc.Paths {
		for method := range methods {
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	rows, kinds := map[string]bool{}, map[string]bool{}
	for _, row := range roleRows {
		rows[row.op] = true
		if !described[row.op] && !noDescription[row.op] && !strings.HasPrefix(row.op, "MQTT ") {
			t.Errorf("%s has a row, and is no operation", row.op)
		}
		if len(row.may) != len(policy.BuiltInRoles)+2 || strings.Trim(row.may, "ynx") != "" || (row.code == "") != (row.why == "") {
			t.Errorf("%s: the row is not whole: %+v", row.op, row)
		}
		for _, k := range strings.FieldsFunc(row.kinds, func(r rune) bool { return r == ' ' || r == '|' }) {
			kinds[k] = true
		}
	}
	for op := range described {
		if !rows[op] {
			t.Errorf("%s has no row: which roles may do it?", op)
		}
	}
	for _, k := range audit.Kinds {
		if why := kindsWithoutOperation[k]; kinds[k] == (why != "") {
			t.Errorf("%s: it must be in the row of an operation, or in kindsWithoutOperation with what writes it (%v, %q)", k, kinds[k], why)
		}
		delete(kinds, k)
	}
	for k := range kinds {
		t.Errorf("%s is no kind", k)
	}
	for k := range kindsWithoutOperation {
		if !slices.Contains(audit.Kinds, k) {
			t.Errorf("%s is no kind", k)
		}
	}
}

// proved sends the request with a token that is bound to the key of the subject.
func proved(_ *roleMatrix, k operatorKey, values map[string]string) answer {
	return k.proved(values["method"], values["path"], values["body"], "")
}

// enrollService redeems a link: path is the id of the service and the code.
func enrollService(m *roleMatrix, _ operatorKey, values map[string]string) answer {
	id, code, _ := strings.Cut(values["path"], " ")
	_, a := m.tryEnrollKey(watchword.SubjectID(id), &api.Enrollment{Code: code}, "laptop")
	return a
}

func exchange(_ *roleMatrix, k operatorKey, _ map[string]string) answer { return k.exchange(nil, "") }

// eventStream opens a stream of server-sent events, and closes it after its first bytes.
func eventStream(path string) func(*roleMatrix, operatorKey, map[string]string) answer {
	return func(m *roleMatrix, _ operatorKey, values map[string]string) answer {
		m.t.Helper()
		req, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, m.url+path, http.NoBody)
		must(m.t, err)
		req.Header.Set("Authorization", "Bearer "+values["token"])
		req.Header.Set("Accept", "text/event-stream")
		res, err := m.http.Do(req)
		must(m.t, err)
		defer res.Body.Close()
		b := make([]byte, 1024)
		n, _ := res.Body.Read(b) // the refusal, or the first event
		a := answer{status: res.StatusCode, body: string(b[:n])}
		if a.status >= http.StatusBadRequest {
			a.code = watchword.Code(a.member(m.t, "code"))
		} else if !strings.HasPrefix(a.body, "event: session") {
			m.t.Errorf("%s: the stream begins with %q", path, a.body)
		}
		return a
	}
}

// mqttAnswer connects, and does something that has a reason code.
func (m *roleMatrix) mqttAnswer(k operatorKey, tok string, then func(c *paho.Client) (byte, error)) answer {
	m.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(mustValue(os.ReadFile(m.info.CAFile))(m.t))
	nc, err := tls.Dial("tcp", m.info.MQTTS, &tls.Config{RootCAs: pool})
	must(m.t, err)
	defer nc.Close()
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc)})
	ack, err := c.Connect(m.t.Context(), &paho.Connect{ClientID: string(k.id) + "/row", CleanStart: true, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(tok), PasswordFlag: true})
	if ack == nil {
		m.t.Fatalf("no CONNACK: %v", err)
	}
	code := ack.ReasonCode
	if code < 0x80 && then != nil {
		code, err = then(c)
	}
	switch {
	case code == 0x87: // not authorized
		return answer{status: http.StatusForbidden, code: watchword.Denied}
	case code >= 0x80 || err != nil:
		m.t.Fatalf("%s: reason code %#x, %v", k.id, code, err)
	}
	must(m.t, c.Disconnect(&paho.Disconnect{}))
	return answer{status: http.StatusOK}
}

func mqttConnect(m *roleMatrix, k operatorKey, values map[string]string) answer {
	return m.mqttAnswer(k, values["token"], nil)
}

func mqttSubscribe(filter string) func(*roleMatrix, operatorKey, map[string]string) answer {
	return func(m *roleMatrix, k operatorKey, values map[string]string) answer {
		return m.mqttAnswer(k, values["token"], func(c *paho.Client) (byte, error) {
			ack, err := c.Subscribe(m.t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
			if ack == nil || len(ack.Reasons) != 1 {
				return 0, fmt.Errorf("SUBACK %+v: %w", ack, err)
			}
			return ack.Reasons[0], nil
		})
	}
}

func mqttPublish(topic string) func(*roleMatrix, operatorKey, map[string]string) answer {
	return func(m *roleMatrix, k operatorKey, values map[string]string) answer {
		return m.mqttAnswer(k, values["token"], func(c *paho.Client) (byte, error) {
			ack, err := c.Publish(m.t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("{}")})
			if ack == nil {
				return 0, fmt.Errorf("no PUBACK: %w", err)
			}
			return ack.ReasonCode, nil
		})
	}
}
