// Package token is the papers: one Go type and one verifier for each kind of
// token that Watchword speaks (DESIGN §3), as claims in and compact bytes out,
// and back. It takes keys from the caller and the time as an argument, and
// gives checked claims. It refuses a paper of another kind, of another issuer
// or audience, early, over, too long-lived, too large, or not strictly encoded
// (RFC 7515, 7519, 7523, 8725, 9068).
package token
