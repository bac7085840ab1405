package rest

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// ForLibrary returns a client for a library that makes requests of its own to a server whose documents name further URLs. Each exchange
// ends within timeout, and a body after maxBytes, with an error. Requests without TLS and redirections are refused. rt is the result of
// [Transport].
func ForLibrary(rt *http.Transport, timeout time.Duration, maxBytes int64) *http.Client {
	return &http.Client{
		Transport: limitedTransport{rt, maxBytes}, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the server redirects to another URL") },
	}
}

type limitedTransport struct {
	*http.Transport
	maxBytes int64
}

// RoundTrip makes one exchange.
func (l limitedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errors.New("the server names a URL that is not https")
	}
	res, err := l.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = &limitedBody{res.Body, l.maxBytes}
	return res, nil
}

// limitedBody fails at the byte behind its limit; io.LimitReader would end there as if the body were complete.
type limitedBody struct {
	io.ReadCloser
	left int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("the server's answer is too long")
	}
	return n, err
}
