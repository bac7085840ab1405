package jose

import (
	"crypto/ecdh"
	"fmt"
	"testing"

	josev4 "github.com/go-jose/go-jose/v4"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwe"
	"github.com/lestrrat-go/jwx/v3/jws"
)

// What others make we read, and what we make others read.

func TestSignaturesBesideJwxAndGoJose(t *testing.T) {
	for _, tc := range []struct {
		crv  string
		jwx  jwa.SignatureAlgorithm
		jose josev4.SignatureAlgorithm
	}{{P256, jwa.ES256(), josev4.ES256}, {Ed, jwa.EdDSA(), josev4.EdDSA}, {Ed, jwa.EdDSAEd25519(), josev4.EdDSA}} {
		t.Run(tc.crv, func(t *testing.T) {
			k, err := GenerateKey(tc.crv)
			if err != nil {
				t.Fatal(err)
			}
			s, err := k.Signer()
			if err != nil {
				t.Fatal(err)
			}
			for n := range 50 {
				payload := fmt.Appendf(nil, `{"n":%d}`, n)
				theirs, err := jws.Sign(payload, jws.WithKey(tc.jwx, k.Crypto()))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := verify(string(theirs), k.Public()); err != nil || string(got) != string(payload) {
					t.Fatalf("of jwx: %q, %v", got, err)
				}
				signer, err := josev4.NewSigner(josev4.SigningKey{Algorithm: tc.jose, Key: k.Crypto()}, nil)
				if err != nil {
					t.Fatal(err)
				}
				o, err := signer.Sign(payload)
				if err != nil {
					t.Fatal(err)
				}
				raw, err := o.CompactSerialize()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := verify(raw, k.Public()); err != nil || string(got) != string(payload) {
					t.Fatalf("of go-jose: %q, %v", got, err)
				}
				ours, err := s.Sign("at+jwt", payload)
				if err != nil {
					t.Fatal(err)
				}
				reads := tc.jwx
				if tc.crv == Ed {
					reads = jwa.EdDSAEd25519()
				}
				if got, err := jws.Verify([]byte(ours), jws.WithKey(reads, k.Public().Crypto())); err != nil || string(got) != string(payload) {
					t.Fatalf("jwx reads %q, %v", got, err)
				}
				if tc.crv == Ed { // ours says Ed25519 (RFC 9864), which go-jose does not know: under the old name it reads our signature
					ours = under(t, s, `{"alg":"EdDSA","typ":"at+jwt"}`, string(payload))
				}
				parsed, err := josev4.ParseSignedCompact(ours, []josev4.SignatureAlgorithm{tc.jose})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := parsed.Verify(k.Public().Crypto()); err != nil || string(got) != string(payload) {
					t.Fatalf("go-jose reads %q, %v", got, err)
				}
			}
		})
	}
}

func TestSealsBesideJwxAndGoJose(t *testing.T) {
	for _, crv := range []string{P256, X25519} {
		t.Run(crv, func(t *testing.T) {
			k, err := GenerateKey(crv)
			if err != nil {
				t.Fatal(err)
			}
			o, err := k.Opener()
			if err != nil {
				t.Fatal(err)
			}
			plain := []byte("the order of the day")
			theirs, err := jwe.Encrypt(plain, jwe.WithKey(jwa.ECDH_ES(), k.Public().Crypto()), jwe.WithContentEncryption(jwa.A256GCM()))
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := o.Open(string(theirs), 4096); err != nil || string(got) != string(plain) {
				t.Fatalf("of jwx: %q, %v", got, err)
			}
			ours, err := Seal(k.Public(), "JWT", plain)
			if err != nil {
				t.Fatal(err)
			}
			private := any(privateECDH(t, k))
			got, err := jwe.Decrypt([]byte(ours), jwe.WithKey(jwa.ECDH_ES(), private))
			if err != nil || string(got) != string(plain) {
				t.Fatalf("jwx reads %q, %v", got, err)
			}
			if crv == X25519 {
				return // go-jose has no X25519
			}
			e, err := josev4.NewEncrypter(josev4.A256GCM, josev4.Recipient{Algorithm: josev4.ECDH_ES, Key: k.Public().Crypto()}, nil)
			if err != nil {
				t.Fatal(err)
			}
			obj, err := e.Encrypt(plain)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := obj.CompactSerialize()
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := o.Open(raw, 4096); err != nil || string(got) != string(plain) {
				t.Fatalf("of go-jose: %q, %v", got, err)
			}
			parsed, err := josev4.ParseEncryptedCompact(ours, []josev4.KeyAlgorithm{josev4.ECDH_ES}, []josev4.ContentEncryption{josev4.A256GCM})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := parsed.Decrypt(k.Crypto()); err != nil || string(got) != string(plain) {
				t.Fatalf("go-jose reads %q, %v", got, err)
			}
		})
	}
}

// privateECDH is the key as jwx wants it.
func privateECDH(t *testing.T, k *PrivateKey) any {
	t.Helper()
	o, err := k.Opener()
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := o.key.(*ecdh.PrivateKey); ok && o.public.crv == X25519 {
		return p
	}
	return k.Crypto()
}
