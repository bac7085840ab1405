package bench_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/token"
)

const issuer = "https://localhost:8443"

type fixture struct {
	raw    string
	keys   token.KeySet
	public *ecdsa.PublicKey
	now    time.Time
}

// benchToken signs the access token of an ordinary device: ES256, its own topics and a call.
func benchToken(tb testing.TB) fixture {
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
	g := policy.NewSet(doc).GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: labels})
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

// contenders are ways to verify one token, raw first: the lower bound, which is the digest and the signature check of the
// same bytes. Third-party libraries are compared with raw in the module peers, over the tokens of its testdata.
type implementation struct {
	name  string
	check func() error
}

var errBad = errors.New("does not verify")

func accessContenders(tb testing.TB) []implementation {
	f := benchToken(tb)
	check := bareVerify(tb, f)
	return []implementation{
		{"raw", func() error {
			if !check() {
				return errBad
			}
			return nil
		}},
		{"watchword", func() error { return verify(f) }},
	}
}

// assertionContenders check one client assertion, Ed25519 under its old name, which
// is the one that all of them know.
func assertionContenders(tb testing.TB) []implementation {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	k, err := jose.NewPublicKey(public)
	if err != nil {
		tb.Fatal(err)
	}
	now := time.Now()
	encode := base64.RawURLEncoding.EncodeToString
	raw := encode(fmt.Appendf(nil, `{"alg":"EdDSA","kid":%q,"typ":%q}`, k.ID(), token.TypAssertion)) + "." +
		encode(fmt.Appendf(nil, `{"aud":%q,"exp":%d,"iat":%d,"iss":"lamp-1","jti":%q,"sub":"lamp-1"}`, issuer, now.Add(5*time.Minute).Unix(), now.Unix(), watchword.NewNonce()))
	raw += "." + encode(ed25519.Sign(private, []byte(raw)))
	cut := strings.LastIndexByte(raw, '.')
	input := []byte(raw[:cut])
	sig, err := base64.RawURLEncoding.DecodeString(raw[cut+1:])
	if err != nil {
		tb.Fatal(err)
	}
	keys := token.NewKeySet(k)
	return []implementation{
		{"raw", func() error {
			if !ed25519.Verify(public, input, sig) {
				return errBad
			}
			return nil
		}},
		{"watchword", func() error {
			p, err := token.ParseAssertion(raw, false)
			if err == nil {
				err = p.CheckClaims(issuer, now)
			}
			if err == nil {
				_, err = p.Verify(keys)
			}
			return err
		}},
	}
}

func BenchmarkVerifyToken(b *testing.B)     { each(b, accessContenders(b)) }
func BenchmarkVerifyAssertion(b *testing.B) { each(b, assertionContenders(b)) }

func each(b *testing.B, cs []implementation) {
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

// The ratios are what is promised, and a machine that others use too gives each
// contender another minute. So here each takes turns with the raw check, one of
// each at a time, and what is reported is its median as a multiple of the raw median.
func BenchmarkVerifyTokenInTurns(b *testing.B)     { interleaved(b, accessContenders(b)) }
func BenchmarkVerifyAssertionInTurns(b *testing.B) { interleaved(b, assertionContenders(b)) }

func interleaved(b *testing.B, cs []implementation) {
	const most = 1 << 17 // of samples kept for each
	for _, c := range cs[1:] {
		b.Run(c.name, func(b *testing.B) {
			pair := [2]implementation{cs[0], c}
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

// Beside the signature check's own allocations a whole verification has ten at
// most, and one that is turned away has no more.
func TestVerifyingTakesFewAllocations(t *testing.T) {
	if racing {
		t.Skip("the race detector lets pools lose what they keep; make test counts without it")
	}
	for name, tc := range map[string]struct {
		cs   []implementation
		most float64
	}{
		"access token": {accessContenders(t), 8}, "assertion": {assertionContenders(t), 9},
	} {
		count := func(c implementation) float64 {
			return testing.AllocsPerRun(200, func() {
				if err := c.check(); err != nil {
					t.Fatal(err)
				}
			})
		}
		raw, whole := count(tc.cs[0]), count(tc.cs[1])
		if own := whole - raw; own > tc.most {
			t.Errorf("%s: %v allocations beside the %v of the signature check, want %v at most (10 are promised)", name, own, raw, tc.most)
		}
	}
	f := benchToken(t)
	a, err := token.VerifyAccess(f.raw, f.keys, issuer, issuer, f.now, 0)
	if err != nil {
		t.Fatal(err)
	}
	perm, _, err := a.Permissions()
	if err != nil {
		t.Fatal(err)
	}
	// Beside one string for each resource: the reader, its two functions, permissions and actions.
	if n := testing.AllocsPerRun(200, func() { _, _, err = a.Permissions() }); err != nil || n > float64(len(perm)+6) {
		t.Errorf("%d permissions are read into %v allocations, %v", len(perm), n, err)
	}
}

func verify(f fixture) error {
	_, err := token.VerifyAccess(f.raw, f.keys, issuer, issuer, f.now, 0)
	return err
}

// bareVerify is the digest and the ES256 check of a token's bytes, its signature decoded beforehand.
func bareVerify(tb testing.TB, f fixture) func() bool {
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
	input := []byte(f.raw[:cut])
	return func() bool {
		sum := sha256.Sum256(input)
		return ecdsa.VerifyASN1(f.public, sum[:], der)
	}
}
