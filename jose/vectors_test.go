package jose

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/peers"
)

// The examples of the standards, unchanged in testdata/. Examples that we refuse are first verified with a reference
// library: a refusal is tested only for input that is valid by the standard.

func vectors[T any](t testing.TB, name string) (v T) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// appendix is an appendix full of tokens. Refused is our code for one, or empty.
type appendix struct {
	Vectors []struct {
		Name, About, Alg string
		Key              json.RawMessage
		Text, Payload    string
		Refused          watchword.Code
	}
}

func verify(raw string, k *PublicKey) ([]byte, error) {
	u, err := ParseJWS(raw, 1<<20)
	if err != nil {
		return nil, err
	}
	return u.Verify(k)
}

// parsedAnyUse is ParseJWK for whichever use the key allows.
func parsedAnyUse(b []byte) (*PublicKey, error) {
	if k, err := ParseJWK(b, ForEncryption); err == nil {
		return k, nil
	}
	return ParseJWK(b, ForSigning)
}

func parsedPrivateAnyUse(b []byte) (*PrivateKey, error) {
	if k, err := ParsePrivateJWK(b, ForEncryption); err == nil {
		return k, nil
	}
	return ParsePrivateJWK(b, ForSigning)
}

func publicKey(t testing.TB, b []byte) *PublicKey {
	t.Helper()
	k, err := parsedAnyUse(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func privateKey(t testing.TB, b []byte) *PrivateKey {
	t.Helper()
	k, err := parsedPrivateAnyUse(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTheSignaturesOfRFC7515(t *testing.T) {
	for _, v := range vectors[appendix](t, "rfc7515.json").Vectors {
		t.Run(v.Name+" "+v.About, func(t *testing.T) {
			if others := peers.Maybe(t); v.Key != nil && others != nil { // alg none has no key, and no oracle
				if got, err := others.VerifyJWS(t, peers.JWX, v.Alg, v.Key, v.Text); err != nil || got != v.Payload {
					t.Fatalf("it is not what the standard has: jwx reads %q, %v", got, err)
				}
			}
			u, err := ParseJWS(v.Text, 1<<20)
			if watchword.CodeOf(err) != v.Refused {
				t.Fatalf("got %v, want %q", err, v.Refused)
			}
			if err != nil {
				return
			}
			if got, err := u.Verify(publicKey(t, v.Key)); err != nil || string(got) != v.Payload {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestTheSealsOfRFC7516(t *testing.T) {
	for _, v := range vectors[appendix](t, "rfc7516.json").Vectors {
		t.Run(v.Name+" "+v.About, func(t *testing.T) {
			if others := peers.Maybe(t); others != nil {
				if got, err := others.Decrypt(t, peers.JWX, v.Alg, v.Key, v.Text); err != nil || got != v.Payload {
					t.Fatalf("it is not what the standard has: jwx reads %q, %v", got, err)
				}
			}
			for _, crv := range []string{P256, X25519} {
				k, err := GenerateKey(crv)
				if err != nil {
					t.Fatal(err)
				}
				o, err := k.Decrypter()
				if err != nil {
					t.Fatal(err)
				}
				if got, _, err := o.Decrypt(v.Text, 1<<20); watchword.CodeOf(err) != v.Refused {
					t.Errorf("%s: got %q, %v, want %s", crv, got, err, v.Refused)
				}
			}
		})
	}
}

func TestTheKeyAgreementOfRFC7518(t *testing.T) {
	v := vectors[struct {
		Alice, Bob json.RawMessage
		Z          []int
		Enc        string
		Apu, Apv   string
		Derived    string
	}](t, "rfc7518c.json")
	alice, bob := privateKey(t, v.Alice), privateKey(t, v.Bob)
	for _, pair := range [][2]*PrivateKey{{alice, bob}, {bob, alice}} {
		z, err := pair[0].dh.ECDH(pair[1].public.dh)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range z {
			if v.Z[i] != int(b) {
				t.Fatalf("z is %v, want %v", z, v.Z)
			}
		}
		if got := b64.EncodeToString(concatKDF(z, v.Enc, v.Apu, v.Apv, 16)); got != v.Derived {
			t.Errorf("got %s, want %s", got, v.Derived)
		}
	}
}

func TestTheExamplesOfRFC8037(t *testing.T) {
	v := vectors[struct {
		Private, Public, Bob, Ephemeral json.RawMessage
		Thumbprint                      watchword.KeyID
		Payload, JWS, Z                 string
	}](t, "rfc8037.json")
	k := privateKey(t, v.Private)                                   // A.1
	if got := publicKey(t, v.Public); got.ID() != k.Public().ID() { // A.2
		t.Errorf("the public half is %s", got.JWK())
	}
	if k.Public().ID() != v.Thumbprint { // A.3
		t.Errorf("the thumbprint is %s", k.Public().ID())
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	// A.4: Ed25519 has one signature for one input, so ours must be theirs. We would write another header.
	if ours := under(t, s, `{"alg":"EdDSA"}`, v.Payload); ours != v.JWS {
		t.Errorf("signed %s", ours)
	}
	if got, err := verify(v.JWS, k.Public()); err != nil || string(got) != v.Payload { // A.5
		t.Errorf("got %q, %v", got, err)
	}
	ephemeral := privateKey(t, v.Ephemeral) // A.6
	z, err := ephemeral.dh.ECDH(publicKey(t, v.Bob).dh)
	if err != nil || hex.EncodeToString(z) != v.Z {
		t.Errorf("the secret is %x, %v", z, err)
	}
}

func TestThumbprintsAreThoseOfRFC7638(t *testing.T) {
	v := vectors[struct{ Canonical, Thumbprint string }](t, "rfc7638.json")
	if got := Hash([]byte(v.Canonical)); got != v.Thumbprint { // of an RSA key, which we have not: the method alone
		t.Errorf("got %s, want %s", got, v.Thumbprint)
	}
	for _, crv := range []string{P256, Ed, X25519} {
		for range 20 {
			k, err := GenerateKey(crv)
			if err != nil {
				t.Fatal(err)
			}
			spki, err := x509.MarshalPKIXPublicKey(k.Public().Crypto())
			if err != nil || string(spki) != string(k.Public().SPKI()) {
				t.Errorf("%s: the SPKI is %x, %v", crv, spki, err)
			}
			for _, lib := range []string{peers.JWX, peers.GoJOSE} {
				others := peers.Maybe(t)
				if others == nil || crv == X25519 && lib == peers.GoJOSE { // go-jose has no X25519
					continue
				}
				if sum, err := others.Thumbprint(t, lib, k.Public().JWK()); err != nil || base64.RawURLEncoding.EncodeToString(sum) != string(k.Public().ID()) {
					t.Errorf("%s: %s has %x, %v", crv, lib, sum, err)
				}
			}
		}
	}
}
