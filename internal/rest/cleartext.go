package rest

import (
	"net/http"
	"net/netip"

	"github.com/watchword-iot/watchword"
)

// IsLoopback reports whether host is "localhost" or a loopback address.
func IsLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

// checkCleartext refuses a request without TLS to another machine: anyone on the path could read a
// token, code or assertion in it. Requests of [NewUnauthenticated] without secrets may use plain
// HTTP. It is called with the request as it will be sent. Code: bad_request.
func (c *Client) checkCleartext(req *http.Request, body []byte) error {
	if req.URL.Scheme == "https" || IsLoopback(req.URL.Hostname()) {
		return nil
	}
	secret := len(body) > 0 || req.URL.User != nil || c.tokens != nil
	for _, h := range []string{"Authorization", "DPoP", "Cookie", "Proxy-Authorization"} {
		secret = secret || req.Header.Get(h) != ""
	}
	if !c.unauthenticated || secret {
		return watchword.Refuse(watchword.BadRequest, "%s://%s must be https://: tokens, codes and keys are not sent unencrypted to another machine", req.URL.Scheme, req.URL.Host)
	}
	return nil
}
