package jose

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"

	"github.com/watchword-iot/watchword"
)

// PrivateKey is a private key in memory. It never prints.
type PrivateKey struct {
	public *PublicKey
	ec     *ecdsa.PrivateKey
	ed     ed25519.PrivateKey
	dh     *ecdh.PrivateKey
}

// GenerateKey makes a key on P-256, Ed25519 or X25519.
func GenerateKey(crv string) (*PrivateKey, error) {
	switch crv {
	case P256:
		ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return privateEC(ec)
	case Ed:
		_, ed, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return privateEd(ed)
	case X25519:
		dh, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return privateX(dh)
	default:
		return nil, keyInvalid("the curve must be P-256, Ed25519 or X25519")
	}
}

func privateEC(ec *ecdsa.PrivateKey) (*PrivateKey, error) {
	pub, err := NewPublicKey(&ec.PublicKey)
	if err != nil {
		return nil, err
	}
	dh, err := ec.ECDH()
	if err != nil {
		return nil, err
	}
	return &PrivateKey{public: pub, ec: ec, dh: dh}, nil
}

func privateEd(ed ed25519.PrivateKey) (*PrivateKey, error) {
	pub, err := NewPublicKey(ed.Public())
	return &PrivateKey{public: pub, ed: ed}, err
}

func privateX(dh *ecdh.PrivateKey) (*PrivateKey, error) {
	pub, err := NewPublicKey(dh.PublicKey())
	return &PrivateKey{public: pub, dh: dh}, err
}

// ParsePrivateJWK reads a private key that is to be taken for use, as [ParseJWK]
// reads a public one; its public members must be those of d. Code: bad_request,
// which never repeats the key.
func ParsePrivateJWK(b []byte, use Use) (*PrivateKey, error) {
	f, err := readJWK(b, true)
	if err != nil {
		return nil, err
	}
	pub, err := f.public()
	if err != nil {
		return nil, err
	}
	if f.d == nil {
		return nil, keyInvalid("d is required, since the key must be private")
	}
	if err := f.checkUse(pub, use); err != nil {
		return nil, err
	}
	var k *PrivateKey
	switch f.crv {
	case P256:
		ec, parseErr := ecdsa.ParseRawPrivateKey(elliptic.P256(), f.d)
		if parseErr != nil {
			return nil, keyInvalid("d must be a private key of the curve")
		}
		k, err = privateEC(ec)
	case Ed:
		k, err = privateEd(ed25519.NewKeyFromSeed(f.d))
	default:
		dh, parseErr := ecdh.X25519().NewPrivateKey(f.d)
		if parseErr != nil {
			return nil, keyInvalid("d must be a private key of the curve")
		}
		k, err = privateX(dh)
	}
	if err != nil {
		return nil, err
	}
	if k.public.ID() != pub.ID() {
		return nil, keyInvalid("d must belong to the public members")
	}
	return k, nil
}

// JWK returns the key with d: a secret.
func (k *PrivateKey) JWK() []byte {
	var d []byte
	switch {
	case k.ed != nil:
		d = k.ed.Seed()
	default:
		d = k.dh.Bytes() // P-256's scalar, 32 bytes, as RFC 7518 §6.2.2.1 has it
	}
	pub := k.public.JWK()
	return append(append(append([]byte(nil), pub[:len(pub)-1]...), `,"d":"`+b64.EncodeToString(d)...), `"}`...)
}

// Public returns the public half.
func (k *PrivateKey) Public() *PublicKey { return k.public }

// Crypto returns the signing key as the standard library knows it; nil for X25519.
func (k *PrivateKey) Crypto() crypto.Signer {
	switch {
	case k.ec != nil:
		return k.ec
	case k.ed != nil:
		return k.ed
	default:
		return nil
	}
}

// Signer returns the key as a signer. Code: bad_request for X25519.
func (k *PrivateKey) Signer() (*Signer, error) {
	s := k.Crypto()
	if s == nil {
		return nil, keyInvalid("an X25519 key cannot sign")
	}
	return NewSigner(s)
}

// Decrypter returns the key as an opener. Code: bad_request for Ed25519.
func (k *PrivateKey) Decrypter() (*Decrypter, error) {
	if k.dh == nil {
		return nil, keyInvalid("an Ed25519 key cannot decrypt")
	}
	return NewDecrypter(k.dh)
}

// String returns "[secret]".
func (k *PrivateKey) String() string { return watchword.Secret("").String() }

// GoString returns "[secret]".
func (k *PrivateKey) GoString() string { return k.String() }

// MarshalText returns "[secret]".
func (k *PrivateKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogValue returns "[secret]".
func (k *PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }
