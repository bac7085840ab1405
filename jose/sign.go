package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"

	"github.com/watchword-iot/watchword"
)

// Signer signs with one key. It is safe for concurrent use if the key behind it is.
type Signer struct {
	key      crypto.Signer
	public   *PublicKey
	external bool         // the key is external: its signatures are verified
	check    func() error // asked before each signature; nil: nothing is asked
}

// WithCheck returns a signer with the same key that calls check before each signature, and signs nothing where check returns an
// error, which it returns unchanged. check must be safe for concurrent use.
func (s *Signer) WithCheck(check func() error) *Signer {
	checked := *s
	checked.check = check
	return &checked
}

// NewSigner wraps any P-256 or Ed25519 key of the standard library's interface: one in memory, in a TPM or behind PKCS#11.
// A signature of an external key is verified each time before it is returned. Code: bad_request.
func NewSigner(s crypto.Signer) (*Signer, error) {
	pub, err := NewPublicKey(s.Public())
	if err != nil {
		return nil, err
	}
	if !pub.CanSign() {
		return nil, keyInvalid("an X25519 key cannot sign")
	}
	external := true
	switch s.(type) {
	case *ecdsa.PrivateKey, ed25519.PrivateKey, *ed25519.PrivateKey:
		external = false
	}
	return &Signer{key: s, public: pub, external: external}, nil
}

// Public returns the public half.
func (s *Signer) Public() *PublicKey { return s.public }

// Sign returns a compact JWS of payload with the header {"alg","typ","kid"}, without
// typ where that is empty. Codes: bad_request for a typ that is not valid UTF-8, unavailable.
func (s *Signer) Sign(typ string, payload []byte) (string, error) {
	return s.compact(typ, `"kid":"`+string(s.public.ID())+`"`, payload)
}

// SignProof is [Signer.Sign] with the public key in the header instead of its
// name: {"alg","typ","jwk"}, as a proof of possession has it (RFC 9449 §4.2).
func (s *Signer) SignProof(typ string, payload []byte) (string, error) {
	return s.compact(typ, `"jwk":`+string(s.public.JWK()), payload)
}

func (s *Signer) compact(typ, key string, payload []byte) (string, error) {
	head, err := appendMember([]byte(`{"alg":"`+s.public.Alg()+`"`), "typ", typ)
	if err != nil {
		return "", err
	}
	head = append(append(append(head, ','), key...), '}')
	out := make([]byte, 0, b64.EncodedLen(len(head))+b64.EncodedLen(len(payload))+2+86)
	out = b64.AppendEncode(out, head)
	out = append(out, '.')
	out = b64.AppendEncode(out, payload)
	sig, err := s.sign(out)
	if _, refused := errors.AsType[*checkError](err); refused {
		return "", errors.Unwrap(err)
	}
	if err != nil {
		return "", watchword.Wrap(err, watchword.Unavailable, "the signing key did not sign")
	}
	out = append(out, '.')
	return string(b64.AppendEncode(out, sig)), nil
}

// checkError is what the check of [Signer.WithCheck] returned.
type checkError struct{ err error }

func (e *checkError) Error() string { return e.err.Error() }
func (e *checkError) Unwrap() error { return e.err }

func (s *Signer) sign(input []byte) ([]byte, error) {
	if s.check != nil {
		if err := s.check(); err != nil {
			return nil, &checkError{err}
		}
	}
	sig, err := s.raw(input)
	if err == nil && s.external {
		err = s.public.VerifyBytes(input, sig)
	}
	return sig, err
}

func (s *Signer) raw(input []byte) ([]byte, error) {
	if s.public.Alg() == Ed {
		return s.key.Sign(rand.Reader, input, crypto.Hash(0))
	}
	sum := sha256.Sum256(input)
	der, err := s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, 64)
	if !fromDER(sig, der) {
		return nil, keyInvalid("the external key must return an ECDSA signature")
	}
	return sig, nil
}

// fromDER reads the ASN.1 SEQUENCE of two INTEGERs that a key gives into r||s.
func fromDER(sig, der []byte) bool {
	if len(der) < 2 || der[0] != 0x30 || int(der[1]) != len(der)-2 || der[1] >= 0x80 {
		return false
	}
	for rest := der[2:]; len(sig) > 0; sig = sig[32:] {
		if len(rest) < 2 || rest[0] != 0x02 {
			return false
		}
		size := int(rest[1])
		if size == 0 || size > 33 || len(rest) < 2+size {
			return false
		}
		n := rest[2 : 2+size]
		rest = rest[2+size:]
		if n[0] >= 0x80 { // negative
			return false
		}
		if n[0] == 0 && size > 1 {
			n = n[1:]
		}
		if len(n) > 32 || len(sig) == 32 && len(rest) > 0 {
			return false
		}
		copy(sig[32-len(n):32], n)
	}
	return true
}

// SignBytes signs message as it is, without a header: what a protocol has that brings
// its own frame (RFC 9431 §2.2.4). An ECDSA signature is R and S, 32 bytes each
// (RFC 7518 §3.4). message must not be another's choice alone.
func (s *Signer) SignBytes(message []byte) ([]byte, error) {
	sig, err := s.sign(message)
	if _, refused := errors.AsType[*checkError](err); refused {
		return nil, errors.Unwrap(err)
	}
	if err != nil {
		return nil, watchword.Wrap(err, watchword.Unavailable, "the signing key did not sign")
	}
	return sig, nil
}

// VerifyBytes checks what [Signer.SignBytes] made. Code: signature_invalid.
func (k *PublicKey) VerifyBytes(message, sig []byte) error {
	ok := false
	switch {
	case len(sig) != 64:
	case k.Alg() == ES256:
		sum := sha256.Sum256(message)
		var der [72]byte
		ok = ecdsa.VerifyASN1(k.ec, sum[:], derSignature(der[:0], (*[64]byte)(sig)))
	case k.Alg() == Ed:
		ok = ed25519.Verify(k.ed, message, sig)
	}
	if !ok {
		return watchword.Refuse(watchword.SignatureInvalid, "the signature does not verify")
	}
	return nil
}
