package bench_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"strings"
	"testing"
	"time"

	josev4 "github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwa"
	jwxt "github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/token"
)

const issuer = "https://localhost:8443"

type fixture struct {
	raw    string
	keys   token.KeySet
	public *ecdsa.PublicKey
	now    time.Time
}

// paper signs the access token of an ordinary device: ES256, its own topics and a call.
func paper(tb testing.TB) fixture {
	tb.Helper()
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		tb.Fatal(err)
	}
	doc, err := policy.Parse("lamps", []byte("for = { kind = \"lamp\" }\n[[allow]]\ncall = [\"lamp.set\"]\non = { kind = \"lamp\", site = \"${site}\" }\n"))
	if err != nil {
		tb.Fatal(err)
	}
	labels := watchword.Labels{"kind": "lamp", "site": "plant-1"}
	g := policy.NewSet(doc).For(policy.Who{ID: "lamp-1", Kind: watchword.Device, Labels: labels})
	now := time.Now()
	raw, err := token.SignAccess(s, token.Grant{
		Issuer: issuer, Subject: watchword.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: labels}, Key: k.Public().ID(),
		JTI: watchword.NewID("tok_", now), Issued: now, Expires: now.Add(10 * time.Minute), Perm: g.Perm(), Deny: g.Deny(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return fixture{raw, token.NewKeySet(k.Public()), k.Public().Crypto().(*ecdsa.PublicKey), now}
}

// Raw is what nobody can go below: the digest and the ES256 check of the very same bytes.
func BenchmarkVerifyToken(b *testing.B) {
	f := paper(b)
	check := bare(b, f)
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !check() {
				b.Fatal("does not verify")
			}
		}
	})
	b.Run("watchword", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := token.VerifyAccess(f.raw, f.keys, issuer, issuer, f.now, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("golang-jwt", func(b *testing.B) {
		b.ReportAllocs()
		p := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(issuer), jwt.WithAudience(issuer), jwt.WithExpirationRequired())
		key := func(*jwt.Token) (any, error) { return f.public, nil }
		for b.Loop() {
			if _, err := p.Parse(f.raw, key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("go-jose", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			t, err := josejwt.ParseSigned(f.raw, []josev4.SignatureAlgorithm{josev4.ES256})
			if err != nil {
				b.Fatal(err)
			}
			var c josejwt.Claims
			if err := t.Claims(f.public, &c); err != nil {
				b.Fatal(err)
			}
			if err := c.Validate(josejwt.Expected{Issuer: issuer, AnyAudience: josejwt.Audience{issuer}, Time: f.now}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("jwx", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := jwxt.Parse([]byte(f.raw), jwxt.WithKey(jwa.ES256(), f.public), jwxt.WithIssuer(issuer), jwxt.WithAudience(issuer)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func verify(f fixture) error {
	_, err := token.VerifyAccess(f.raw, f.keys, issuer, issuer, f.now, 0)
	return err
}

// bare is the digest and the ES256 check of a token's bytes, its signature decoded beforehand.
func bare(tb testing.TB, f fixture) func() bool {
	tb.Helper()
	cut := strings.LastIndexByte(f.raw, '.')
	sig, err := base64.RawURLEncoding.DecodeString(f.raw[cut+1:])
	if err != nil {
		tb.Fatal(err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	if err != nil {
		tb.Fatal(err)
	}
	return func() bool {
		sum := sha256.Sum256([]byte(f.raw[:cut]))
		return ecdsa.VerifyASN1(f.public, sum[:], der)
	}
}
