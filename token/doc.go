// Package token signs and verifies every type of token: one Go type and one verifier for each typ (docs/protocol.md lists them).
// Callers pass the keys and the current time; verifiers return checked claims. It refuses a token of another type, issuer or
// audience, one that is not valid yet or has expired, one whose lifetime or size exceeds its limit, and one that is not strictly
// encoded (RFC 7515, 7519, 7523, 8725, 9068).
package token
