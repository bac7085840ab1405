package main

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwe"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	jwxt "github.com/lestrrat-go/jwx/v3/jwt"
)

func keyOf(r request) (any, error) {
	if r.JWK != nil {
		return jwk.ParseKey(r.JWK)
	}
	if k, err := x509.ParsePKIXPublicKey(r.Key); err == nil {
		return k, nil
	}
	return x509.ParsePKCS8PrivateKey(r.Key)
}

func errLib(r request) error { return fmt.Errorf("%s: there is no %s", r.Op, r.Lib) }

func verifyJWS(r request) (a answer, err error) {
	key, err := keyOf(r)
	if err != nil {
		return a, err
	}
	switch r.Lib {
	case "jwx":
		alg, ok := jwa.LookupSignatureAlgorithm(r.Alg)
		if !ok {
			return a, errors.New("jwx has no " + r.Alg)
		}
		a.Data, err = jws.Verify([]byte(r.Raw), jws.WithKey(alg, key))
	case "go-jose":
		parse := josev4.ParseSignedCompact
		if strings.HasPrefix(r.Raw, "{") {
			parse = josev4.ParseSignedJSON
		}
		var o *josev4.JSONWebSignature
		if o, err = parse(r.Raw, []josev4.SignatureAlgorithm{josev4.SignatureAlgorithm(r.Alg)}); err == nil {
			a.Data, err = o.Verify(key)
		}
	default:
		err = errLib(r)
	}
	return a, err
}

func signJWS(r request) (a answer, err error) {
	key, err := keyOf(r)
	if err != nil {
		return a, err
	}
	switch r.Lib {
	case "jwx":
		alg, ok := jwa.LookupSignatureAlgorithm(r.Alg)
		if !ok {
			return a, errors.New("jwx has no " + r.Alg)
		}
		a.Data, err = jws.Sign(r.Data, jws.WithKey(alg, key))
		a.Text = string(a.Data)
	case "go-jose":
		var signer josev4.Signer
		var o *josev4.JSONWebSignature
		if signer, err = josev4.NewSigner(josev4.SigningKey{Algorithm: josev4.SignatureAlgorithm(r.Alg), Key: key}, nil); err == nil {
			if o, err = signer.Sign(r.Data); err == nil {
				a.Text, err = o.CompactSerialize()
			}
		}
	default:
		err = errLib(r)
	}
	return a, err
}

// encrypt makes a JWE with ECDH-ES and A256GCM.
func encrypt(r request) (a answer, err error) {
	key, err := keyOf(r)
	if err != nil {
		return a, err
	}
	switch r.Lib {
	case "jwx":
		var b []byte
		b, err = jwe.Encrypt(r.Data, jwe.WithKey(jwa.ECDH_ES(), key), jwe.WithContentEncryption(jwa.A256GCM()))
		a.Text = string(b)
	case "go-jose":
		var e josev4.Encrypter
		var o *josev4.JSONWebEncryption
		if e, err = josev4.NewEncrypter(josev4.A256GCM, josev4.Recipient{Algorithm: josev4.ECDH_ES, Key: key}, nil); err == nil {
			if o, err = e.Encrypt(r.Data); err == nil {
				a.Text, err = o.CompactSerialize()
			}
		}
	default:
		err = errLib(r)
	}
	return a, err
}

// decrypt opens a JWE with the key management of Alg; without one it is ECDH-ES.
func decrypt(r request) (a answer, err error) {
	key, err := keyOf(r)
	if err != nil {
		return a, err
	}
	switch r.Lib {
	case "jwx":
		alg := jwa.ECDH_ES()
		if r.Alg != "" {
			var ok bool
			if alg, ok = jwa.LookupKeyEncryptionAlgorithm(r.Alg); !ok {
				return a, errors.New("jwx has no " + r.Alg)
			}
		}
		a.Data, err = jwe.Decrypt([]byte(r.Raw), jwe.WithKey(alg, key))
	case "go-jose":
		parse := josev4.ParseEncryptedCompact
		if strings.HasPrefix(r.Raw, "{") {
			parse = josev4.ParseEncryptedJSON
		}
		var o *josev4.JSONWebEncryption
		if o, err = parse(r.Raw, []josev4.KeyAlgorithm{josev4.ECDH_ES}, []josev4.ContentEncryption{josev4.A256GCM, josev4.A128GCM}); err == nil {
			a.Data, err = o.Decrypt(key)
		}
	default:
		err = errLib(r)
	}
	return a, err
}

// thumbprint reads a JWK, as Raw, into a key that works, and answers with its thumbprint (RFC 7638).
func thumbprint(r request) (a answer, err error) {
	switch r.Lib {
	case "jwx":
		var k jwk.Key
		if k, err = jwk.ParseKey([]byte(r.Raw)); err == nil {
			var native any // what is no key at all shows when it is used
			if err = jwk.Export(k, &native); err == nil {
				a.Data, err = k.Thumbprint(crypto.SHA256)
			}
		}
	case "go-jose":
		var k josev4.JSONWebKey
		if err = k.UnmarshalJSON([]byte(r.Raw)); err == nil {
			if !k.Valid() {
				return a, errors.New("not valid")
			}
			a.Data, err = k.Thumbprint(crypto.SHA256)
		}
	default:
		err = errLib(r)
	}
	return a, err
}

// verifyJWT checks an ES256 token for one issuer and audience at one time.
func verifyJWT(r request) (a answer, err error) {
	key, err := keyOf(r)
	if err != nil {
		return a, err
	}
	now := func() time.Time { return time.Unix(r.Now, 0) }
	switch r.Lib {
	case "golang-jwt":
		p := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(r.Issuer), jwt.WithAudience(r.Aud), jwt.WithExpirationRequired(), jwt.WithIssuedAt(),
			jwt.WithTimeFunc(now))
		_, err = p.Parse(r.Raw, func(*jwt.Token) (any, error) { return key, nil })
	case "jwx":
		_, err = jwxt.Parse([]byte(r.Raw), jwxt.WithKey(jwa.ES256(), key), jwxt.WithIssuer(r.Issuer), jwxt.WithAudience(r.Aud), jwxt.WithClock(jwxt.ClockFunc(now)))
	default:
		err = errLib(r)
	}
	return a, err
}

// signJWT signs claims with ES256.
func signJWT(r request) (a answer, err error) {
	key, err := keyOf(r)
	if err != nil {
		return a, err
	}
	switch r.Lib {
	case "golang-jwt":
		t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims(r.Claims))
		for name, v := range r.Header {
			t.Header[name] = v
		}
		a.Text, err = t.SignedString(key)
	case "jwx":
		t, h := jwxt.New(), jws.NewHeaders()
		for name, v := range r.Claims {
			if err := t.Set(name, v); err != nil {
				return a, err
			}
		}
		for name, v := range r.Header {
			if err := h.Set(name, v); err != nil {
				return a, err
			}
		}
		var b []byte
		b, err = jwxt.Sign(t, jwxt.WithKey(jwa.ES256(), key, jws.WithProtectedHeaders(h)))
		a.Text = string(b)
	default:
		err = errLib(r)
	}
	return a, err
}
