package server

import "net/http"

// newHTTPServer returns an HTTP server for h. Every HTTP listener of the product uses one of these.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:                      closeAmbiguousFraming(h),
		DisableGeneralOptionsHandler: true, // OPTIONS * is passed to h too, so that closeAmbiguousFraming sees every request
	}
}

// closeAmbiguousFraming closes an HTTP/1 connection after the answer to a request whose length
// another
// server on the path may have read differently: what follows on the connection may be a part of its
// body
// there, or a request that no client sent (RFC 9112 §11.2).
//
//   - A request with Transfer-Encoding: with a Content-Length beside it the connection must be
//     closed (§6.1), and net/http has removed that header by now, so it is closed in each case.
//   - HTTP/1.0: with a Transfer-Encoding it must be closed (§6.1), and net/http has removed it.
//
// HTTP/2 frames have an explicit length.
func closeAmbiguousFraming(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 && (r.ProtoMinor == 0 || len(r.TransferEncoding) > 0) {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}
