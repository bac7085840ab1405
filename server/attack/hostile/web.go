package hostile

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Paths that devices use.
const (
	pathTrust     = "/v1/trust"
	pathTime      = "/v1/time"
	pathEnroll    = "/v1/enroll"
	pathToken     = "/oauth/token"
	pathCommands  = "/v1/self/commands"
	pathFunctions = "/v1/self/functions"
	pathConfig    = "/v1/self/config"
	pathReceipts  = "/v1/self/receipts"
)

// paths is all paths that an enrolled device uses by itself.
var paths = []string{pathTrust, pathToken, pathFunctions, pathConfig, pathCommands, pathReceipts, pathTime}

// tokenLife is the lifetime of the good server's access tokens, in seconds.
const tokenLife = 600

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.attempts = append(s.attempts, time.Now())
	s.mu.Unlock()
	// The context ends with the server too: net/http ends it with the connection only once the body of the request is read.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	r = r.WithContext(ctx)
	w, end := s.counted(w, r)
	defer end()
	if mode, _ := s.state(); mode != nil && mode.Request != nil && mode.Request(s, w, r) {
		return
	}
	s.answer(w, r)
}

// answer answers like the good server.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 256<<10))
	if err != nil {
		Refuse(w, http.StatusRequestEntityTooLarge, watchword.TooLarge, 0)
		return
	}
	switch r.URL.Path {
	case pathTrust:
		b, err := s.trust()
		write(w, "application/jose", []byte(b), err)
		return
	case pathTime:
		var in struct{ Nonce string }
		if json.Unmarshal(body, &in) != nil {
			Refuse(w, http.StatusBadRequest, watchword.BadRequest, 0)
			return
		}
		b, err := token.SignTime(s.keys.time, Issuer, in.Nonce, time.Now())
		write(w, "application/jose", []byte(b), err)
		return
	case pathEnroll:
		s.enroll(w, body)
		return
	case pathToken:
		s.issue(w, r, body)
		return
	}
	_, access, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	s.mu.Lock()
	known := s.tokens[access]
	s.mu.Unlock()
	if !known {
		Refuse(w, http.StatusUnauthorized, watchword.Unauthenticated, 0)
		return
	}
	switch {
	case r.URL.Path == pathCommands:
		s.poll(w, r)
	case r.URL.Path == pathConfig:
		s.giveConfig(w, r)
	case r.URL.Path == pathReceipts:
		var in struct{ Receipt string }
		if json.Unmarshal(body, &in) != nil || s.receipt(in.Receipt) != nil {
			Refuse(w, http.StatusUnprocessableEntity, watchword.ReceiptInvalid, 0)
			return
		}
		write(w, "application/json", []byte(`{"state":"done"}`), nil)
	case strings.HasPrefix(r.URL.Path, "/v1/self/"):
		w.WriteHeader(http.StatusNoContent)
	default:
		Refuse(w, http.StatusNotFound, watchword.NotFound, 0)
	}
}

func write(w http.ResponseWriter, kind string, body []byte, err error) {
	if err != nil {
		Refuse(w, http.StatusInternalServerError, watchword.Internal, 0)
		return
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(body) // the peer has closed the connection
}

// Refuse answers with a problem document (RFC 9457); retryAfter is in seconds, 0: none.
func Refuse(w http.ResponseWriter, status int, code watchword.Code, retryAfter int) {
	w.Header().Set("Content-Type", "application/problem+json")
	if retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	w.WriteHeader(status)
	m := map[string]any{"code": code, "status": status, "detail": "by the hostile server"}
	if retryAfter > 0 {
		m["retry_after"] = retryAfter
	}
	_ = json.NewEncoder(w).Encode(m) // the peer has closed the connection
}

func (s *Server) enroll(w http.ResponseWriter, body []byte) {
	var in struct {
		Code string
		Keys struct{ Sign, Seal json.RawMessage }
	}
	if json.Unmarshal(body, &in) != nil || in.Code != s.code {
		Refuse(w, http.StatusForbidden, watchword.CodeInvalid, 0)
		return
	}
	sign, err1 := jose.ParseJWK(in.Keys.Sign, jose.ForSigning)
	seal, err2 := jose.ParseJWK(in.Keys.Seal, jose.ForEncryption)
	if err1 != nil || err2 != nil {
		Refuse(w, http.StatusBadRequest, watchword.BadRequest, 0)
		return
	}
	s.mu.Lock()
	s.sign, s.seal = sign, seal
	s.mu.Unlock()
	b, err := json.Marshal(map[string]any{
		"id": DeviceID, "kind": "device", "labels": map[string]string{}, "issuer": Issuer,
		"token_endpoint": s.url() + pathToken, "https": s.url(), "mqtts": s.address(MQTT),
	})
	write(w, "application/json", b, err)
}

// verify verifies an assertion of the device.
func (s *Server) verify(assertion string) bool {
	p, err := token.ParseAssertion(assertion, false)
	if err != nil || p.CheckClaims(Issuer, time.Now()) != nil {
		return false
	}
	s.mu.Lock()
	key := s.sign
	s.mu.Unlock()
	if key == nil {
		return false
	}
	_, err = p.Verify(token.NewKeySet(key))
	return err == nil
}

// issue issues an access token for an assertion.
func (s *Server) issue(w http.ResponseWriter, r *http.Request, body []byte) {
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if r.ParseForm() != nil || !s.verify(r.Form.Get("client_assertion")) {
		Refuse(w, http.StatusUnauthorized, watchword.ClientInvalid, 0)
		return
	}
	s.grant(w, r, tokenLife)
}

// grant issues an access token with that lifetime in seconds.
func (s *Server) grant(w http.ResponseWriter, r *http.Request, life int64) {
	access, kind := watchword.NewNonce(), "Bearer"
	if r.Header.Get("DPoP") != "" {
		kind = "DPoP"
	}
	s.mu.Lock()
	s.tokens[access] = true
	s.mu.Unlock()
	b, err := json.Marshal(map[string]any{"access_token": access, "token_type": kind, "expires_in": life})
	write(w, "application/json", b, err)
}

func (s *Server) giveConfig(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	c := s.config
	s.mu.Unlock()
	if c == nil {
		Refuse(w, http.StatusNotFound, watchword.NotFound, 0)
		return
	}
	tag := strconv.Quote(strconv.FormatInt(c.Version, 10))
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	jws, err := token.SignConfig(s.keys.command, *c)
	write(w, "application/jose", []byte(jws), err)
}

// poll waits for commands and sends them to the device.
func (s *Server) poll(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if after, err := strconv.ParseInt(q.Get("after"), 10, 64); err == nil {
		s.acknowledge(after)
	}
	pause, err := time.ParseDuration(q.Get("wait"))
	if err != nil || pause > time.Minute {
		pause = 0
	}
	s.countSubscribers(1)
	defer s.countSubscribers(-1)
	limit := time.NewTimer(pause)
	defer limit.Stop()
	mode, _ := s.state()
	for over := false; ; {
		now, wake := s.state()
		if now != mode {
			return // a server that ended
		}
		if os := s.next(); len(os) > 0 || over {
			s.give(w, os[:min(len(os), 1)], q.Get("nonce"))
			return
		}
		select {
		case <-wake:
		case <-limit.C:
			over = true
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Server) give(w http.ResponseWriter, os []*Command, nonce string) {
	jwes := []string{}
	for _, o := range os {
		jwe, err := s.sealed(o, nonce)
		if err != nil {
			Refuse(w, http.StatusInternalServerError, watchword.Internal, 0)
			return
		}
		jwes = append(jwes, jwe)
	}
	commands(w, jwes...)
}

// commands answers a poll.
func commands(w http.ResponseWriter, jwes ...string) {
	out := struct {
		Commands []map[string]string `json:"commands"`
	}{[]map[string]string{}}
	for _, j := range jwes {
		out.Commands = append(out.Commands, map[string]string{"jwe": j})
	}
	b, err := json.Marshal(out)
	write(w, "application/json", b, err)
}
