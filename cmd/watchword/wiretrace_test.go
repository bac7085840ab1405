package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// trace is the decoded record of all that was sent and received in a scenario. Values that differ from run to run are
// replaced by placeholders. Identifiers, keys and hashes keep their identity: the same value is the same placeholder
// everywhere, numbered by first appearance. Times, nonces, signatures and texts for people do not.
type trace struct {
	t       testing.TB
	out     strings.Builder
	names   map[string]string // value -> placeholder
	numbers map[string]int    // placeholders given, by class
	openers []*jose.Decrypter // of the devices: what is sealed to one is recorded as it is inside
}

func newTrace(t testing.TB) *trace {
	return &trace{t: t, names: map[string]string{}, numbers: map[string]int{}}
}

func (tr *trace) printf(format string, a ...any) { fmt.Fprintf(&tr.out, format+"\n", a...) }

func (tr *trace) section(name string) { tr.printf("\n## %s", name) }

// named returns the placeholder of a value: class#1 for the first of its class.
func (tr *trace) named(class, value string) string {
	key := class + " " + value
	if tr.names[key] == "" {
		tr.numbers[class]++
		tr.names[key] = fmt.Sprintf("%s#%d", class, tr.numbers[class])
	}
	return tr.names[key]
}

// Members whose values are words for people, or differ from run to run in a way that their
// form does not show.
var placeholderOf = map[string]string{
	"detail": "TEXT", "title": "TEXT", "error_description": "TEXT", "message": "TEXT", "why": "TEXT",
	"trace_id": "TRACE", "trace": "TRACE", "nonce": "NONCE", "user_code": "USERCODE", "salt": "SALT", "args_salt": "SALT",
	"summary": "TEXT", "description": "TEXT",
	"x": "X", "y": "Y", "pid": "PID", "ca": "CERTIFICATE",
}

var (
	unixForm    = regexp.MustCompile(`^\d{10}$`)
	timeForm    = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	portForm    = regexp.MustCompile(`(127\.0\.0\.1|localhost|hub\.example):\d{4,5}\b`)
	runForm     = regexp.MustCompile(`[A-Za-z0-9_-]+`)
	idForm      = regexp.MustCompile(`^([a-z]+)_[0-9A-HJKMNP-TV-Z]{26}$`)
	hexForm     = regexp.MustCompile(`^[0-9a-f]{32}$`)
	codeForm    = regexp.MustCompile(`^[a-z_]+$`)
	wordForm    = regexp.MustCompile(`^[a-z_.-]+$`)
	base64Form  = regexp.MustCompile(`^[A-Za-z0-9+/]{22}==$|^[A-Za-z0-9+/]{43}=$`)
	compactForm = regexp.MustCompile(`[A-Za-z0-9_-]{16,}(\.[A-Za-z0-9_-]*){2,4}`)
	userForm    = regexp.MustCompile(`\b[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}\b`)
	signedLine  = regexp.MustCompile(`(?m)^(— \S+) \S+$`)
	base64Lines = regexp.MustCompile(`(?m)(^BASE64\n)+`)
	numberLine  = regexp.MustCompile(`(?m)^(index )?\d+$`)
	base64Line  = regexp.MustCompile(`(?m)^(extra )?[A-Za-z0-9+/]{20,}={0,2}$`)
)

// text replaces what differs from run to run in a text of any form.
func (tr *trace) text(s string) string {
	if strings.HasPrefix(s, "-----BEGIN") {
		return "PEM"
	}
	if unixForm.MatchString(s) {
		return "TIME"
	}
	if base64Form.MatchString(s) {
		return tr.named("HASH", s)
	}
	if compact := compactForm.FindString(s); compact != "" && compact == s {
		if out, ok := tr.compact(s); ok {
			return out
		}
	}
	s = timeForm.ReplaceAllString(s, "TIME")
	s = portForm.ReplaceAllString(s, "$1:PORT")
	s = userForm.ReplaceAllString(s, "USERCODE")
	if strings.Contains(s, "\n") { // a note of the log
		s = signedLine.ReplaceAllString(s, "$1 SIGNATURE")
		s = base64Line.ReplaceAllString(s, "${1}BASE64")
		s = base64Lines.ReplaceAllString(s, "BASE64\n") // how many depends on the size of the log
		s = numberLine.ReplaceAllString(s, "${1}N")
	}
	return runForm.ReplaceAllStringFunc(s, func(run string) string {
		m := idForm.FindStringSubmatch(run)
		switch {
		case m != nil:
			return tr.named(m[1], run)
		case hexForm.MatchString(run):
			return "TRACE"
		case wordForm.MatchString(run):
			return run
		case len(run) == 43:
			return tr.named("KEY", run)
		case len(run) == 22:
			return tr.named("CODE", run)
		case len(run) > 48:
			return "BYTES"
		}
		return run
	})
}

// compact decodes a compact JWS or JWE. What is sealed to a device of the scenario is opened.
func (tr *trace) compact(s string) (string, bool) {
	parts := strings.Split(s, ".")
	head, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || !json.Valid(head) {
		return "", false
	}
	switch len(parts) {
	case 3:
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			return "", false
		}
		return "JWS(" + tr.body(head) + " " + tr.body(claims) + ")", true
	case 5:
		for _, o := range tr.openers {
			if plain, _, err := o.Decrypt(s, 1<<20); err == nil {
				return "JWE(" + tr.body(head) + " " + tr.body(plain) + ")", true
			}
		}
		return "JWE(" + tr.body(head) + " SEALED)", true
	}
	return "", false
}

// body replaces what differs from run to run in a body: JSON member by member in its order,
// anything else as text.
func (tr *trace) body(b []byte) string {
	if !json.Valid(b) {
		return tr.text(string(b))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out strings.Builder
	tr.value(d, &out, "", nil)
	return out.String()
}

// value writes the next value of d. member is its name, began the iat of the enclosing object, to which the other times of
// a token are relative.
func (tr *trace) value(d *json.Decoder, out *strings.Builder, member string, began *int64) {
	token, err := d.Token()
	if err != nil {
		tr.t.Fatal(err)
	}
	switch v := token.(type) {
	case json.Delim:
		out.WriteRune(rune(v))
		if v == '{' {
			tr.members(d, out)
		} else {
			for i := 0; d.More(); i++ {
				if i > 0 {
					out.WriteByte(',')
				}
				tr.value(d, out, member, nil)
			}
		}
		end, err := d.Token()
		if err != nil {
			tr.t.Fatal(err)
		}
		out.WriteRune(rune(end.(json.Delim)))
	case string:
		out.WriteString(tr.str(member, v))
	case json.Number:
		n, err := v.Int64()
		switch member {
		case "log_entry":
			out.WriteString("N") // refusals and sessions are logged behind the act, so numbers differ
		case "iat", "exp", "nbf":
			switch {
			case err != nil || began == nil:
				out.WriteString("TIME")
			default:
				// The two are rounded each by itself, and commands are handed over after they were ordered.
				fmt.Fprintf(out, "iat+%d", (n-*began+5)/10*10)
			}
		default:
			out.WriteString(v.String())
		}
	default:
		b, err := json.Marshal(v)
		if err != nil {
			tr.t.Fatal(err)
		}
		out.Write(b)
	}
}

func (tr *trace) members(d *json.Decoder, out *strings.Builder) {
	// The times of a token are relative to its iat, which may be after them.
	type member struct {
		name string
		raw  json.RawMessage
	}
	var all []member
	var began *int64
	for d.More() {
		name, err := d.Token()
		if err != nil {
			tr.t.Fatal(err)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			tr.t.Fatal(err)
		}
		all = append(all, member{name.(string), raw})
		if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil && name == "iat" {
			began = &n
		}
	}
	entry := slices.ContainsFunc(all, func(m member) bool { return m.name == "outcome" })
	for i, m := range all {
		if i > 0 {
			out.WriteByte(',')
		}
		if m.name == "seq" && entry {
			out.WriteString(`"seq":N`)
			continue
		}
		fmt.Fprintf(out, "%q:", tr.text(m.name))
		inner := json.NewDecoder(bytes.NewReader(m.raw))
		inner.UseNumber()
		tr.value(inner, out, m.name, began)
	}
}

// str returns the placeholder of a string with a member's name.
func (tr *trace) str(member, s string) string {
	if p := placeholderOf[member]; p != "" && s != "" {
		return strconv.Quote(p)
	}
	if member == "config" { // of server.start: the whole configuration, whose keys the tests of server hold
		return strconv.Quote("CONFIG")
	}
	if member == "next_page_token" && numberLine.MatchString(s) {
		return strconv.Quote("N")
	}
	if member == "version" {
		return strconv.Quote("VERSION")
	}
	if strings.HasPrefix(s, "{") && json.Valid([]byte(s)) {
		return "JSON(" + tr.body([]byte(s)) + ")"
	}
	if out, ok := tr.compact(s); ok && compactForm.MatchString(s) {
		return out
	}
	return strconv.Quote(tr.text(s))
}

// form is an application/x-www-form-urlencoded body, by name.
func (tr *trace) form(body string) string {
	v, err := url.ParseQuery(body)
	if err != nil {
		tr.t.Fatal(err)
	}
	var names []string
	for name := range v {
		names = append(names, name)
	}
	slices.Sort(names)
	var out []string
	for _, name := range names {
		for _, s := range v[name] {
			if json.Valid([]byte(s)) {
				out = append(out, name+"="+tr.body([]byte(s)))
			} else {
				out = append(out, name+"="+tr.str(name, s))
			}
		}
	}
	return strings.Join(out, " & ")
}

var propertyNames = []struct {
	id   packet.Property
	name string
}{
	{packet.PayloadFormatIndicator, "payload-format"},
	{packet.MessageExpiryInterval, "message-expiry"},
	{packet.ContentType, "content-type"},
	{packet.ResponseTopic, "response-topic"},
	{packet.CorrelationData, "correlation-data"},
	{packet.SessionExpiryInterval, "session-expiry"},
	{packet.AssignedClientIdentifier, "assigned-client-id"},
	{packet.ServerKeepAlive, "server-keep-alive"},
	{packet.AuthenticationMethod, "auth-method"},
	{packet.AuthenticationData, "auth-data"},
	{packet.RequestProblemInformation, "request-problem"},
	{packet.WillDelayInterval, "will-delay"},
	{packet.RequestResponseInformation, "request-response"},
	{packet.ResponseInformation, "response-information"},
	{packet.ServerReference, "server-reference"},
	{packet.ReasonString, "reason-string"},
	{packet.ReceiveMaximum, "receive-maximum"},
	{packet.TopicAliasMaximum, "topic-alias-maximum"},
	{packet.TopicAlias, "topic-alias"},
	{packet.MaximumQoS, "maximum-qos"},
	{packet.RetainAvailable, "retain-available"},
	{packet.MaximumPacketSize, "maximum-packet-size"},
	{packet.WildcardSubscriptionAvailable, "wildcard-available"},
	{packet.SubscriptionIdentifiersAvailable, "subscription-ids-available"},
	{packet.SharedSubscriptionAvailable, "shared-available"},
}

func (tr *trace) properties(p *packet.Properties) string {
	var out []string
	for _, k := range propertyNames {
		if n, ok := p.Number(k.id); ok {
			out = append(out, fmt.Sprintf("%s=%d", k.name, n))
		}
		if s, ok := p.Text(k.id); ok {
			if k.id == packet.AssignedClientIdentifier {
				id, _, _ := strings.Cut(s, "/")
				s = id + "/ASSIGNED"
			}
			if k.id == packet.ReasonString { // "code: detail"
				if code, _, ok := strings.Cut(s, ": "); ok && codeForm.MatchString(code) {
					s = code + ": TEXT"
				} else {
					s = "TEXT"
				}
			}
			out = append(out, fmt.Sprintf("%s=%q", k.name, tr.text(s)))
		}
		if b, ok := p.Data(k.id); ok {
			if k.id == packet.AuthenticationData {
				out = append(out, fmt.Sprintf("%s=%d bytes", k.name, len(b)-len(b)%100)) // it holds a token, whose length differs
			} else {
				out = append(out, fmt.Sprintf("%s=%q", k.name, b))
			}
		}
	}
	for _, u := range p.User {
		out = append(out, fmt.Sprintf("user(%s=%s)", u.Name, tr.str(u.Name, u.Value)))
	}
	for _, n := range p.Subscriptions {
		out = append(out, fmt.Sprintf("subscription-id=%d", n))
	}
	if len(out) == 0 {
		return ""
	}
	return " {" + strings.Join(out, " ") + "}"
}

func (tr *trace) payload(b []byte) string {
	if len(b) == 0 {
		return `""`
	}
	if json.Valid(b) {
		return tr.body(b)
	}
	return tr.str("", string(b))
}

// password returns the typ of a token: its claims were recorded where it was issued.
func (tr *trace) password(s string) string {
	if u, err := jose.ParseJWS(s, 1<<20); err == nil {
		return u.Typ
	}
	return tr.payload([]byte(s))
}

// packet is a control packet on one line.
func (tr *trace) packet(p packet.Packet) string {
	codes := func(rs []packet.Reason) (out string) {
		for _, r := range rs {
			out += fmt.Sprintf(" 0x%02X", byte(r))
		}
		return out
	}
	switch p := p.(type) {
	case *packet.Connect:
		out := fmt.Sprintf("CONNECT version=%d clean=%v keep-alive=%d client=%q", p.Version, p.CleanStart, p.KeepAlive, p.ClientID)
		if p.HasUser {
			out += fmt.Sprintf(" user=%q", p.Username)
		}
		if p.HasPass {
			out += " password=" + tr.password(string(p.Password))
		}
		out += tr.properties(&p.Properties)
		if w := p.Will; w != nil {
			out += fmt.Sprintf(" will(topic=%q qos=%d retain=%v payload=%s%s)", w.Topic, w.QoS, w.Retain, tr.payload(w.Payload), tr.properties(&w.Properties))
		}
		return out
	case *packet.Connack:
		return fmt.Sprintf("CONNACK present=%v 0x%02X%s", p.SessionPresent, byte(p.Code), tr.properties(&p.Properties))
	case *packet.Publish:
		return fmt.Sprintf("PUBLISH dup=%v qos=%d retain=%v topic=%q id=%d%s payload=%s", p.Dup, p.QoS, p.Retain, tr.text(p.Topic), p.ID, tr.properties(&p.Properties), tr.payload(p.Payload))
	case *packet.Ack:
		return fmt.Sprintf("%s id=%d 0x%02X%s", p.Kind, p.ID, byte(p.Reason), tr.properties(&p.Properties))
	case *packet.Subscribe:
		out := fmt.Sprintf("SUBSCRIBE id=%d%s", p.ID, tr.properties(&p.Properties))
		for _, f := range p.Filters {
			out += fmt.Sprintf(" (%q qos=%d no-local=%v as-published=%v handling=%d)", f.Topic, f.QoS, f.NoLocal, f.RetainAsPublished, f.RetainHandling)
		}
		return out
	case *packet.Suback:
		return fmt.Sprintf("SUBACK id=%d%s%s", p.ID, codes(p.Codes), tr.properties(&p.Properties))
	case *packet.Unsubscribe:
		return fmt.Sprintf("UNSUBSCRIBE id=%d %q%s", p.ID, p.Filters, tr.properties(&p.Properties))
	case *packet.Unsuback:
		return fmt.Sprintf("UNSUBACK id=%d%s%s", p.ID, codes(p.Codes), tr.properties(&p.Properties))
	case *packet.Ping:
		return p.Type().String()
	case *packet.Disconnect:
		return fmt.Sprintf("DISCONNECT 0x%02X%s", byte(p.Reason), tr.properties(&p.Properties))
	case *packet.Auth:
		return fmt.Sprintf("AUTH 0x%02X%s", byte(p.Reason), tr.properties(&p.Properties))
	}
	tr.t.Fatalf("a packet of type %T", p)
	return ""
}

// unnumbered is body with placeholders that keep no identity: for lines that come in no fixed
// order, in which first appearance means nothing.
func (tr *trace) unnumbered(b []byte) string {
	other := newTrace(tr.t)
	return numberForm.ReplaceAllString(other.body(b), "#")
}

var numberForm = regexp.MustCompile(`#\d+`)
