package jose

import (
	"crypto/ed25519"
	"testing"
)

func BenchmarkSign(b *testing.B) {
	for _, crv := range []string{P256, Ed} {
		b.Run(crv, func(b *testing.B) {
			s := newSigner(b, crv)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Sign("at+jwt", []byte(`{"iss":"x"}`)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyEd25519(b *testing.B) {
	s := newSigner(b, Ed)
	raw, err := s.Sign("at+jwt", []byte(`{"iss":"x"}`))
	if err != nil {
		b.Fatal(err)
	}
	u, err := ParseJWS(raw, 4096)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !ed25519.Verify(s.Public().ed, u.input, u.signature[:]) {
				b.Fatal("does not verify")
			}
		}
	})
	b.Run("jose", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := verify(raw, s.Public()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSealAndOpen(b *testing.B) {
	for _, crv := range []string{P256, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			b.Fatal(err)
		}
		o, err := k.Decrypter()
		if err != nil {
			b.Fatal(err)
		}
		text := make([]byte, 600)
		b.Run("seal/"+crv, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Encrypt(k.Public(), "JWT", text); err != nil {
					b.Fatal(err)
				}
			}
		})
		raw, err := Encrypt(k.Public(), "JWT", text)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("open/"+crv, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := o.Decrypt(raw, 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
