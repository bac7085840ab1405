// Package httpapi is the HTTPS API with the OAuth endpoints. In come requests with credentials, out
// go answers, problem documents (RFC 9457) and streams; every request with a token is a session of
// the guard. It refuses requests whose credentials are not valid, and its refusals disclose nothing
// that is not public or the caller's own.
package httpapi
