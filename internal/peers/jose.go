package peers

import (
	"crypto/x509"
	"encoding/json"
	"testing"
)

// The libraries for JOSE.
const (
	JWX       = "jwx"
	GoJOSE    = "go-jose"
	GolangJWT = "golang-jwt"
)

// key puts a key into a request: a JWK as json.RawMessage, or a public or private key of the standard library.
func (r request) key(t testing.TB, key any) request {
	t.Helper()
	if jwk, ok := key.(json.RawMessage); ok {
		r.JWK = jwk
		return r
	}
	var err error
	if r.Key, err = x509.MarshalPKIXPublicKey(key); err != nil {
		if r.Key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// VerifyJWS returns what lib reads out of a JWS by a public key, or its error.
func (p *Peers) VerifyJWS(t testing.TB, lib, alg string, key any, raw string) (string, error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "jws.verify", Lib: lib, Alg: alg, Raw: raw}.key(t, key))
	return string(a.Data), err
}

// SignJWS returns the compact JWS that lib makes.
func (p *Peers) SignJWS(t testing.TB, lib, alg string, key any, payload []byte) (string, error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "jws.sign", Lib: lib, Alg: alg, Data: payload}.key(t, key))
	return a.Text, err
}

// Encrypt returns the compact JWE (ECDH-ES, A256GCM) that lib makes.
func (p *Peers) Encrypt(t testing.TB, lib string, key any, plain []byte) (string, error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "jwe.encrypt", Lib: lib, Data: plain}.key(t, key))
	return a.Text, err
}

// Decrypt returns what lib reads out of a JWE. alg is the key management; empty means ECDH-ES.
func (p *Peers) Decrypt(t testing.TB, lib, alg string, key any, raw string) (string, error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "jwe.decrypt", Lib: lib, Alg: alg, Raw: raw}.key(t, key))
	return string(a.Data), err
}

// Thumbprint returns the SHA-256 thumbprint (RFC 7638) of a JWK that lib can use, or why it cannot.
func (p *Peers) Thumbprint(t testing.TB, lib string, jwk []byte) ([]byte, error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "jwk.thumbprint", Lib: lib, Raw: string(jwk)})
	return a.Data, err
}

// VerifyJWT returns why lib does not take an ES256 token of an issuer, for an audience, at a time in seconds.
func (p *Peers) VerifyJWT(t testing.TB, lib string, key any, raw, issuer, audience string, now int64) error {
	t.Helper()
	_, err := p.ask(t, request{Op: "jwt.verify", Lib: lib, Raw: raw, Issuer: issuer, Aud: audience, Now: now}.key(t, key))
	return err
}

// SignJWT returns the ES256 token that lib makes of claims, with further members of its header.
func (p *Peers) SignJWT(t testing.TB, lib string, key any, header map[string]string, claims map[string]any) (string, error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "jwt.sign", Lib: lib, Header: header, Claims: claims}.key(t, key))
	return a.Text, err
}
