package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// venom contains all characters that a terminal would interpret, and invisible ones, as a hostile server or a file name
// may. raw stands for bytes that are not UTF-8, which JSON's encoder would replace.
const (
	raw         = "RAWBYTES"
	hostileText = "\x1b[2J\x1b]0;t\a\x1b[32mok\x1b[0m|\r\nINJECTED|\nINJECTED|\rINJECTED|\tINJECTED|\x7f|\u009b31m|\u0085INJECTED|\u2028INJECTED|\u2029INJECTED" +
		"|\u202e\u2066\u200e\u200f\u061c|\u200b\u200d\ufeff\u00ad|\U000e0041|" + raw
)

// oneLine is venom for a place that ends with the line.
var oneLine = strings.NewReplacer("\r", "", "\n", "", " ", "").Replace(hostileText)

func hostileJSON(b []byte) []byte { return bytes.ReplaceAll(b, []byte(raw), []byte("\x9b31m\xff")) }

// hostileServer is a server that is on loopback, has a certificate that the CLI trusts, and answers with venom in every field.
type hostileServer struct {
	url, pin string
	bundle   string
	ca       []byte

	mu     sync.Mutex
	attack string // fields, refusal, reason, garbage
	token  string
	fixed  map[string]string // answers by path, which come before all others
}

// answerAt makes the server answer at one path with a text alone.
func (e *hostileServer) answerAt(path, body string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fixed = map[string]string{path: body}
}

func (e *hostileServer) set(attack, token string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.attack, e.token = attack, token
}

func newHostileServer(t *testing.T) *hostileServer {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hostileText}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: hostileText}}, k.Public(), k)
	must(err)
	e := &hostileServer{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), attack: "fields", token: "token"}
	s := httptest.NewUnstartedServer(e)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}, MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	e.url = s.URL
	root, err := jose.GenerateKey(jose.P256)
	must(err)
	signer, err := root.Signer()
	must(err)
	keys := []*jose.PublicKey{root.Public()}
	log, err := jose.GenerateKey(jose.Ed)
	must(err)
	now := time.Now()
	e.bundle, err = token.SignTrust(token.Trust{
		Issuer: e.url, Version: 1, Epoch: 1, Roots: keys, Issuers: keys, Command: keys, Time: keys, Log: []*jose.PublicKey{log.Public()}, CAs: [][]byte{der},
		Issued: now.Add(-time.Minute), Expires: now.Add(24 * time.Hour),
	}, signer)
	must(err)
	e.pin = token.TrustPin(root.Public())
	return e
}

// fill makes a value whose every text is venom.
func fill(t reflect.Type, depth int) reflect.Value {
	v := reflect.New(t).Elem()
	if depth > 8 {
		return v
	}
	switch t {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Now().Add(time.Hour)))
		return v
	case reflect.TypeFor[json.RawMessage]():
		b, _ := json.Marshal(map[string]string{hostileText: hostileText})
		v.SetBytes(b)
		return v
	}
	switch t.Kind() {
	case reflect.String:
		v.SetString(hostileText)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(7)
	case reflect.Pointer:
		v.Set(fill(t.Elem(), depth+1).Addr())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			v.SetBytes(hostileJSON([]byte(hostileText)))
			break
		}
		v.Set(reflect.Append(v, fill(t.Elem(), depth+1)))
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		v.SetMapIndex(fill(t.Key(), depth+1), fill(t.Elem(), depth+1))
	case reflect.Struct:
		for i := range t.NumField() {
			if v.Field(i).CanSet() {
				v.Field(i).Set(fill(t.Field(i).Type, depth+1))
			}
		}
	}
	return v
}

func full[T any]() any { return fill(reflect.TypeFor[T](), 0).Interface() }

// oneOf is full without what says that there is more, or less, to see.
func oneOf[T any]() any {
	b, err := json.Marshal(full[T]())
	if err != nil {
		panic(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	delete(m, "next_page_token")
	delete(m, "pruned")
	return m
}

func page[T any](name string) any { return map[string]any{name: []any{full[T]()}} }

// answers is what the server answers by "METHOD path", the longest that fits: JSON of a value, or text.
var answers = map[string]func() any{
	"POST /v1/devices":   func() any { return full[api.Device]() },
	"GET /v1/devices?":   func() any { return page[api.Device]("devices") },
	"GET /v1/devices/":   func() any { return full[api.Device]() },
	"PUT /v1/devices/":   func() any { return full[api.Device]() },
	"POST /v1/devices/":  func() any { return full[api.Device]() },
	"GET twin":           func() any { return full[api.Twin]() },
	"PUT config":         func() any { return full[api.Twin]() },
	"POST link":          func() any { return full[api.Enrollment]() },
	"POST /v1/commands":  func() any { return full[api.Command]() },
	"GET /v1/commands?":  func() any { return page[api.Command]("commands") },
	"GET /v1/commands/":  func() any { return full[api.Command]() },
	"POST /v1/commands/": func() any { return full[api.Command]() },
	"GET evidence":       func() any { return map[string]string{hostileText: hostileText} },
	"GET /v1/totals": func() any {
		return map[string]any{"devices": map[string]int{hostileText: 9}, "services": map[string]int{hostileText: 9}}
	},
	"GET /v1/labels": func() any { return map[string]any{"labels": []any{full[api.LabelTotal]()}} },
	"GET /v1/sessions": func() any {
		return map[string]any{"sessions": []any{full[api.Session]()}, "offline": []any{full[api.OfflineSession]()}}
	},
	"GET /v1/enrollments?":     func() any { return map[string]any{"enrollments": []any{full[api.Pairing]()}, "pin": hostileText} },
	"GET /v1/enrollments/":     func() any { return full[api.Pairing]() },
	"GET /v1/logins?":          func() any { return page[api.Login]("logins") },
	"GET /v1/logins/":          func() any { return full[api.Login]() },
	"POST approve":             func() any { return full[api.Device]() },
	"POST reject":              func() any { return full[api.Pairing]() },
	"GET /v1/keys":             func() any { return oneOf[api.ServerKeyList]() },
	"POST /v1/keys/":           func() any { return full[api.ServerKey]() },
	"POST /v1/keys/bundles/":   func() any { return map[string]any{"bundles": []any{full[api.PlannedBundle]()}} },
	"GET /v1/address":          func() any { return full[api.Address]() },
	"POST /v1/address/":        func() any { return full[api.Address]() },
	"GET /v1/audit?":           func() any { return map[string]any{"entries": []any{oneOf[api.Entry]()}} },
	"GET /v1/audit/":           func() any { return oneOf[api.EntryDetail]() },
	"GET proof":                func() any { return "proof\n" + hostileText },
	"GET /v1/audit/export":     func() any { return map[string]string{hostileText: hostileText} },
	"GET /log/":                func() any { return oneLine + "\n7\n" + strings.Repeat("A", 43) + "=\n\n— " + oneLine + " AAAA\n" },
	"GET /v1/policies?":        func() any { return page[api.Policy]("policies") },
	"GET /v1/policies/":        func() any { return "# " + hostileText + "\n" },
	"PUT /v1/policies/":        func() any { return full[api.Policy]() },
	"POST /v1/policies/diff?":  func() any { return hostileDiff() },
	"POST /v1/explain":         func() any { return full[api.Explanation]() },
	"GET /v1/self":             func() any { return full[api.Self]() },
	"GET keys":                 func() any { return full[api.KeyList]() },
	"PUT end":                  func() any { return full[api.KeyList]() },
	"GET /v1/operators?":       func() any { return page[api.Subject]("operators") },
	"POST /v1/operators":       func() any { return full[api.Subject]() },
	"GET /v1/operators/":       func() any { return full[api.Subject]() },
	"PUT /v1/operators/":       func() any { return full[api.Subject]() },
	"POST /v1/operators/":      func() any { return full[api.Subject]() },
	"GET /v1/notices":          func() any { return full[api.NoticeList]() },
	"GET /v1/services?":        func() any { return page[api.Subject]("services") },
	"POST /v1/services":        func() any { return full[api.Subject]() },
	"GET /v1/services/":        func() any { return full[api.Subject]() },
	"POST /v1/services/":       func() any { return full[api.Subject]() },
	"GET /v1/retained?":        func() any { return page[api.Retained]("retained") },
	"GET /v1/retained/":        func() any { return full[api.RetainedDetail]() },
	"GET /v1/self/commands":    func() any { return map[string]any{"commands": []any{map[string]string{"jwe": hostileText}}} },
	"POST /oauth/device":       func() any { return nil },
	"GET /.well-known/jwks":    func() any { return map[string]any{"keys": []any{}} },
	"GET /v1/events":           func() any { return nil },
	"POST /v1/self/enrollment": func() any { return nil },
}

func (e *hostileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	attack, access := e.attack, e.token
	fixed, isFixed := e.fixed[r.URL.Path]
	e.mu.Unlock()
	w.Header().Set("Watchword-Notice", "\x9b31m\u202e \x9b31m\u202e 2026-11-28T12:00:00Z")
	if isFixed {
		_, _ = w.Write([]byte(fixed))
		return
	}
	for _, name := range []string{"Content-Type", "ETag", "DPoP-Nonce", "WWW-Authenticate", "Link", "Server", "X-Anything"} {
		w.Header().Set(name, "\x9b31m\"\xff\u202e") // what a header may hold
	}
	if attack == "fields" && strings.HasPrefix(r.URL.Path, "/v1/policies/") {
		w.Header().Set("ETag", `"7"`)
	}
	send := func(status int, v any) {
		b, ok := v.(string)
		if !ok {
			j, err := json.Marshal(v)
			if err != nil {
				panic(err)
			}
			b = string(j)
		}
		w.WriteHeader(status)
		_, _ = w.Write(hostileJSON([]byte(b)))
	}
	switch {
	case r.URL.Path == "/oauth/token" && attack != "token":
		kind := "Bearer"
		if r.Header.Get("DPoP") != "" {
			kind = "DPoP"
		}
		send(200, map[string]any{"access_token": access, "token_type": kind, "expires_in": 600})
		return
	case r.URL.Path == "/v1/trust":
		_, _ = w.Write([]byte(e.bundle))
		return
	case r.URL.Path == "/v1/enroll" && attack == "fields":
		send(200, map[string]any{"id": "lamp-1", "kind": "operator", "labels": map[string]string{hostileText: hostileText}, "issuer": e.url, "token_endpoint": e.url + "/oauth/token", "https": e.url})
		return
	}
	switch attack {
	case "refusal", "token":
		code := map[string]string{"refusal": "denied", "token": hostileText}[attack]
		send(403, map[string]any{
			"type": hostileText, "title": hostileText, "code": code, "detail": hostileText + strings.Repeat("long", 20_000), "field": hostileText, "rule": hostileText, "error": hostileText, "error_description": hostileText, "trace": hostileText,
			"mistakes": []map[string]any{{"line": 1, "column": 1, "message": hostileText}},
		})
	case "known": // a refusal with a code that means something to the client
		send(422, map[string]any{"code": "policy_invalid", "detail": hostileText, "field": hostileText, "rule": hostileText, "mistakes": []map[string]any{{"line": 1, "column": 1, "message": hostileText}}})
	case "reason":
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = c.Write(hostileJSON([]byte("HTTP/1.1 403 " + oneLine + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")))
		_ = c.Close()
	case "garbage":
		send(200, hostileText)
	default:
		if strings.Contains(r.Header.Get("Accept"), "event-stream") {
			line := func(v any) string {
				j, _ := json.Marshal(v)
				return string(j)
			}
			w.Header().Set("Content-Type", "text/event-stream")
			send(200, fmt.Sprintf("event: session\ndata: %s\n\nevent: gap\ndata: %s\n\nevent: event\ndata: %s\n\nevent: entry\ndata: %s\n\nevent: end\ndata: %s\n\n",
				line(map[string]any{"session": hostileText, "expires_at": time.Now().Add(time.Hour)}), line(full[api.EventGap]()), line(full[api.Event]()), line(oneOf[api.Entry]()),
				line(map[string]string{"code": hostileText, "detail": hostileText})))
			return
		}
		send(200, e.answer(r))
	}
}

func (e *hostileServer) answer(r *http.Request) any {
	last := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if f := answers[r.Method+" "+last]; f != nil {
		return f()
	}
	best, found := -1, func() any { return map[string]any{} }
	for key, f := range answers {
		method, path, _ := strings.Cut(key, " ")
		whole, exact := strings.CutSuffix(path, "?")
		if method == r.Method && (exact && r.URL.Path == whole || !exact && strings.HasPrefix(r.URL.Path, path)) && len(path) > best {
			best, found = len(path), f
		}
	}
	return found()
}

// hostileDiff is an answer of POST /v1/policies/diff whose permissions have a prefix that a client accepts.
func hostileDiff() any {
	items := []any{map[string]any{"permission": []any{"topic:" + hostileText, []string{"pub"}}, "args": map[string]string{hostileText: hostileText}, "rule": hostileText, "deny": hostileText}}
	return map[string]any{
		"name": hostileText, "version": 1, "subjects": 9, "sessions": 9, "refused": map[string]string{"code": hostileText, "detail": hostileText},
		"groups": []any{map[string]any{
			"kind": hostileText, "role": hostileText, "labels": map[string]string{hostileText: hostileText}, "subjects": 9, "sessions": 9, "examples": []string{hostileText}, "proof": hostileText,
			"gained": items, "lost": items, "may_give_gained": items, "may_give_lost": items,
		}},
		"live_sessions": []any{map[string]any{"id": hostileText, "subject": hostileText, "transport": hostileText, "gains": true}},
	}
}

// screen is where a command prints, which ends when it has printed enough.
type screen struct {
	mu    sync.Mutex
	b     bytes.Buffer
	until string
	end   func()
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.b.Write(p)
	if s.until != "" && strings.Contains(s.b.String(), s.until) {
		s.end()
	}
	return n, err
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// hostileCase is a command line that brings the command to print what a server said.
type hostileCase struct {
	args   []string
	quiet  bool          // it prints nothing of the server's text if it succeeds
	lines  bool          // it prints a document, whose line breaks are its own
	token  string        // that it gets; it must fit into a header where it is used
	longer time.Duration // it ends only then
}

// hostileCases is by the command's path. {dir}, {data}, {url}, {ca}, {file}, {key}, {jwt}, {out} are put in.
var hostileCases = map[string]hostileCase{
	"serve":                {args: []string{"--config", "{file}"}, quiet: true},
	"demo":                 {args: []string{"--devices", "1"}, quiet: true}, // its server is its own
	"version":              {quiet: true},
	"clock show":           {args: []string{"--config", "{file}"}, quiet: true},             // asks the socket of the data folder, not the server of this test
	"backup create":        {args: []string{"{out}", "--config", "{file}"}, quiet: true},    // likewise
	"backup verify":        {args: []string{"{file}", "--identity", "{file}"}, quiet: true}, // speaks to no server
	"restore":              {args: []string{"{file}", "--identity", "{file}"}, quiet: true}, // likewise
	"clock accept":         {args: []string{"--config", "{file}", "--yes"}, quiet: true},
	"notice list":          {},
	"notice acknowledge":   {args: []string{"operator.recover", "carla", "2026-11-28T12:00:00Z"}, quiet: true},
	"operator recover":     {args: []string{"carla", "--config", "{file}"}, quiet: true}, // likewise
	"address show":         {},
	"address move":         {args: []string{"https://new.example", "--yes"}},
	"whoami":               {},
	"login":                {args: []string{"{link}"}, quiet: true}, // it prints what was verified, or has a checked form
	"logout":               {quiet: true},
	"context list":         {quiet: true}, // asks no server
	"context use":          {args: []string{"c"}, quiet: true},
	"context delete":       {args: []string{"c", "--yes"}, quiet: true},
	"operator invite":      {args: []string{"alice", "--role", "viewer", "--qr"}},
	"operator link":        {args: []string{"alice"}},
	"operator pending":     {},
	"operator approve":     {args: []string{"BCDF-GHJK", "alice", "--role", "viewer", "--thumbprint", strings.Repeat("k", 43), "--pin", "{pin}", "--yes"}},
	"operator reject":      {args: []string{"BCDF-GHJK"}},
	"operator role":        {args: []string{"alice", "viewer"}},
	"operator list":        {},
	"operator show":        {args: []string{"alice"}},
	"operator suspend":     {args: []string{"alice"}},
	"operator resume":      {args: []string{"alice"}},
	"operator revoke":      {args: []string{"alice", "--reason", "r", "--yes"}},
	"operator key list":    {args: []string{"alice"}},
	"operator key set-end": {args: []string{"alice", "key", "12h"}},
	"service key set-end":  {args: []string{"billing", "key", "12h"}},
	"operator key revoke":  {args: []string{"alice", "key", "--yes"}, quiet: true},
	"service key list":     {args: []string{"billing"}},
	"service key revoke":   {args: []string{"billing", "key", "--yes"}, quiet: true},
	"service create":       {args: []string{"billing", "-l", "a=b"}},
	"service enroll":       {args: []string{"{link}", "--dir", "{out}"}, quiet: true}, // it prints addresses of a server whose certificate was verified
	"service token":        {args: []string{"--dir", "{out}"}, quiet: true},
	"service link":         {args: []string{"billing"}},
	"service list":         {},
	"service show":         {args: []string{"billing"}},
	"service suspend":      {args: []string{"billing"}},
	"service resume":       {args: []string{"billing"}},
	"service revoke":       {args: []string{"billing", "--reason", "r", "--yes"}},
	"device create":        {args: []string{"lamp-1", "-l", "a=b", "--qr"}},
	"device link":          {args: []string{"lamp-1", "--qr"}},
	"device list":          {},
	"device totals":        {quiet: true}, // numbers, and the four states that it knows; JSON has what the server said
	"device labels":        {},
	"device show":          {args: []string{"lamp-1"}},
	"device label":         {args: []string{"lamp-1", "a=b"}},
	"device name":          {args: []string{"lamp-1", "a name"}},
	"device forget":        {args: []string{"lamp-1"}, quiet: true},
	"device require-proof": {args: []string{"lamp-1", "no"}},
	"device suspend":       {args: []string{"lamp-1"}},
	"device resume":        {args: []string{"lamp-1"}},
	"device revoke":        {args: []string{"lamp-1", "--reason", "r", "--yes"}},
	"device delete":        {args: []string{"lamp-1", "--yes"}, quiet: true},
	"enrollment list":      {},
	"enrollment approve":   {args: []string{"CODE", "--key", strings.Repeat("k", 43)}},
	"enrollment reject":    {args: []string{"CODE"}},
	"trust pin":            {},
	"command send":         {args: []string{"lamp-1", "lamp.set", "level:=1", "--wait", "1s"}},
	"command list":         {},
	"command show":         {args: []string{"cmd_1"}},
	"command verify":       {args: []string{"{file}"}, quiet: true},
	"command cancel":       {args: []string{"cmd_1"}},
	"twin show":            {args: []string{"lamp-1"}},
	"twin set":             {args: []string{"lamp-1", "a=b"}},
	"event watch":          {longer: 5 * time.Second}, // it reconnects until it is interrupted
	"session list":         {},
	"session close":        {args: []string{"s"}, quiet: true},
	"retained list":        {},
	"retained show":        {args: []string{"a/b"}, lines: true},
	"retained delete":      {args: []string{"a/b", "--yes"}, quiet: true},
	"policy list":          {},
	"policy show":          {args: []string{"p"}, lines: true},
	"policy check":         {args: []string{"{policy}"}, quiet: true},
	"policy diff":          {args: []string{"{policy}"}},
	"policy apply":         {args: []string{"{policy}"}},
	"policy delete":        {args: []string{"p", "--yes"}, quiet: true},
	"policy explain":       {args: []string{"--subject", "s", "--action", "call", "--resource", "fn:lamp-1/f"}},
	"token inspect":        {args: []string{"{jwt}"}},
	"token revoke":         {args: []string{"jti"}, quiet: true},
	"key list":             {args: []string{"--all"}},
	"key rotate":           {args: []string{"issuer"}},
	"key revoke":           {args: []string{"key", "--reason", "r", "--yes"}},
	"key bundle":           {quiet: true}, // it is signed, and holds what was checked
	"key plan":             {},
	"key sign":             {args: []string{"{file}", "--key", "{key}"}, quiet: true},
	"key import":           {args: []string{"{signed}"}, quiet: true},
	"key offline":          {args: []string{"--out", "{out}", "--yes"}, quiet: true},
	"key online":           {args: []string{"--in", "{key}"}, quiet: true},
	"audit list":           {args: []string{"--limit", "1"}},
	"audit show":           {args: []string{"1"}, lines: true},
	"audit export":         {lines: true},
	"audit verify":         {args: []string{"{url}/log"}, quiet: true}, // nothing of it is trusted
	"audit checkpoint":     {lines: true},
	"audit prove":          {args: []string{"1"}, lines: true},
	"audit key":            {quiet: true},
	"audit mirror":         {args: []string{"{out}", "{url}/log"}, quiet: true},
	"agent enroll":         {args: []string{"{link}", "--dir", "{out}"}, quiet: true},
	"agent pair":           {args: []string{"{url}", "--pin", "{pin}", "--dir", "{out}"}, quiet: true, longer: time.Second},
	"agent run":            {args: []string{"--dir", "{dir}"}, quiet: true, longer: 300 * time.Millisecond},
	"agent token":          {args: []string{"--dir", "{dir}"}, token: hostileText},
	"agent assertion":      {args: []string{"--dir", "{dir}"}, quiet: true},
	"agent status":         {args: []string{"--dir", "{dir}"}, quiet: true},
	"agent rekey":          {args: []string{"--dir", "{dir}"}, quiet: true, longer: 2 * time.Second},
	"sim":                  {args: []string{"--devices", "1", "--for", "100ms", "--ramp", "1ms", "--rate", "1"}, quiet: true, longer: 2 * time.Second},
}

// leaves is every command that does something, by its path.
func leaves(c *cobra.Command, path string, into map[string]*cobra.Command) {
	for _, sub := range c.Commands() {
		name := strings.TrimSpace(path + " " + sub.Name())
		if !sub.HasSubCommands() && !sub.Hidden {
			into[name] = sub
		}
		leaves(sub, name, into)
	}
}

// clean fails if anything that was printed could do more than be read.
func clean(t *testing.T, what string, printed string, lines bool) {
	t.Helper()
	if !utf8.ValidString(printed) {
		t.Errorf("%s: no UTF-8 in %q", what, cut(printed))
	}
	for _, r := range printed {
		if r != '\n' && !(lines && r == '\t') && !unicode.IsPrint(r) {
			t.Errorf("%s: %q in %q", what, r, cut(printed))
			break
		}
	}
	if lines {
		return
	}
	for line := range strings.Lines(printed) {
		if strings.HasPrefix(strings.TrimSpace(line), "INJECTED") || strings.Contains(line, "  INJECTED") {
			t.Errorf("%s: a field makes a line or a column of its own in %q", what, cut(printed))
			break
		}
	}
}

func cut(s string) string { return s[:min(len(s), 3000)] }

func TestNoCommandPrintsTerminalControls(t *testing.T) {
	e := newHostileServer(t)
	t.Chdir(t.TempDir()) // an argument may name a file to write
	w := newHostileSetup(t, e)
	commands := map[string]*cobra.Command{}
	leaves((&app{out: terminal.New(&screen{}, false), err: terminal.New(&screen{}, false)}).root(), "", commands)
	if len(commands) < 50 {
		t.Fatalf("%d commands", len(commands))
	}
	for path := range hostileCases {
		if commands[path] == nil {
			t.Errorf("a case for %q, which is no command", path)
		}
	}
	for path := range commands {
		c, ok := hostileCases[path]
		if !ok {
			t.Errorf("no case for %q: say in hostileCases how it prints what a server says", path)
			continue
		}
		t.Run(path, func(t *testing.T) {
			for _, try := range []struct {
				attack, format string
				shows          bool
			}{
				{"fields", "table", true},
				{"fields", "table", false},
				{"fields", "json", true},
				{"fields", "jsonl", false},
				{"refusal", "table", true},
				{"refusal", "json", false},
				{"known", "table", false},
				{"known", "json", true},
				{"reason", "table", true},
				{"garbage", "table", true},
				{"token", "table", true},
			} {
				if c.longer > 0 && (try.format != "table" || !try.shows) {
					continue
				}
				e.set(try.attack, cmp.Or(c.token, "token"))
				what := fmt.Sprintf("%s, %s, %s, terminal %v", path, try.attack, try.format, try.shows)
				out, errs, status := w.run(t, c, strings.Fields(path), try.format, try.shows)
				if path == "retained show" && try.attack == "fields" && !try.shows && try.format == "table" {
					if !strings.Contains(out, "\x1b[2J") {
						t.Errorf("%s: the payload is not as it is: %q", what, out)
					}
				} else {
					clean(t, what+", standard output", out, c.lines || path == "policy show")
				}
				clean(t, what+", standard error", errs, false)
				if strings.Contains(out+errs, "%!") {
					t.Errorf("%s: a verb and a field do not fit: %s%s", what, cut(out), cut(errs))
				}
				if try.attack == "fields" && !c.quiet && !strings.Contains(out+errs, `\u001b[2J`) {
					t.Errorf("%s: nothing that the server said was printed (status %d): %s%s", what, status, cut(out), cut(errs))
				}
				if len(errs) > 40_000 && try.format == "table" {
					t.Errorf("%s: %d bytes on standard error", what, len(errs))
				}
				if try.format != "table" && status == 0 && !c.lines && path != "audit key" { // which are documents of their own
					d := json.NewDecoder(strings.NewReader(out))
					for d.More() {
						var v any
						if err := d.Decode(&v); err != nil {
							t.Errorf("%s: %v in %s", what, err, cut(out))
							break
						}
					}
				}
			}
			// What is typed, or a shell put in for a pattern, is no better.
			e.set("fields", "token")
			for _, args := range [][]string{{strings.ReplaceAll(hostileText, raw, "\x9b\xff")}, {hostileText, hostileText, hostileText, hostileText}, {"--" + hostileText}, {"-" + hostileText}, {"--help"}} {
				out, errs, _ := w.run(t, hostileCase{args: args, longer: time.Second}, strings.Fields(path), "table", true)
				clean(t, path+" with hostile arguments, standard output", out, c.lines || path == "policy show")
				clean(t, path+" with hostile arguments, standard error", errs, false)
			}
		})
	}
	for _, args := range [][]string{
		{hostileText},
		{"device", hostileText},
		{"--data", hostileText, "device", "list"},
		{"-o", hostileText, "device", "list"},
		{"--data", w.data, "__complete", "device", "show", ""},
		{"--data", w.data, "enrollment", "approve", "CODE"}, // which prompts, if standard input is a terminal or no file
		{"--data", w.data, "device", "revoke", hostileText, "--reason", "r"},
		{"--data", w.data, "policy", "delete", hostileText},
		{"__complete", "device", "show", ""},
		{"__complete", "enrollment", "approve", ""},
		{"__complete", "key", "revoke", ""},
	} {
		out, errs, _ := w.run(t, hostileCase{args: args}, nil, "", true)
		clean(t, strings.Join(args, " ")+", standard output", strings.ReplaceAll(out, "\t", " "), true)
		clean(t, strings.Join(args, " ")+", standard error", errs, false)
	}
}

// hostileSetup is what the commands find on this machine.
type hostileSetup struct {
	e                 *hostileServer
	dir, data, device string
	policy, file, key string
	signed, jwt       string
	n                 int
}

func newHostileSetup(t *testing.T, e *hostileServer) *hostileSetup {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	w := &hostileSetup{e: e, dir: dir, data: filepath.Join(dir, "data"), device: filepath.Join(dir, "lamp")}
	must(os.Mkdir(w.data, 0o700))
	name := strings.ReplaceAll(strings.ReplaceAll(hostileText, raw, "\x9b\xff"), "/", "")
	put := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, b, 0o600))
		return path
	}
	k, err := jose.GenerateKey(jose.P256)
	must(err)
	must(os.WriteFile(filepath.Join(w.data, "operator.jwk"), k.JWK(), 0o600))
	ca := put("ca.pem", e.ca)
	place, err := json.Marshal(map[string]any{"url": e.url, "https": strings.TrimPrefix(e.url, "https://"), "issuer": e.url, "ca": ca, "operator": "operator"})
	must(err)
	must(os.WriteFile(filepath.Join(w.data, "server.json"), place, 0o600))
	w.policy = put("p"+name+".toml", []byte("name = \"p\"\nfor = { kind = \"lamp\" }\n\n[[allow]]\npublish = [\"devices/${id}/events/#\"]\n"))
	w.file = put("f"+name, []byte("\""+hostileText+"\" = {"))
	w.key = put("k"+name+".jwk", k.JWK())
	signed, err := json.Marshal(map[string]any{"bundles": []string{hostileText}})
	must(err)
	w.signed = put("s"+name, signed)
	s, err := k.Signer()
	must(err)
	claims, err := json.Marshal(map[string]any{"iss": hostileText, "sub": hostileText, hostileText: hostileText, "perm": []any{[]any{hostileText, []string{hostileText}}}})
	must(err)
	w.jwt, err = s.Sign("JWT", hostileJSON(claims))
	must(err)
	e.set("fields", "token")
	d, err := device.Open(w.device)
	must(err)
	must(d.Enroll(t.Context(), w.link()))
	must(d.Close())
	return w
}

func (w *hostileSetup) link() string {
	return token.EnrollmentLink(w.e.url, "AAAAAAAAAAAAAAAAAAAAAA", w.e.pin)
}

func (w *hostileSetup) run(t *testing.T, c hostileCase, path []string, format string, shows bool) (out, errs string, status int) {
	t.Helper()
	w.n++
	put := strings.NewReplacer("{dir}", w.device, "{url}", w.e.url, "{file}", w.file, "{policy}", w.policy, "{key}", w.key, "{signed}", w.signed, "{jwt}", w.jwt,
		"{link}", w.link(), "{pin}", w.e.pin, "{out}", filepath.Join(w.dir, fmt.Sprintf("out-%d", w.n)))
	args := append([]string{}, path...)
	for _, a := range c.args {
		args = append(args, put.Replace(a))
	}
	if format != "" {
		args = append([]string{"-o", format, "--data", w.data}, args...)
	}
	limit := c.longer
	if limit == 0 {
		limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	home := filepath.Join(w.dir, fmt.Sprintf("home-%d", w.n)) // without the access token of the run before
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("XDG_CACHE_HOME", home)
	stdout, stderr := &screen{}, &screen{}
	status = run(ctx, args, terminal.New(stdout, shows).SetWidth(1<<20), terminal.New(stderr, shows))
	if ctx.Err() != nil && c.longer == 0 {
		t.Errorf("%v did not end in a minute", args)
	}
	return stdout.String(), stderr.String(), status
}

// serve itself prints names of folders and files, and so does its log.
func TestServePrintsNoTerminalControls(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		for name, value := range map[string]string{"SERVER_HTTPS": "localhost:0", "SERVER_MQTTS": "localhost:0", "METRICS_LISTEN": "127.0.0.1:0", "LOG_FORMAT": format, "LOG_LEVEL": "debug"} {
			t.Setenv("WATCHWORD_"+name, value)
		}
		data := filepath.Join(t.TempDir(), strings.ReplaceAll(strings.ReplaceAll(hostileText, raw, "\x9b\xff"), "/", ""))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		last, folder := " device create lamp-1 --data ", "data  "
		if format == "json" { // one line says all
			last, folder = `"msg":"listening"`, `"data":`
		}
		stdout, stderr := &screen{}, &screen{until: last, end: cancel}
		if status := run(ctx, []string{"serve", "--data", data}, terminal.New(stdout, true), terminal.New(stderr, true)); status != 0 || !strings.Contains(stderr.String(), folder) {
			t.Errorf("status %d: %s", status, stderr)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("the last line of the start was not printed within a minute: %s", stderr)
		}
		clean(t, "serve, standard output", stdout.String(), false)
		clean(t, "serve, standard error", stderr.String(), false)
	}
}
