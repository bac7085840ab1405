package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxt "github.com/lestrrat-go/jwx/v3/jwt"
)

const issuer = "https://localhost:8443"

// contender is one way to check a token.
type contender struct {
	name  string
	check func() error
}

// tokens is testdata/tokens.json: an access token (ES256) and a client assertion (EdDSA) of the product.
type tokens struct {
	Now               int64
	Access, Assertion struct {
		JWK json.RawMessage
		Raw string
	}
}

func read(tb testing.TB) (in tokens) {
	tb.Helper()
	b, err := os.ReadFile("testdata/tokens.json")
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return in
}

func key[T any](tb testing.TB, raw json.RawMessage) (out T) {
	tb.Helper()
	k, err := jwk.ParseKey(raw)
	if err == nil {
		err = jwk.Export(k, &out)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// split returns what is signed and the signature.
func split(tb testing.TB, raw string) (input, sig []byte) {
	tb.Helper()
	cut := strings.LastIndexByte(raw, '.')
	sig, err := base64.RawURLEncoding.DecodeString(raw[cut+1:])
	if err != nil {
		tb.Fatal(err)
	}
	return []byte(raw[:cut]), sig
}

// access returns the ways to check the access token; the first is the digest and the signature check of its bytes alone.
func access(tb testing.TB) []contender {
	in := read(tb)
	raw, public := in.Access.Raw, key[ecdsa.PublicKey](tb, in.Access.JWK)
	input, sig := split(tb, raw)
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	if err != nil {
		tb.Fatal(err)
	}
	bare := func() bool {
		sum := sha256.Sum256(input)
		return ecdsa.VerifyASN1(&public, sum[:], der)
	}
	return contenders(raw, "ES256", issuer, &public, in.Now, bare)
}

// assertion returns the ways to check the client assertion.
func assertion(tb testing.TB) []contender {
	in := read(tb)
	raw, public := in.Assertion.Raw, key[ed25519.PublicKey](tb, in.Assertion.JWK)
	input, sig := split(tb, raw)
	return contenders(raw, "EdDSA", "lamp-1", public, in.Now, func() bool { return ed25519.Verify(public, input, sig) })
}

func contenders(raw, alg, iss string, public any, at int64, bare func() bool) []contender {
	now := func() time.Time { return time.Unix(at, 0) }
	p := jwt.NewParser(jwt.WithValidMethods([]string{alg}), jwt.WithIssuer(iss), jwt.WithAudience(issuer), jwt.WithExpirationRequired(), jwt.WithTimeFunc(now))
	jwxAlg, _ := jwa.LookupSignatureAlgorithm(alg)
	return []contender{
		{"raw", func() error {
			if !bare() {
				return errors.New("does not verify")
			}
			return nil
		}},
		{"golang-jwt", func() error {
			_, err := p.Parse(raw, func(*jwt.Token) (any, error) { return public, nil })
			return err
		}},
		{"go-jose", func() error {
			t, err := josejwt.ParseSigned(raw, []josev4.SignatureAlgorithm{josev4.SignatureAlgorithm(alg)})
			if err != nil {
				return err
			}
			var c josejwt.Claims
			if err := t.Claims(public, &c); err != nil {
				return err
			}
			return c.Validate(josejwt.Expected{AnyAudience: josejwt.Audience{issuer}, Time: now()})
		}},
		{"jwx", func() error {
			_, err := jwxt.Parse([]byte(raw), jwxt.WithKey(jwxAlg, public), jwxt.WithIssuer(iss), jwxt.WithAudience(issuer), jwxt.WithClock(jwxt.ClockFunc(now)))
			return err
		}},
	}
}

func TestAllTakeTheTokens(t *testing.T) {
	for _, c := range append(access(t), assertion(t)...) {
		if err := c.check(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func BenchmarkVerifyToken(b *testing.B)     { each(b, access(b)) }
func BenchmarkVerifyAssertion(b *testing.B) { each(b, assertion(b)) }

func each(b *testing.B, cs []contender) {
	for _, c := range cs {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.check(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Each takes turns with the raw check, as in package bench of the product: a machine that others use too gives each
// another minute. Reported is its median as a multiple of the raw median.
func BenchmarkVerifyTokenInTurns(b *testing.B)     { inTurns(b, access(b)) }
func BenchmarkVerifyAssertionInTurns(b *testing.B) { inTurns(b, assertion(b)) }

func inTurns(b *testing.B, cs []contender) {
	const most = 1 << 17 // of samples kept for each
	for _, c := range cs[1:] {
		b.Run(c.name, func(b *testing.B) {
			pair := [2]contender{cs[0], c}
			var took [2][]time.Duration
			for b.Loop() {
				for i, c := range pair {
					begin := time.Now()
					err := c.check()
					if d := time.Since(begin); len(took[i]) < most {
						took[i] = append(took[i], d)
					}
					if err != nil {
						b.Fatal(c.name, err)
					}
				}
			}
			var medians [2]float64
			for i, ds := range took {
				slices.Sort(ds)
				medians[i] = float64(ds[len(ds)/2])
			}
			b.ReportMetric(0, "ns/op") // of both together, which says nothing
			b.ReportMetric(medians[0], "raw-ns")
			b.ReportMetric(medians[1]/medians[0], "x-raw")
		})
	}
}
