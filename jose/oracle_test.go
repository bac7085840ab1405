package jose

import (
	"crypto/ecdh"
	"fmt"
	"testing"

	"github.com/watchword-iot/watchword/internal/peers"
)

// What others make we read, and what we make others read.

func TestJWSInteroperatesWithJwxAndGoJose(t *testing.T) {
	others := peers.Find(t)
	for _, tc := range []struct {
		crv  string
		jwx  string // alg as each knows it
		jose string
	}{{P256, "ES256", "ES256"}, {Ed, "EdDSA", "EdDSA"}, {Ed, "Ed25519", "EdDSA"}} {
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
				for lib, alg := range map[string]string{peers.JWX: tc.jwx, peers.GoJOSE: tc.jose} {
					theirs, err := others.SignJWS(t, lib, alg, k.Crypto(), payload)
					if err != nil {
						t.Fatal(err)
					}
					if got, err := verify(theirs, k.Public()); err != nil || string(got) != string(payload) {
						t.Fatalf("of %s: %q, %v", lib, got, err)
					}
				}
				ours, err := s.Sign("at+jwt", payload)
				if err != nil {
					t.Fatal(err)
				}
				reads := tc.jwx
				if tc.crv == Ed {
					reads = "Ed25519"
				}
				if got, err := others.VerifyJWS(t, peers.JWX, reads, k.Public().Crypto(), ours); err != nil || got != string(payload) {
					t.Fatalf("jwx reads %q, %v", got, err)
				}
				if tc.crv == Ed { // ours says Ed25519 (RFC 9864), which go-jose does not know: under the old name it reads our signature
					ours = under(t, s, `{"alg":"EdDSA","typ":"at+jwt"}`, string(payload))
				}
				if got, err := others.VerifyJWS(t, peers.GoJOSE, tc.jose, k.Public().Crypto(), ours); err != nil || got != string(payload) {
					t.Fatalf("go-jose reads %q, %v", got, err)
				}
			}
		})
	}
}

func TestJWEInteroperatesWithJwxAndGoJose(t *testing.T) {
	others := peers.Find(t)
	for _, crv := range []string{P256, X25519} {
		t.Run(crv, func(t *testing.T) {
			k, err := GenerateKey(crv)
			if err != nil {
				t.Fatal(err)
			}
			o, err := k.Decrypter()
			if err != nil {
				t.Fatal(err)
			}
			const plain = "the order of the day"
			for _, lib := range []string{peers.JWX, peers.GoJOSE} {
				if crv == X25519 && lib == peers.GoJOSE {
					continue // it has no X25519
				}
				theirs, err := others.Encrypt(t, lib, k.Public().Crypto(), []byte(plain))
				if err != nil {
					t.Fatal(err)
				}
				if got, _, err := o.Decrypt(theirs, 4096); err != nil || string(got) != plain {
					t.Fatalf("of %s: %q, %v", lib, got, err)
				}
				ours, err := Encrypt(k.Public(), "JWT", []byte(plain))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := others.Decrypt(t, lib, "", privateECDH(t, k), ours); err != nil || got != plain {
					t.Fatalf("%s reads %q, %v", lib, got, err)
				}
			}
		})
	}
}

// privateECDH is the key as others want it.
func privateECDH(t *testing.T, k *PrivateKey) any {
	t.Helper()
	o, err := k.Decrypter()
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := o.key.(*ecdh.PrivateKey); ok && o.public.crv == X25519 {
		return p
	}
	return k.Crypto()
}
