// Package rest is the client's side of an HTTP API that answers with problem
// documents. In come requests, out come bodies or the server's own refusals. It
// refuses answers that are longer than was asked for.
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

// Client asks one server. It is safe for concurrent use.
type Client struct {
	Base string       // https://host:port, no slash at the end
	HTTP *http.Client // never follows to another host with the token: see Do
	// Tokens is where the token for each request comes from; nil for none.
	Tokens *Tokens
	// Public says that requests ask for what anyone may read, and hold no secret: they may go without TLS. No other request
	// does, but to a loopback address (bad_request).
	Public bool
}

// Request is one request. Path begins with a slash.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Type   string // of Body
	Body   []byte
	Header map[string]string
	Max    int64 // of the answer, in bytes; 0 means 1 MiB
	// Prover proves a key in a request without a token; nil: no proof.
	Prover *Prover
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

// Do asks and reads the answer. A refusal is a [watchword.Error] with the
// server's code, and wraps its [Problem]. Code, beside those: unavailable where
// nobody answers.
func (c *Client) Do(ctx context.Context, r Request) (*Answer, error) {
	res, err := c.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	most := r.Max
	if most == 0 {
		most = 1 << 20
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if int64(len(body)) > most {
		return nil, watchword.Refuse(watchword.TooLarge, "the server's answer is over %d bytes", most)
	}
	return &Answer{res.StatusCode, res.Header, body}, nil
}

// Open asks and returns the answer with its body unread: for streams. The caller
// closes it. It asks again where the server only wants a proof, or another nonce in it.
func (c *Client) Open(ctx context.Context, r Request) (*http.Response, error) {
	const tries = 3
	for try := 1; ; try++ {
		res, err := c.open(ctx, r)
		if try == tries || !c.better(r, err) {
			return res, err
		}
	}
}

// better reports whether the same request can do what err says was missing.
func (c *Client) better(r Request, err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.DPoPNonce:
		return r.Prover != nil || c.Tokens != nil
	case watchword.ProofRequired:
		return c.Tokens != nil && c.Tokens.Prove()
	case watchword.TokenExpired, watchword.TokenUnrecorded, watchword.TokenRevoked, watchword.IssuerRevoked, watchword.KeyUnknown, watchword.Unauthenticated:
		if c.Tokens != nil {
			c.Tokens.Forget() // the server does not know it any more
			return true
		}
	}
	return false
}

func (c *Client) open(ctx context.Context, r Request) (*http.Response, error) {
	u := c.Base + r.Path
	if len(r.Query) > 0 {
		u += "?" + r.Query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u, bytes.NewReader(r.Body))
	if err != nil {
		return nil, watchword.Because(err, watchword.BadRequest, "the server's URL is none")
	}
	if r.Type != "" {
		req.Header.Set("Content-Type", r.Type)
	}
	for k, v := range r.Header {
		req.Header.Set(k, v)
	}
	if err := c.checkClear(req, r.Body); err != nil { // before a token is asked for
		return nil, err
	}
	access, prover := "", r.Prover
	if c.Tokens != nil {
		if access, prover, err = c.Tokens.credential(ctx); err != nil {
			return nil, err
		}
		scheme := "Bearer "
		if prover != nil {
			scheme = "DPoP "
		}
		req.Header.Set("Authorization", scheme+access)
	}
	if prover != nil {
		if err := prover.prove(req, access); err != nil {
			return nil, err
		}
	}
	if err := c.checkClear(req, r.Body); err != nil {
		return nil, err
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if prover != nil {
		prover.heard(res)
	}
	if res.StatusCode < 300 || res.StatusCode == http.StatusNotModified {
		return res, nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	return nil, refusal(res, b)
}

// JSON is Do with a JSON body (nil for none) and a JSON answer (nil: it is not read).
func (c *Client) JSON(ctx context.Context, r Request, in, out any) (*Answer, error) {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, watchword.Because(err, watchword.BadRequest, "what was to be sent is no JSON")
		}
		r.Body, r.Type = b, "application/json"
	}
	a, err := c.Do(ctx, r)
	if err != nil || out == nil {
		return a, err
	}
	if err := json.Unmarshal(a.Body, out); err != nil {
		return a, watchword.Because(err, watchword.Internal, "the server's answer is not what was asked for")
	}
	return a, nil
}

func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		return e
	}
	// The URL in an error may be long; what went wrong is its innermost part.
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return watchword.Because(err, watchword.Unavailable, "the server does not answer: %s", err)
}

// refusal reads a problem document (RFC 9457) or OAuth's own error (RFC 6749 §5.2).
func refusal(res *http.Response, body []byte) error {
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

// NoRedirects keeps a client from carrying a token to another address.
func NoRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
