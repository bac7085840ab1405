// Package rest is the client's side of an HTTP API that answers with problem
// documents. In come requests, out come bodies or the server's own refusals. It
// refuses answers that are longer, or take longer, than was asked for, and believes
// no word of a peer that is not authenticated.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
)

const (
	// exchangeTimeout is how long an exchange may take from its first byte to the last of the
	// answer, beside what was asked for: see [Request.timeout].
	exchangeTimeout = 30 * time.Second
	// minAnswerRate is the bytes of an answer in a second that are waited for.
	minAnswerRate = 128 << 10
	// maxBody is the most bytes of an answer unless the request says another bound.
	maxBody = 1 << 20
	// maxProblemBytes is the most bytes that are read of a refusal.
	maxProblemBytes = 64 << 10
	// maxWait is the longest that a server is asked to hold an answer back.
	maxWait = 60 * time.Second
)

// Client asks one server. Every request has a deadline for the whole exchange and a
// bound for the bytes of the answer. Make it with [New] or [NewUnauthenticated]. It is safe
// for concurrent use.
type Client struct {
	base            string
	http            *http.Client // never follows to another host with the token: see [WithoutRedirects]
	tokens          *Tokens      // nil for none
	unauthenticated bool
}

// New returns a client of the server at base (https://host:port, no slash at the end),
// whose identity rt verifies: its refusals count. tokens is where the token for each
// request comes from; nil for none. rt is of [Transport], or [WithHeaderLimit].
func New(base string, rt http.RoundTripper, tokens *Tokens) *Client {
	return &Client{base: base, http: WithoutRedirects(rt), tokens: tokens}
}

// NewUnauthenticated returns a client of whoever answers at base: only the body of an answer
// with status 200 is handed on, for a caller that checks what it proves by itself.
// Everything else is unavailable, with no code, text or Retry-After of the peer;
// [StatusOf] tells the status. A request that holds no secret may go without TLS; no other
// request does, of no client, but to a loopback address (bad_request).
func NewUnauthenticated(base string, rt http.RoundTripper) *Client {
	return &Client{base: base, http: WithoutRedirects(rt), unauthenticated: true}
}

// Base returns the server's address.
func (c *Client) Base() string { return c.base }

// WithoutTokens returns a client of the same server, over the same connections, without tokens.
func (c *Client) WithoutTokens() *Client {
	return &Client{base: c.base, http: c.http, unauthenticated: c.unauthenticated}
}

// CloseIdleConnections closes connections that no request uses.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Request is one request. Path begins with a slash.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Type   string // of Body
	Body   []byte
	Header map[string]string
	Max    int64 // of the answer, in bytes; 0 means 1 MiB
	// Wait asks the server to hold its answer back for so long at most, until there is
	// something to say: the parameter wait. The deadline is so much later, 60 s at most.
	Wait time.Duration
	// Prover proves a key in a request without a token; nil: no proof.
	Prover *Prover
}

func (r *Request) maxBytes() int64 {
	if r.Max == 0 {
		return maxBody
	}
	return r.Max
}

// timeout is the deadline of the whole exchange, with all that it takes: a token, and
// asking again with a better proof.
func (r *Request) timeout() time.Duration {
	return exchangeTimeout + min(max(r.Wait, 0), maxWait) + time.Duration(r.maxBytes()/minAnswerRate)*time.Second
}

// Answer is a good answer.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Problem is the document of a refusal, as the server sent it.
type Problem struct{ Document []byte }

// Error names what is wrapped.
func (p *Problem) Error() string { return "the server's answer" }

// unexpectedStatus is the status of an answer that does not count.
type unexpectedStatus int

// Error names the status, and nothing that the peer said.
func (s unexpectedStatus) Error() string { return "status " + strconv.Itoa(int(s)) }

// StatusOf returns the HTTP status that an unauthenticated peer refused with; 0 where
// there was none.
func StatusOf(err error) int {
	s, _ := errors.AsType[unexpectedStatus](err)
	return int(s)
}

// Do asks and reads the answer. A refusal is a [watchword.Error] with the
// server's code, and wraps its [Problem]. Codes, beside those: unavailable where
// nobody answers, or not in time, or with more bytes than were asked for.
func (c *Client) Do(ctx context.Context, r Request) (*Answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout(), timeoutError(r.timeout()))
	defer cancel()
	res, err := c.doWithRetry(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	limit := r.maxBytes()
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err == nil {
		err = ctx.Err() // a server may end its answer when it sees that nobody waits any more
	}
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if int64(len(body)) > limit {
		// The server says too_large of a request: of that, callers may draw conclusions.
		return nil, c.refuse(nil, watchword.Unavailable, "the answer is over %d bytes", limit)
	}
	return &Answer{res.StatusCode, res.Header, body}, nil
}

// refuse is [watchword.Because] for an answer that this client refuses; of a stranger
// it is unavailable.
func (c *Client) refuse(err error, code watchword.Code, format string, a ...any) error {
	if c.unauthenticated {
		code = watchword.Unavailable
	}
	return watchword.Wrap(err, code, format, a...)
}

// doWithRetry asks and returns the answer with its body unread. It asks again where the server
// only wants a proof, or another nonce in it.
func (c *Client) doWithRetry(ctx context.Context, r Request) (*http.Response, error) {
	const tries = 3
	for try := 1; ; try++ {
		res, err := c.doOnce(ctx, r)
		if try == tries || !c.retryable(r, err) {
			return res, err
		}
	}
}

// retryable reports whether the same request can do what err says was missing.
func (c *Client) retryable(r Request, err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.DPoPNonce:
		return r.Prover != nil || c.tokens != nil
	case watchword.ProofRequired:
		return c.tokens != nil && c.tokens.BindTokens()
	case watchword.TokenExpired, watchword.TokenUnrecorded, watchword.TokenRevoked, watchword.IssuerRevoked, watchword.KeyUnknown, watchword.Unauthenticated:
		if c.tokens != nil {
			c.tokens.Forget() // the server does not know it any more
			return true
		}
	}
	return false
}

func (c *Client) doOnce(ctx context.Context, r Request) (*http.Response, error) {
	u := c.base + r.Path
	q := r.Query
	if r.Wait > 0 {
		q = url.Values{"wait": {r.Wait.String()}}
		for k, v := range r.Query {
			q[k] = v
		}
	}
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u, bytes.NewReader(r.Body))
	if err != nil {
		return nil, watchword.Wrap(err, watchword.BadRequest, "the server's URL is none")
	}
	if r.Type != "" {
		req.Header.Set("Content-Type", r.Type)
	}
	for k, v := range r.Header {
		req.Header.Set(k, v)
	}
	if err := c.checkCleartext(req, r.Body); err != nil { // before a token is asked for
		return nil, err
	}
	access, prover := "", r.Prover
	if c.tokens != nil {
		if access, prover, err = c.tokens.credential(ctx); err != nil {
			return nil, err
		}
		scheme := "Bearer "
		if prover != nil {
			scheme = "DPoP "
		}
		req.Header.Set("Authorization", scheme+access)
	}
	if prover != nil {
		if err := prover.addProof(req, access); err != nil {
			return nil, err
		}
	}
	if err := c.checkCleartext(req, r.Body); err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if prover != nil {
		prover.noteNonce(res)
	}
	switch {
	case res.StatusCode == http.StatusOK, !c.unauthenticated && (res.StatusCode < 300 || res.StatusCode == http.StatusNotModified):
		return res, nil
	}
	defer res.Body.Close()
	if c.unauthenticated {
		return nil, watchword.Wrap(unexpectedStatus(res.StatusCode), watchword.Unavailable, "who answers there, and proves nothing, gave no answer that counts: status %d", res.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxProblemBytes))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return nil, parseProblem(res, b)
}

// JSON is Do with a JSON body (nil for none) and a JSON answer (nil: it is not read).
func (c *Client) JSON(ctx context.Context, r Request, in, out any) (*Answer, error) {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, watchword.Wrap(err, watchword.BadRequest, "what was to be sent is no JSON")
		}
		r.Body, r.Type = b, "application/json"
	}
	a, err := c.Do(ctx, r)
	if err != nil || out == nil {
		return a, err
	}
	if err := json.Unmarshal(a.Body, out); err != nil {
		return a, c.refuse(publicError{"the answer is not what was asked for", err}, watchword.Internal, "the answer is not what was asked for")
	}
	return a, nil
}

// parseProblem reads a problem document (RFC 9457) or OAuth's own error (RFC 6749 §5.2).
func parseProblem(res *http.Response, body []byte) error {
	var p struct {
		Code        watchword.Code `json:"code"`
		Detail      string         `json:"detail"`
		Field       string         `json:"field"`
		Rule        string         `json:"rule"`
		OAuth       string         `json:"error"`
		Description string         `json:"error_description"`
		RetryAfter  int            `json:"retry_after"`
	}
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" && p.OAuth == "" {
		return watchword.Refuse(watchword.Unavailable, "the server answered %s, and not as Watchword does", res.Status)
	}
	if p.Detail == "" {
		p.Detail = p.Description
	}
	if p.Code == "" {
		p.Code = watchword.ClientInvalid
	}
	if p.RetryAfter == 0 {
		p.RetryAfter, _ = strconv.Atoi(res.Header.Get("Retry-After")) // absent or a date: 0
	}
	return &watchword.Error{
		Code: p.Code, Detail: p.Detail, Field: p.Field, Rule: p.Rule, RetryAfter: time.Duration(min(max(p.RetryAfter, 0), 3600)) * time.Second,
		Err: &Problem{body},
	}
}
