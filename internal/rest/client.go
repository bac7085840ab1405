// Package rest is an HTTP client for APIs that answer with problem documents. Requests go in;
// answers, or the server's refusals, come out. It refuses answers that are longer or slower than
// allowed, and uses no text of a peer that is not authenticated.
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
	// exchangeTimeout limits an exchange, in addition to the time that the request states: see [Request.timeout].
	exchangeTimeout = 30 * time.Second
	// minAnswerRate is the slowest accepted rate of an answer, in bytes a second.
	minAnswerRate = 128 << 10
	// maxBody limits an answer in bytes, unless the request sets another limit.
	maxBody = 1 << 20
	// maxProblemBytes limits the bytes that are read of a problem document.
	maxProblemBytes = 64 << 10
	// maxWait is the longest long poll.
	maxWait = 60 * time.Second
)

// Client sends requests to one server. Every request has a deadline and a limit on the answer's
// bytes. Make one with [New] or [NewUnauthenticated]. It is safe for concurrent use.
type Client struct {
	base            func() string
	http            *http.Client // follows no redirect, so that no token is sent to another host: see [WithoutRedirects]
	tokens          *Tokens      // nil: no tokens
	unauthenticated bool
}

// New returns a client of the server at base (https://host:port, no trailing slash). rt
// authenticates the server, so its refusals are trusted. tokens provides the token of each request;
// nil: none. rt is the result of [Transport] or [WithHeaderLimit].
func New(base string, rt http.RoundTripper, tokens *Tokens) *Client {
	return NewAt(func() string { return base }, rt, tokens)
}

// NewAt is [New] for a server whose address may change: base is called for each request.
func NewAt(base func() string, rt http.RoundTripper, tokens *Tokens) *Client {
	return &Client{base: base, http: WithoutRedirects(rt), tokens: tokens}
}

// NewUnauthenticated returns a client of an unauthenticated server at base. Only bodies of answers
// with status 200 are returned, to a caller that verifies them. Everything else is unavailable,
// without code, text or Retry-After of the peer; [StatusOf] returns the status. Requests without
// secrets may use plain HTTP; other requests, of any client, only to loopback addresses
// (bad_request).
func NewUnauthenticated(base string, rt http.RoundTripper) *Client {
	return &Client{base: func() string { return base }, http: WithoutRedirects(rt), unauthenticated: true}
}

// Base returns the server's address.
func (c *Client) Base() string { return c.base() }

// WithoutTokens returns a client of the same server and connections, without tokens.
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
	Type   string // content type of Body
	Body   []byte
	Header map[string]string
	Max    int64 // limit of the answer, in bytes; 0 means 1 MiB
	// Wait sets the parameter wait: the server may delay its answer that long, at most 60 s. The
	// deadline is later by as much.
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

// timeout returns the deadline of the whole exchange, including a token request and a repetition
// with another proof.
func (r *Request) timeout() time.Duration {
	return exchangeTimeout + min(max(r.Wait, 0), maxWait) + time.Duration(r.maxBytes()/minAnswerRate)*time.Second
}

// Answer is a successful answer.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Problem is the problem document of a refusal, as the server sent it.
type Problem struct{ Document []byte }

// Error returns the code's name.
func (p *Problem) Error() string { return "the server's answer" }

// unexpectedStatus is the status of an unusable answer.
type unexpectedStatus int

// Error names the status, and nothing that the peer sent.
func (s unexpectedStatus) Error() string { return "status " + strconv.Itoa(int(s)) }

// StatusOf returns the HTTP status of a refusal by an unauthenticated peer; 0 for none.
func StatusOf(err error) int {
	s, _ := errors.AsType[unexpectedStatus](err)
	return int(s)
}

// Do sends a request and reads the answer. A refusal is a [watchword.Error] with the server's code,
// and wraps its [Problem]. Codes beside those: unavailable where the server does not answer, is too
// slow, or sends more bytes than allowed.
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
		err = ctx.Err() // a server may end its answer when the client stops waiting
	}
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if int64(len(body)) > limit {
		// The code too_large of a server is about the request; callers rely on that.
		return nil, c.refuse(nil, watchword.Unavailable, "the answer has more than %d bytes", limit)
	}
	return &Answer{res.StatusCode, res.Header, body}, nil
}

// refuse is [watchword.Wrap] for an answer that this client refuses; from an unauthenticated server it is unavailable.
func (c *Client) refuse(err error, code watchword.Code, format string, a ...any) error {
	if c.unauthenticated {
		code = watchword.Unavailable
	}
	return watchword.Wrap(err, code, format, a...)
}

// doWithRetry sends a request and returns the answer with its body unread. It repeats the request
// where the server demands a proof, or another nonce in it.
func (c *Client) doWithRetry(ctx context.Context, r Request) (*http.Response, error) {
	const tries = 3
	for try := 1; ; try++ {
		res, err := c.doOnce(ctx, r)
		if try == tries || !c.retryable(r, err) {
			return res, err
		}
	}
}

// retryable reports whether the client can add what err says was missing.
func (c *Client) retryable(r Request, err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.DPoPNonce:
		return r.Prover != nil || c.tokens != nil
	case watchword.ProofRequired:
		return c.tokens != nil && c.tokens.BindTokens()
	case watchword.TokenExpired, watchword.TokenEarly, watchword.TokenUnrecorded, watchword.TokenRevoked, watchword.IssuerRevoked, watchword.KeyUnknown, watchword.Unauthenticated:
		if c.tokens != nil {
			c.tokens.Forget() // the server does not accept the token any more, or issued it by a clock that was ahead
			return true
		}
	case watchword.Denied:
		return c.tokens != nil && c.tokens.forgetLoaded() // its permissions may be those of before
	}
	return false
}

func (c *Client) doOnce(ctx context.Context, r Request) (*http.Response, error) {
	u := c.base() + r.Path
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
		return nil, watchword.Wrap(err, watchword.BadRequest, "the server's URL must be https://HOST[:PORT]")
	}
	if r.Type != "" {
		req.Header.Set("Content-Type", r.Type)
	}
	for k, v := range r.Header {
		req.Header.Set(k, v)
	}
	if err := c.checkCleartext(req, r.Body); err != nil { // checked before a token is requested
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
		return nil, watchword.Wrap(unexpectedStatus(res.StatusCode), watchword.Unavailable, "the server, which is not authenticated yet, answered with status %d", res.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxProblemBytes))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return nil, parseProblem(res, b)
}

// JSON is Do with a JSON body (nil: none) and a JSON answer (nil: ignored).
func (c *Client) JSON(ctx context.Context, r Request, in, out any) (*Answer, error) {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, watchword.Wrap(err, watchword.BadRequest, "the request cannot be encoded as JSON")
		}
		r.Body, r.Type = b, "application/json"
	}
	a, err := c.Do(ctx, r)
	if err != nil || out == nil {
		return a, err
	}
	if err := json.Unmarshal(a.Body, out); err != nil {
		return a, c.refuse(publicError{"the server's answer is not of the requested type", err}, watchword.Internal, "the server's answer is not of the requested type")
	}
	return a, nil
}

// parseProblem parses a problem document (RFC 9457) or an OAuth error (RFC 6749 §5.2).
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
		return watchword.Refuse(watchword.Unavailable, "the server answered %s, without a problem document", res.Status)
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
