// Package jose is seals: compact JWS and JWE, JWK and thumbprints, as bytes in
// and bytes out (RFC 7515 to 7518, 7638, 8037). It signs with ES256 and Ed25519,
// seals with ECDH-ES and A256GCM on P-256 and X25519, and knows no device. It
// refuses every header, algorithm and encoding that Watchword neither issues
// nor must accept (RFC 8725).
package jose
