package jose

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// The curves and algorithms that there are.
const (
	P256       = "P-256"
	Ed         = "Ed25519"
	X25519     = "X25519"
	ES256      = "ES256"
	EdDSA      = "EdDSA" // the old name of Ed25519 (RFC 9864)
	algECDHES  = "ECDH-ES"
	encA256GCM = "A256GCM"
)

// PublicKey is a public key that was checked when it was parsed. It is immutable
// and safe for concurrent use.
type PublicKey struct {
	crv  string
	id   watchword.KeyID
	jwk  []byte
	spki []byte
	ec   *ecdsa.PublicKey // P-256
	ed   ed25519.PublicKey
	dh   *ecdh.PublicKey // P-256 and X25519
}

// jwkFields is the members of a JWK that we know. What is absent is empty or nil;
// what is there and empty was refused.
type jwkFields struct {
	kty, crv      string
	kid, use, alg string
	x, y, d       []byte // 32 bytes each, or nil
	ops           []string
	hasOps        bool // key_ops is there, be it empty
}

// Use is what a key is used for (RFC 7517 §4.2). A caller that parses a
// JWK says which, and what the JWK says of its own use must fit that.
type Use string

// The uses that there are.
const (
	ForSigning    Use = "sig" // to sign, or to check signatures: P-256 and Ed25519
	ForEncryption Use = "enc" // to agree on a key (ECDH-ES): P-256 and X25519
)

// privateMembers are the members of the registry "JSON Web Key Parameters" that hold
// private or symmetric keys (RFC 7518 §6, RFC 8037 §2, RFC 9964), whatever the kind of key.
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

func readJWK(b []byte, private bool) (f jwkFields, err error) {
	err = Walk(b, func(name string, v jsontext.Value) (err error) {
		switch {
		case name == "kty":
			f.kty, err = nonEmptyString(v)
		case name == "crv":
			f.crv, err = nonEmptyString(v)
		case name == "x":
			f.x, err = coordinate(v)
		case name == "y":
			f.y, err = coordinate(v)
		case name == "kid":
			f.kid, err = nonEmptyString(v)
		case name == "use":
			f.use, err = nonEmptyString(v)
		case name == "alg":
			f.alg, err = nonEmptyString(v)
		case name == "key_ops":
			f.hasOps = true
			f.ops, err = Strings(v)
		case name == "d" && private:
			f.d, err = coordinate(v)
		case slices.Contains(privateMembers, name):
			return keyInvalid("it must not have the members of a private or symmetric key")
		}
		return err // other members are ignored (RFC 7517 §4)
	})
	if err != nil && watchword.CodeOf(err) != watchword.BadRequest {
		err = keyInvalid("it must be a JSON object with no members but those of a JWK (RFC 7517), each once") // the cause could quote a secret
	}
	return f, err
}

func keyInvalid(why string) error {
	return watchword.Refuse(watchword.BadRequest, "the JWK is not accepted: %s", why)
}

// ParseJWK parses a public key for a use: EC P-256 or OKP Ed25519 [ForSigning], EC P-256 or OKP X25519 [ForEncryption] (RFC
// 7517, RFC 8037). kid, if present, must be the thumbprint (RFC 7638); use, alg and key_ops must allow that use (§4.2 to
// §4.4). Unknown members are ignored; private and symmetric ones, duplicate members, points off the curve and low-order
// points are refused. Code: bad_request.
func ParseJWK(b []byte, use Use) (*PublicKey, error) {
	f, err := readJWK(b, false)
	if err != nil {
		return nil, err
	}
	k, err := f.public()
	if err != nil {
		return nil, err
	}
	return k, f.checkUse(k, use)
}

func (f jwkFields) public() (*PublicKey, error) {
	var k *PublicKey
	var err error
	switch {
	case f.x == nil:
		return nil, keyInvalid("x is required")
	case f.kty == "EC" && f.crv == P256 && f.y != nil:
		pub, parseErr := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, f.x, f.y))
		if parseErr != nil {
			return nil, keyInvalid("x and y must be a point of the curve")
		}
		k, err = NewPublicKey(pub)
	case f.kty == "OKP" && f.crv == Ed && f.y == nil:
		k, err = NewPublicKey(ed25519.PublicKey(f.x))
	case f.kty == "OKP" && f.crv == X25519 && f.y == nil:
		pub, parseErr := ecdh.X25519().NewPublicKey(f.x)
		if parseErr != nil {
			return nil, keyInvalid("x must be an X25519 key")
		}
		k, err = NewPublicKey(pub)
	default:
		return nil, keyInvalid("kty and crv must be EC P-256 with y, OKP Ed25519 or OKP X25519")
	}
	return k, err
}

// checkUse holds the kind of key and its optional members against the use that it is
// taken for. What fits the use fits each other as well.
func (f jwkFields) checkUse(k *PublicKey, use Use) error {
	var alg bool
	switch use {
	case ForSigning:
		if !k.CanSign() {
			return keyInvalid("this type of key cannot sign")
		}
		alg = f.alg == k.Alg() || f.alg == EdDSA && k.crv == Ed
	case ForEncryption:
		if !k.CanEncrypt() {
			return keyInvalid("this type of key cannot encrypt")
		}
		alg = f.alg == algECDHES
	default:
		return keyInvalid("the purpose of the key must be for signatures or for encryption")
	}
	switch {
	case f.kid != "" && f.kid != string(k.id):
		return keyInvalid("kid must be the thumbprint (RFC 7638)")
	case f.alg != "" && !alg:
		return keyInvalid("alg must fit the key and its purpose")
	case f.use != "" && f.use != string(use):
		return keyInvalid("use must fit the purpose of the key: sig or enc")
	case f.hasOps && !f.allows(use):
		return keyInvalid("key_ops must fit the purpose of the key")
	}
	return nil
}

// allows reports whether key_ops name the operation that is done here with the
// key, and none of another use. A public key for ECDH may name none: that is how
// Web Crypto exports one, since it is the private key that derives.
func (f jwkFields) allows(use Use) bool {
	related, needed := []string{"sign", "verify"}, []string{"verify"}
	switch {
	case use == ForEncryption:
		related = []string{"deriveKey", "deriveBits"}
		needed = related
		if f.d == nil && len(f.ops) == 0 {
			return true
		}
	case f.d != nil:
		needed = []string{"sign"}
	}
	does := false
	for i, op := range f.ops {
		if !slices.Contains(related, op) || slices.Contains(f.ops[:i], op) {
			return false
		}
		does = does || slices.Contains(needed, op)
	}
	return does
}

// coordinate reads 32 bytes of strict base64url.
func coordinate(v jsontext.Value) ([]byte, error) {
	s, err := text(v)
	if err == nil && b64.DecodedLen(len(s)) == 32 {
		out := make([]byte, 32)
		if err = decodeInto(out, s); err == nil {
			return out, nil
		}
	}
	return nil, keyInvalid("a coordinate must have 32 bytes of strict base64url")
}

// NewPublicKey wraps an *ecdsa.PublicKey (P-256), an ed25519.PublicKey or an
// *ecdh.PublicKey (P-256, X25519). Code: bad_request.
func NewPublicKey(pub crypto.PublicKey) (*PublicKey, error) {
	k := &PublicKey{}
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return nil, keyInvalid("the curve must be P-256")
		}
		dh, err := p.ECDH()
		if err != nil {
			return nil, keyInvalid("x and y must be a point of the curve")
		}
		k.crv, k.ec, k.dh = P256, p, dh
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize {
			return nil, keyInvalid("an Ed25519 key must have 32 bytes")
		}
		if err := checkEdwards(p); err != nil {
			return nil, err
		}
		k.crv, k.ed = Ed, slices.Clone(p)
	case *ecdh.PublicKey:
		return fromECDH(p)
	default:
		return nil, keyInvalid("the type of the key must be ECDSA, ECDH or Ed25519")
	}
	return k.derive()
}

func fromECDH(p *ecdh.PublicKey) (*PublicKey, error) {
	switch p.Curve() {
	case ecdh.P256():
		ec, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), p.Bytes())
		if err != nil {
			return nil, keyInvalid("x and y must be a point of the curve")
		}
		return NewPublicKey(ec)
	case ecdh.X25519():
		if err := checkMontgomery(p.Bytes()); err != nil {
			return nil, err
		}
		return (&PublicKey{crv: X25519, dh: p}).derive()
	default:
		return nil, keyInvalid("the curve must be P-256 or X25519")
	}
}

// derive fills in the canonical JWK, the thumbprint and the SPKI.
func (k *PublicKey) derive() (*PublicKey, error) {
	switch k.crv {
	case P256:
		point := k.dh.Bytes() // 4 || x || y
		k.jwk = writeJWK(`{"crv":"P-256","kty":"EC","x":"`, point[1:33], point[33:])
		k.spki = append(slices.Clip(spkiP256), point...)
	case Ed:
		k.jwk = writeJWK(`{"crv":"Ed25519","kty":"OKP","x":"`, k.ed, nil)
		k.spki = append(slices.Clip(spkiEd), k.ed...)
	case X25519:
		u := k.dh.Bytes()
		k.jwk = writeJWK(`{"crv":"X25519","kty":"OKP","x":"`, u, nil)
		k.spki = append(slices.Clip(spkiX), u...)
	}
	k.id = watchword.KeyID(Hash(k.jwk))
	return k, nil
}

func writeJWK(begin string, x, y []byte) []byte {
	out := append(make([]byte, 0, 136), begin...)
	out = b64.AppendEncode(out, x)
	if y != nil {
		out = b64.AppendEncode(append(out, `","y":"`...), y)
	}
	return append(out, `"}`...)
}

// Prefix of the key in a SubjectPublicKeyInfo (RFC 5480 §2, RFC 8410 §4). A test compares it with crypto/x509.
var (
	spkiP256 = []byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00")
	spkiEd   = []byte("\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00")
	spkiX    = []byte("\x30\x2a\x30\x05\x06\x03\x2b\x65\x6e\x03\x21\x00")
)

// ID returns the RFC 7638 SHA-256 thumbprint.
func (k *PublicKey) ID() watchword.KeyID { return k.id }

// JWK returns the members of RFC 7638 §3.2 in order. The caller must not change it.
func (k *PublicKey) JWK() []byte { return k.jwk }

// SPKI returns the SubjectPublicKeyInfo (RFC 5280) as DER. The caller must not change it.
func (k *PublicKey) SPKI() []byte { return k.spki }

// Curve returns P-256, Ed25519 or X25519.
func (k *PublicKey) Curve() string { return k.crv }

// CanSign reports whether this kind of key signs: P-256 and Ed25519.
func (k *PublicKey) CanSign() bool { return k.crv != X25519 }

// CanEncrypt reports whether this kind of key unseals: P-256 and X25519.
func (k *PublicKey) CanEncrypt() bool { return k.crv != Ed }

// Alg returns the signature algorithm, ES256 or Ed25519, and "" for X25519.
func (k *PublicKey) Alg() string {
	switch k.crv {
	case P256:
		return ES256
	case Ed:
		return Ed
	default:
		return ""
	}
}

// Crypto returns the key as the standard library knows it.
func (k *PublicKey) Crypto() crypto.PublicKey {
	switch k.crv {
	case P256:
		return k.ec
	case Ed:
		return k.ed
	default:
		return k.dh
	}
}
