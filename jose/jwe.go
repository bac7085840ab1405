package jose

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"github.com/watchword-iot/watchword"
)

// Encrypt encrypts plaintext to a public key as a compact JWE (RFC 7516 §7.1):
// ECDH-ES with a fresh ephemeral key of the recipient's curve, A256GCM. cty says
// what is inside, "JWT" for a token; the header says nothing of it where cty is empty. Code:
// bad_request for an Ed25519 key, and for a cty that is not valid UTF-8.
func Encrypt(to *PublicKey, cty string, plaintext []byte) (string, error) {
	if !to.CanEncrypt() {
		return "", keyInvalid("an Ed25519 key cannot decrypt")
	}
	ephemeral, err := to.dh.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	epk, err := fromECDH(ephemeral.PublicKey())
	if err != nil {
		return "", err
	}
	z, err := ephemeral.ECDH(to.dh)
	if err != nil {
		return "", err
	}
	aead, err := contentKey(z)
	if err != nil {
		return "", err
	}
	head, err := appendMember([]byte(`{"alg":"ECDH-ES","enc":"A256GCM"`), "cty", cty)
	if err != nil {
		return "", err
	}
	head = append(head, `,"kid":"`+string(to.id)+`","epk":`+string(epk.jwk)+`}`...)
	iv := make([]byte, 12)
	_, _ = rand.Read(iv) // never fails (crypto/rand)
	out := b64.AppendEncode(make([]byte, 0, 600+b64.EncodedLen(len(plaintext))), head)
	sealed := aead.Seal(nil, iv, plaintext, out) // the additional data is the encoded header (RFC 7516 §5.1)
	out = append(out, '.', '.')                  // no encrypted key: the agreed key is the content key
	out = append(b64.AppendEncode(out, iv), '.')
	tag := len(sealed) - 16
	out = append(b64.AppendEncode(out, sealed[:tag]), '.')
	return string(b64.AppendEncode(out, sealed[tag:])), nil
}

// contentKey derives the A256GCM key of a JWE from the agreed secret.
func contentKey(z []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(concatKDF(z, encA256GCM, "", "", 32))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// concatKDF is the key derivation of RFC 7518 §4.6.2 with SHA-256, for keys of at
// most 32 bytes: one round.
func concatKDF(z []byte, alg, apu, apv string, size int) []byte {
	h := sha256.New()
	word := func(n int) { _ = binary.Write(h, binary.BigEndian, uint32(n)) } // a hash does not fail
	word(1)
	h.Write(z)
	for _, s := range []string{alg, apu, apv} {
		word(len(s))
		h.Write([]byte(s))
	}
	word(size * 8)
	return h.Sum(nil)[:size]
}

// Decrypter unseals with one key. It is safe for concurrent use if the key behind it is.
type Decrypter struct {
	key    ecdh.KeyExchanger
	public *PublicKey
}

// NewDecrypter wraps any P-256 or X25519 key of the standard library's interface:
// one in memory or in hardware. Code: bad_request.
func NewDecrypter(k ecdh.KeyExchanger) (*Decrypter, error) {
	pub, err := fromECDH(k.PublicKey())
	if err != nil {
		return nil, err
	}
	return &Decrypter{k, pub}, nil
}

// Public returns the public half.
func (d *Decrypter) Public() *PublicKey { return d.public }

// Decrypt decrypts a compact JWE of at most max bytes. Its header must be strict,
// with alg ECDH-ES, enc A256GCM, an epk on the key's curve, and kid, if there is
// one, the key's thumbprint; apu, apv, zip and every other member are refused.
// Codes: too_large, token_malformed, algorithm_invalid, key_unknown,
// signature_invalid where the tag does not hold.
func (d *Decrypter) Decrypt(raw string, max int) (plaintext []byte, cty string, err error) {
	if len(raw) > max {
		return nil, "", tooLarge("the token", max)
	}
	p, ok := splitJWE([]byte(raw))
	if !ok {
		return nil, "", malformed(nil, "it must be a compact JWE of five parts, with an empty encrypted key")
	}
	head, err := decode(p.head)
	if err != nil {
		return nil, "", err
	}
	h, err := parseHeader(head, jweHeader)
	if err != nil {
		return nil, "", err
	}
	if h.alg != algECDHES || h.enc != encA256GCM {
		return nil, "", algorithmInvalid()
	}
	if h.kid != "" && h.kid != string(d.public.ID()) {
		return nil, "", watchword.Refuse(watchword.KeyUnknown, "kid must be the thumbprint of this key: encrypted to another key")
	}
	epk, err := ParseJWK(h.epk, ForEncryption)
	if err != nil || epk.crv != d.public.crv {
		return nil, "", malformed(err, "epk must be a public key of the recipient's curve")
	}
	plaintext, err = d.decryptParts(epk, p)
	return plaintext, h.cty, err
}

// jweParts is the parts of a compact JWE but the encrypted key, which is empty
// where the agreed key is the content key.
type jweParts struct{ head, iv, text, tag []byte }

func splitJWE(raw []byte) (p jweParts, ok bool) {
	var key, rest []byte
	if p.head, rest, ok = bytes.Cut(raw, dot); !ok {
		return p, false
	}
	if key, rest, ok = bytes.Cut(rest, dot); !ok || len(key) > 0 {
		return p, false
	}
	if p.iv, rest, ok = bytes.Cut(rest, dot); !ok {
		return p, false
	}
	p.text, p.tag, ok = bytes.Cut(rest, dot)
	return p, ok // a fifth dot is no base64url
}

var dot = []byte{'.'}

func (d *Decrypter) decryptParts(epk *PublicKey, p jweParts) ([]byte, error) {
	var iv [12]byte
	if b64.DecodedLen(len(p.iv)) != len(iv) || decodeInto(iv[:], p.iv) != nil {
		return nil, malformed(nil, "the initialization vector must have 12 bytes")
	}
	const tagLen = 16
	if b64.DecodedLen(len(p.tag)) != tagLen {
		return nil, malformed(nil, "the tag must have 16 bytes")
	}
	n := b64.DecodedLen(len(p.text))
	sealed := make([]byte, n+tagLen) // text and tag, opened in place
	if err := decodeInto(sealed[:n], p.text); err != nil {
		return nil, err
	}
	if err := decodeInto(sealed[n:], p.tag); err != nil {
		return nil, err
	}
	z, err := d.key.ECDH(epk.dh)
	if err != nil {
		return nil, malformed(err, "epk must give a shared secret")
	}
	aead, err := contentKey(z)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(sealed[:0], iv[:], sealed, p.head)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.SignatureInvalid, "decryption failed: encrypted to another key, or changed")
	}
	return plain, nil
}
