package hostile

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// refusing answers every request with one refusal.
func refusing(status int, code watchword.Code, retryAfter int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { Refuse(w, status, code, retryAfter) }
}

// bigHeaders answers with 3 MB of headers.
func bigHeaders(w http.ResponseWriter, _ *http.Request) {
	long := strings.Repeat("x", 100_000)
	for n := range 30 {
		w.Header().Set(fmt.Sprintf("X-Hostile-%d", n), long)
	}
}

// hints answers with interim responses (RFC 9110 §15.2) without end.
func hints(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Link", "</"+strings.Repeat("x", 1000)+">; rel=preload")
	for n := 0; n < long && r.Context().Err() == nil; n += 1000 {
		w.WriteHeader(http.StatusEarlyHints)
	}
	silent(w, r)
}

func endlessBody(w http.ResponseWriter, _ *http.Request) {
	repeat(w, strings.Repeat(`[[[[[[[["x",`, 100), endless)
}

// grown is a body that decompresses to 16 MiB, a thousand times its size.
var grown = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	for range 16 {
		_, _ = z.Write(make([]byte, 1<<20)) // into memory
	}
	_ = z.Close() // into memory
	return b.Bytes()
})

func bomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write(grown()) // the peer has closed the connection
}

// redirecting redirects the device to the same path of another host.
func redirecting(to string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		base := to
		if base == "" {
			base = "https://" + r.Host
		}
		w.Header().Set("Location", base+r.URL.RequestURI())
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// unauthenticatedPeerCases are cases of a man in the middle without keys.
func unauthenticatedPeerCases() []Case {
	cs := []Case{
		{Name: "a foreign server that says the device is revoked", Request: always(refusing(http.StatusForbidden, watchword.SubjectRevoked, 0))},
		{Name: "a foreign server that says 401 subject_revoked", Request: always(refusing(http.StatusUnauthorized, watchword.SubjectRevoked, 0))},
		{Name: "a foreign server that is busy for an hour", Request: always(refusing(http.StatusTooManyRequests, watchword.Busy, 3600))},
		{Name: "a foreign server that is unavailable for an hour", Request: always(refusing(http.StatusServiceUnavailable, watchword.Unavailable, 3600))},
		{Name: "a foreign server that says the device's clock is wrong", Request: always(refusing(http.StatusUnauthorized, watchword.TokenEarly, 0))},
		{Name: "a foreign server that wants a proof with its nonce", Request: always(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("DPoP-Nonce", watchword.NewNonce())
			Refuse(w, http.StatusUnauthorized, watchword.DPoPNonce, 0)
		})},
		{Name: "a foreign server that redirects to itself", Request: always(redirecting(""))},
		{Name: "a foreign server with 3 MB of headers", Request: always(bigHeaders), Bytes: headerTake},
		{Name: "a foreign server with interim answers without end", Request: always(hints), Bytes: headerTake},
		{Name: "a foreign server with a body without end", Request: always(endlessBody), Bytes: bodyTake},
		{Name: "a foreign server whose body stalls after a byte", Request: always(stalling), KeepsConnections: true},
		{Name: "a foreign server whose body comes a byte at a time", Request: always(trickle), KeepsConnections: true},
		{Name: "a foreign server that does not answer", Request: always(silent), KeepsConnections: true},
		{Name: "a foreign server with a body that grows", Request: always(bomb), Bytes: bodyTake},
		{Name: "a foreign server that answers in HTML", Request: always(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("<html><script>alert(1)</script>")) // the peer has closed the connection
		})},
		{Name: "a foreign server with a trust bundle of its own", Request: func(_ *Server, w http.ResponseWriter, r *http.Request) bool {
			own, err := newAuthority(time.Now())
			if err != nil || r.URL.Path != pathTrust {
				return false
			}
			b, err := own.bundle(2, time.Now(), nil)
			write(w, "application/jose", []byte(b), err)
			return true
		}},
		{Name: "a foreign server that passes everything on"},
	}
	for i := range cs {
		cs[i].UnknownCA = true
	}
	return cs
}

// tlsCases end before HTTP or MQTT begin.
func tlsCases() []Case {
	return []Case{
		{Name: "connections that are closed at once", Connection: func(*Server, Endpoint, net.Conn) bool { return true }},
		{Name: "connections that are not read", KeepsConnections: true, Connection: func(_ *Server, _ Endpoint, c net.Conn) bool {
			_, _ = io.Copy(io.Discard, c) // until its end
			return true
		}},
		{Name: "a handshake that stalls", KeepsConnections: true, Connection: func(_ *Server, _ Endpoint, c net.Conn) bool {
			_, _ = c.Read(make([]byte, 1))                          // of ClientHello
			_, _ = c.Write([]byte{22, 3, 3, 0, 122, 2, 0, 0, 0, 3}) // the beginning of ServerHello
			_, _ = io.Copy(io.Discard, c)                           // until its end
			return true
		}},
		{Name: "a fatal alert for a handshake", Connection: func(_ *Server, _ Endpoint, c net.Conn) bool {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 40})
			return true
		}},
		{Name: "a handshake of noise without end", Bytes: headerTake, Connection: func(_ *Server, _ Endpoint, c net.Conn) bool {
			repeat(c, "\x16\x03\x03\x40\x00"+filler, long)
			return true
		}},
		{Name: "HTTP in clear", Connection: func(_ *Server, _ Endpoint, c net.Conn) bool {
			_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") // the peer has closed the connection
			return true
		}},
		{Name: "silence after the handshake", KeepsConnections: true, Raw: func(_ *Server, _ Endpoint, c *tls.Conn) bool {
			_, _ = io.Copy(io.Discard, c) // until its end
			return true
		}},
		{Name: "the end after the handshake", Raw: func(*Server, Endpoint, *tls.Conn) bool { return true }},
		{Name: "noise without end after the handshake", Bytes: headerTake, Raw: func(_ *Server, _ Endpoint, c *tls.Conn) bool {
			repeat(c, filler, long)
			return true
		}},
		{Name: "HTTP where MQTT is", Raw: func(_ *Server, d Endpoint, c *tls.Conn) bool {
			if d == HTTPS {
				return false
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n") // the peer has closed the connection
			return true
		}},
	}
}

// noMQTT disables MQTT, so that the device uses HTTPS.
func noMQTT(_ *Server, d Endpoint, _ net.Conn) bool { return d == MQTT }

// bodyCases are answers that do not come, stall or do not end, at each path.
func bodyCases() (out []Case) {
	for _, path := range paths {
		for _, bad := range []struct {
			name  string
			with  func(http.ResponseWriter, *http.Request)
			stays bool
			bytes int64
		}{
			{"a body that stalls after a byte", stalling, true, 0},
			{"a body that comes a byte at a time", trickle, true, 0},
			{"no answer", silent, true, 0},
			{"a body without end", endlessBody, false, bodyTake},
			{"an answer that breaks off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false, 0},
		} {
			c := Case{Name: bad.name + " at " + path, Connection: noMQTT, Request: on(bad.with, path), KeepsConnections: bad.stays, Bytes: bad.bytes}
			switch path {
			case pathReceipts:
				c.Commands = 1
			case pathTime: // requested by a device that doubts its clock
				f := c.Request
				c.Request = func(s *Server, w http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path == pathToken {
						Refuse(w, http.StatusUnauthorized, watchword.TokenExpired, 0)
						return true
					}
					return f(s, w, r)
				}
			}
			out = append(out, c)
		}
	}
	return out
}

// tokenCases are cases of the token endpoint, and of a server that accepts no token.
func tokenCases() (out []Case) {
	for _, life := range []int64{0, -1, 1, 1 << 53, 1<<63 - 1} {
		out = append(out, Case{Name: fmt.Sprintf("tokens that are good for %d seconds", life), Connection: noMQTT, Request: func(s *Server, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != pathToken {
				return false
			}
			_, _ = io.Copy(io.Discard, r.Body) // until its end
			s.grant(w, r, life)
			return true
		}})
	}
	for name, body := range map[string]string{
		"an empty token":                     `{"access_token":"","token_type":"Bearer","expires_in":600}`,
		"a token with line breaks":           `{"access_token":"a\r\nX-Other: b","token_type":"Bearer","expires_in":600}`,
		"a token of another kind":            `{"access_token":"x","token_type":"mac","expires_in":600}`,
		"a token that lives for a float":     `{"access_token":"x","token_type":"Bearer","expires_in":1e999}`,
		"a token of 500 kB":                  `{"access_token":"` + strings.Repeat("x", 500_000) + `","token_type":"Bearer","expires_in":600}`,
		"an unknown token":                   `{"access_token":"x","token_type":"Bearer","expires_in":600}`,
		"a token answer that is an array":    `[]`,
		"a token answer that is nested deep": strings.Repeat("[", 100_000),
	} {
		out = append(out, Case{Name: name, Connection: noMQTT, Request: on(func(w http.ResponseWriter, _ *http.Request) { write(w, "application/json", []byte(body), nil) }, pathToken)})
	}
	nonce := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("DPoP-Nonce", watchword.NewNonce())
		Refuse(w, http.StatusUnauthorized, watchword.DPoPNonce, 0)
	}
	self := []string{pathCommands, pathConfig, pathFunctions, pathReceipts}
	for _, c := range []watchword.Code{
		watchword.Unauthenticated, watchword.TokenExpired, watchword.TokenEarly, watchword.TokenRevoked, watchword.KeyUnknown, watchword.SubjectSuspended, watchword.ProofRequired, watchword.DPoPInvalid,
	} {
		out = append(out, Case{Name: "every token is refused as " + string(c), Connection: noMQTT, Request: on(refusing(http.StatusUnauthorized, c, 0), self...)})
		out = append(out, Case{Name: "every assertion is refused as " + string(c), Connection: noMQTT, Request: on(refusing(http.StatusUnauthorized, c, 0), pathToken)})
	}
	return append(out,
		Case{Name: "another DPoP nonce at each token request", Connection: noMQTT, Request: on(nonce, pathToken)},
		Case{Name: "another DPoP nonce at each request", Connection: noMQTT, Request: on(nonce, self...)},
		Case{Name: "a device that is revoked", RecoveryTime: 37 * time.Hour, Slow: true, Request: on(refusing(http.StatusUnauthorized, watchword.SubjectRevoked, 0), append(self, pathToken)...), Session: refused(0x87, watchword.SubjectRevoked)},
		Case{Name: "a server that is busy for an hour", RecoveryTime: time.Hour + 2*time.Minute, Slow: true, Request: always(refusing(http.StatusTooManyRequests, watchword.Busy, 3600)), Connection: noMQTT},
	)
}

// answerCases are complete but wrong answers.
func answerCases() (out []Case) {
	list := func(w http.ResponseWriter, _ *http.Request) { commands(w) }
	texts := func(text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { write(w, "application/json", []byte(text), nil) }
	}
	many := strings.Repeat(`{"jwe":"eyJhbGciOiJub25lIn0...."},`, 20_000)
	for _, c := range []Case{
		{Name: "no commands, at once", Request: on(list, pathCommands)},
		{Name: "20,000 commands that are none", Request: on(texts(`{"commands":[`+many+`{"jwe":""}]}`), pathCommands)},
		{Name: "a list of commands that is none", Request: on(texts(`{"commands":{"jwe":7}}`), pathCommands)},
		{Name: "commands of 204", Request: on(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, pathCommands)},
		{Name: "304 to everything", Request: always(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })},
		{Name: "200 without a body to everything", Request: always(func(http.ResponseWriter, *http.Request) {})},
		{Name: "500 to everything", Request: always(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })},
		{Name: "an unknown code to everything", Request: always(refusing(http.StatusTeapot, "hostile", 0))},
		{Name: "redirects to itself", Request: always(redirecting(""))},
		{Name: "redirects to plain HTTP", Request: always(redirecting("http://127.0.0.1:9"))},
		{Name: "3 MB of headers", Request: always(bigHeaders), Bytes: headerTake},
		{Name: "interim answers without end", Request: always(hints), Bytes: headerTake},
		{Name: "bodies that grow", Request: always(bomb), Bytes: bodyTake},
		{Name: "a refusal without end", Bytes: bodyTake, Request: always(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			repeat(w, `{"detail":"`+filler, endless)
		})},
		{Name: "receipts that are refused", Commands: 1, MayRestart: true, Request: on(refusing(http.StatusUnprocessableEntity, watchword.ReceiptInvalid, 0), pathReceipts)},
		{Name: "receipts that are not taken", Commands: 1, Request: on(refusing(http.StatusServiceUnavailable, watchword.Unavailable, 0), pathReceipts)},
		{Name: "receipts that are too large", Commands: 1, MayRestart: true, Request: on(refusing(http.StatusRequestEntityTooLarge, watchword.TooLarge, 0), pathReceipts)},
	} {
		c.Connection = noMQTT
		out = append(out, c)
	}
	// Faults of other functions must not stop the device from executing commands.
	for _, c := range []Case{
		{Name: "functions are refused", Request: on(refusing(http.StatusUnprocessableEntity, watchword.BadRequest, 0), pathFunctions)},
		{Name: "functions are denied", Request: on(refusing(http.StatusForbidden, watchword.Denied, 0), pathFunctions)},
		{Name: "functions are too large", Request: on(refusing(http.StatusRequestEntityTooLarge, watchword.TooLarge, 0), pathFunctions)},
		{Name: "functions end in 500", Request: on(refusing(http.StatusInternalServerError, watchword.Internal, 0), pathFunctions)},
		{Name: "the configuration is refused", Request: on(refusing(http.StatusForbidden, watchword.Denied, 0), pathConfig)},
		{Name: "the configuration ends in 500", Request: on(refusing(http.StatusInternalServerError, watchword.Internal, 0), pathConfig)},
		{Name: "the configuration is none", Request: on(texts(`{"every":5}`), pathConfig)},
		{Name: "the configuration is of a lower version", Request: configured(func(n int) int64 { return max(1, 100-int64(n)) })},
		{Name: "the configuration is of the last version", Request: configured(func(n int) int64 { return 1<<53 - 1 - int64(n%2) })},
		{Name: "the configuration is signed by a foreign key", Request: func(s *Server, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != pathConfig {
				return false
			}
			c := token.Config{Issuer: Issuer, Device: DeviceID, Epoch: epoch, Version: 7, Document: json.RawMessage(`{}`), Issued: time.Now()}
			jws, err := token.SignConfig(s.keys.issuer, c)
			write(w, "application/jose", []byte(jws), err)
			return true
		}},
		{Name: "the trust bundle is refused", Request: on(refusing(http.StatusForbidden, watchword.Denied, 0), pathTrust)},
		{Name: "the trust bundle is none", Request: on(texts(`{}`), pathTrust)},
		{Name: "the trust bundle is older", Request: func(s *Server, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != pathTrust {
				return false
			}
			b, err := s.keys.bundle(0, time.Now(), nil)
			write(w, "application/jose", []byte(b), err)
			return true
		}},
		{Name: "the time is refused", Request: on(refusing(http.StatusForbidden, watchword.Denied, 0), pathTime)},
	} {
		c.MustObey = true
		out = append(out, c)
		c.Name, c.Connection = c.Name+", without MQTT", noMQTT
		out = append(out, c)
	}
	return out
}

// configured answers with configurations whose versions are a function of their count.
func configured(version func(n int) int64) func(*Server, http.ResponseWriter, *http.Request) bool {
	counted := make(chan int, 1)
	counted <- 0
	return func(s *Server, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != pathConfig {
			return false
		}
		n := <-counted
		counted <- n + 1
		c := token.Config{Issuer: Issuer, Device: DeviceID, Epoch: epoch, Version: version(n), Document: json.RawMessage(`{"n":` + strconv.Itoa(n) + `}`), Issued: time.Now()}
		jws, err := token.SignConfig(s.keys.command, c)
		write(w, "application/jose", []byte(jws), err)
		return true
	}
}

// http1Cases are bytes instead of HTTP/1.1 answers.
func http1Cases() (out []Case) {
	for _, bad := range []struct{ name, begin, then string }{
		{"a status line without end", "HTTP/1.1 200 ", filler},
		{"a header line without end", "HTTP/1.1 200 OK\r\nX-Long: ", filler},
		{"headers without end", "HTTP/1.1 200 OK\r\n", "X-Many: y\r\n"},
		{"interim answers without end over HTTP/1.1", "", "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"},
		{"a chunk extension without end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", filler},
		{"chunks of one byte without end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"},
		{"a chunk of 2^60 bytes", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000000000000000\r\n", filler},
		{"a chunk size that is none", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ""},
		{"trailers without end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n0\r\n", "X: y\r\n"},
		{"a length that is too long", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", ""},
		{"a length of 2^62", "HTTP/1.1 200 OK\r\nContent-Length: 4611686018427387904\r\n\r\n", filler},
		{"a length below zero", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ""},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\n{}", ""},
		{"a length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", ""},
		{"an answer before the question", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ""},
		{"no HTTP", "SSH-2.0-OpenSSH_9.6\r\n", ""},
		{"101 Switching Protocols", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", filler},
	} {
		out = append(out, Case{
			Name: bad.name, Protocols: []string{"http/1.1"}, Connection: noMQTT, Bytes: http1Take,
			Raw: func(_ *Server, d Endpoint, c *tls.Conn) bool {
				_, _ = c.Read(make([]byte, 16<<10)) // the request, or its beginning
				_, _ = io.WriteString(c, bad.begin) // the peer has closed the connection
				if bad.then != "" {
					repeat(c, bad.then, long)
				}
				return true
			},
		})
	}
	return out
}

// frame returns an HTTP/2 frame (RFC 9113 §4.1).
func frame(kind, flags byte, stream uint32, payload string) string {
	n := len(payload)
	return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}) + payload
}

// http2Cases are frames instead of HTTP/2 answers.
func http2Cases() (out []Case) {
	const (
		data, headers, reset, settings, ping, goaway, windowUpdate, continuation = 0, 1, 3, 4, 6, 7, 8, 9
	)
	hello := frame(settings, 0, 0, "")
	for _, bad := range []struct {
		name, begin, then string
		stays             bool
	}{
		{"an HTTP/2 connection without SETTINGS", "", "", true},
		{"an HTTP/2 window of zero", frame(settings, 0, 0, "\x00\x04\x00\x00\x00\x00"), "", true},
		{"no HTTP/2 streams are allowed", frame(settings, 0, 0, "\x00\x03\x00\x00\x00\x00"), "", true},
		{"GOAWAY at once", hello + frame(goaway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00"), "", false},
		{"GOAWAY ENHANCE_YOUR_CALM", hello + frame(goaway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x0b"), "", false},
		{"GOAWAY and silence", hello + frame(goaway, 0, 0, "\x7f\xff\xff\xff\x00\x00\x00\x00"), "", true},
		{"SETTINGS without end", hello, frame(settings, 0, 0, "\x00\x04\x00\x01\x00\x00"), false},
		{"HTTP/2 pings without end", hello, frame(ping, 0, 0, "hostile!"), false},
		{"resets of streams without end", hello, frame(reset, 0, 1, "\x00\x00\x00\x07"), false},
		{"window updates without end", hello, frame(windowUpdate, 0, 0, "\x00\x00\x00\x01"), false},
		{"window updates beyond 2^31", hello, frame(windowUpdate, 0, 0, "\x7f\xff\xff\xff"), false},
		{"CONTINUATION without end", hello + frame(headers, 0, 1, "\x88"), frame(continuation, 0, 1, strings.Repeat("\x40\x01x\x01y", 100)), false},
		{"empty DATA without end", hello + frame(headers, 4, 1, "\x88"), frame(data, 0, 1, ""), false},
		{"DATA without end", hello + frame(headers, 4, 1, "\x88"), frame(data, 0, 1, strings.Repeat("x", 1000)), false},
		{"a frame that is too long", hello + "\xff\xff\xff\x00\x00\x00\x00\x00\x01", filler, false},
		{"frames of unknown types without end", hello, frame(0xfa, 0, 0, "x"), false},
		{"a promised stream", hello + frame(5, 4, 1, "\x00\x00\x00\x02\x82"), "", false},
	} {
		out = append(out, Case{
			Name: bad.name, Protocols: []string{"h2"}, Connection: noMQTT, KeepsConnections: bad.stays,
			Raw: func(_ *Server, d Endpoint, c *tls.Conn) bool {
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_, _ = io.Copy(io.Discard, c) // until its end
				}()
				_, _ = io.WriteString(c, bad.begin) // the peer has closed the connection
				switch {
				case bad.then != "":
					repeat(c, bad.then, long)
				case bad.stays:
					<-ended
				}
				return true
			},
		})
	}
	out = append(out, Case{Name: "every HTTP/2 stream is reset", Protocols: []string{"h2"}, Connection: noMQTT, Request: always(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })})
	return out
}
