// Package jose implements compact JWS and JWE, JWK and JWK thumbprints (RFC 7515 to 7518, 7638, 8037). It signs with ES256 and
// Ed25519, and encrypts with ECDH-ES and A256GCM on P-256 and X25519. It refuses every header member, algorithm and encoding
// that Watchword neither issues nor must accept (RFC 8725).
package jose
