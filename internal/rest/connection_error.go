package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
)

// timeoutError is the error of an exchange that reached its deadline.
func timeoutError(d time.Duration) error {
	return watchword.Refuse(watchword.Unavailable, "the server did not answer completely within %s", d)
}

// publicError replaces the text of an error, so that text chosen by a peer is in no message.
type publicError struct {
	words string
	err   error
}

// Error returns the replacement, Unwrap the original error.
func (s publicError) Error() string { return s.words }
func (s publicError) Unwrap() error { return s.err }

// unreachable converts the error of an exchange without an answer. ctx is that of the exchange.
// Cancellation by the caller is returned unchanged.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if cause, ok := errors.AsType[*watchword.Error](context.Cause(ctx)); ok {
			return cause
		}
		return ctx.Err()
	}
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		return e
	}
	// The URL in an error may be long; the innermost error says what went wrong.
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	w := publicText(err)
	if w == "" && c.unauthenticated {
		w = "what came is no HTTP"
	}
	if w == "" {
		w = err.Error()
	}
	return watchword.Wrap(publicError{w, err}, watchword.Unavailable, "the server does not answer: %s", w)
}

// publicText returns the text of a connection error without parts that the peer chose; empty for
// unknown errors.
func publicText(err error) string {
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return certificateText(e.Err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it does not speak TLS"
	}
	if e, ok := errors.AsType[dialError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "it took too long"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the connection ended before the answer did"
	}
	return ""
}

// certificateText says why a certificate is not accepted, without its contents.
func certificateText(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is of an authority that is not trusted here"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate is for another name"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "its certificate is not valid at this time"
	}
	return "its certificate does not count"
}
