package jose

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// The curves and algorithms that there are.
const (
	P256    = "P-256"
	Ed      = "Ed25519"
	X25519  = "X25519"
	ES256   = "ES256"
	EdDSA   = "EdDSA" // the old name of Ed25519 (RFC 9864)
	ecdhES  = "ECDH-ES"
	a256gcm = "A256GCM"
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

// fields is the members of a JWK that we know.
type fields struct {
	kty, crv, x, y, d string
	kid, use, alg     string
	ops               []string
	has               map[string]bool
}

func readJWK(b []byte, private bool) (f fields, err error) {
	f.has = map[string]bool{}
	err = Walk(b, func(name string, v jsontext.Value) (err error) {
		f.has[name] = true
		switch name {
		case "kty":
			f.kty, err = String(v)
		case "crv":
			f.crv, err = String(v)
		case "x":
			f.x, err = String(v)
		case "y":
			f.y, err = String(v)
		case "kid":
			f.kid, err = String(v)
		case "use":
			f.use, err = String(v)
		case "alg":
			f.alg, err = String(v)
		case "key_ops":
			f.ops, err = Strings(v)
		case "d":
			if !private {
				return badKey("it is private: only public keys are shared")
			}
			f.d, err = String(v)
		default:
			return badKey("it has a member that is not taken here")
		}
		return err
	})
	if err != nil && watchword.CodeOf(err) != watchword.BadRequest {
		err = watchword.Because(err, watchword.BadRequest, "is no JWK")
	}
	return f, err
}

func badKey(why string) error {
	return watchword.Refuse(watchword.BadRequest, "is no JWK for this server: %s", why)
}

// ParseJWK reads a public key: EC P-256, OKP Ed25519 or OKP X25519 (RFC 7517,
// RFC 8037). Beside the members of RFC 7638 it takes kid (which must be the
// thumbprint), use, alg and key_ops where they fit the key. Private members,
// points off the curve and low-order points are refused. Code: bad_request.
func ParseJWK(b []byte) (*PublicKey, error) {
	f, err := readJWK(b, false)
	if err != nil {
		return nil, err
	}
	return f.public()
}

func (f fields) public() (*PublicKey, error) {
	x, err := coordinate(f.x)
	if err != nil {
		return nil, err
	}
	var k *PublicKey
	switch {
	case f.kty == "EC" && f.crv == P256:
		y, err := coordinate(f.y)
		if err != nil {
			return nil, err
		}
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return nil, badKey("the point is not on the curve")
		}
		k, err = PublicFrom(pub)
		if err != nil {
			return nil, err
		}
	case f.kty == "OKP" && f.crv == Ed && !f.has["y"]:
		k, err = PublicFrom(ed25519.PublicKey(x))
	case f.kty == "OKP" && f.crv == X25519 && !f.has["y"]:
		pub, perr := ecdh.X25519().NewPublicKey(x)
		if perr != nil {
			return nil, badKey("x is no X25519 key")
		}
		k, err = PublicFrom(pub)
	default:
		return nil, badKey("kty and crv must be EC P-256, OKP Ed25519 or OKP X25519")
	}
	if err != nil {
		return nil, err
	}
	return k, f.fits(k)
}

// fits holds the optional members against the key.
func (f fields) fits(k *PublicKey) error {
	algs := []string{ecdhES}
	if k.crv == P256 {
		algs = append(algs, ES256)
	} else if k.crv == Ed {
		algs = []string{Ed, EdDSA}
	}
	switch {
	case f.has["kid"] && f.kid != string(k.id):
		return badKey("kid must be the thumbprint (RFC 7638)")
	case f.has["alg"] && !slices.Contains(algs, f.alg):
		return badKey("alg does not fit the key")
	case f.has["use"] && !(f.use == "sig" && k.MaySign() || f.use == "enc" && k.MaySeal()):
		return badKey("use does not fit the key")
	}
	for _, op := range f.ops {
		if !slices.Contains([]string{"sign", "verify", "deriveKey", "deriveBits"}, op) {
			return badKey("key_ops do not fit the key")
		}
	}
	return nil
}

func coordinate(s string) ([]byte, error) {
	b, err := decode(s)
	if err != nil || len(b) != 32 {
		return nil, badKey("a coordinate must have 32 bytes of strict base64url")
	}
	return b, nil
}

// PublicFrom wraps an *ecdsa.PublicKey (P-256), an ed25519.PublicKey or an
// *ecdh.PublicKey (P-256, X25519). Code: bad_request.
func PublicFrom(pub crypto.PublicKey) (*PublicKey, error) {
	k := &PublicKey{}
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return nil, badKey("the curve must be P-256")
		}
		dh, err := p.ECDH()
		if err != nil {
			return nil, badKey("the point is not on the curve")
		}
		k.crv, k.ec, k.dh = P256, p, dh
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize {
			return nil, badKey("an Ed25519 key has 32 bytes")
		}
		if smallOrder(p) {
			return nil, badKey("x is a point of small order")
		}
		k.crv, k.ed = Ed, slices.Clone(p)
	case *ecdh.PublicKey:
		return fromECDH(p)
	default:
		return nil, badKey("the type of key is not taken here")
	}
	return k.finish()
}

func fromECDH(p *ecdh.PublicKey) (*PublicKey, error) {
	switch p.Curve() {
	case ecdh.P256():
		ec, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), p.Bytes())
		if err != nil {
			return nil, badKey("the point is not on the curve")
		}
		return PublicFrom(ec)
	case ecdh.X25519():
		if lowOrder(p) {
			return nil, badKey("x is a point of low order")
		}
		return (&PublicKey{crv: X25519, dh: p}).finish()
	default:
		return nil, badKey("the curve must be P-256 or X25519")
	}
}

// lowOrder reports whether an exchange with p gives zero: what Go's ECDH refuses.
func lowOrder(p *ecdh.PublicKey) bool {
	probe, err := ecdh.X25519().NewPrivateKey(slices.Repeat([]byte{0x42}, 32))
	if err != nil {
		return true
	}
	_, err = probe.ECDH(p)
	return err != nil
}

// smallOrders is the y coordinates, in hexadecimal and without the sign, of the
// points of edwards25519 whose order divides 8, and the two that are not reduced.
// Under such a key one signature holds for many messages, so its receipts would
// prove nothing.
var smallOrders = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func smallOrder(p ed25519.PublicKey) bool {
	y := slices.Clone(p)
	y[31] &= 0x7f
	return slices.Contains(smallOrders, hex.EncodeToString(y))
}

// finish fills in the canonical JWK, the thumbprint and the SPKI.
func (k *PublicKey) finish() (*PublicKey, error) {
	switch k.crv {
	case P256:
		point := k.dh.Bytes() // 4 || x || y
		k.jwk = []byte(`{"crv":"P-256","kty":"EC","x":"` + b64.EncodeToString(point[1:33]) + `","y":"` + b64.EncodeToString(point[33:]) + `"}`)
	case Ed:
		k.jwk = []byte(`{"crv":"Ed25519","kty":"OKP","x":"` + b64.EncodeToString(k.ed) + `"}`)
	case X25519:
		k.jwk = []byte(`{"crv":"X25519","kty":"OKP","x":"` + b64.EncodeToString(k.dh.Bytes()) + `"}`)
	}
	k.id = watchword.KeyID(Hash(k.jwk))
	var err error
	k.spki, err = x509.MarshalPKIXPublicKey(k.Crypto())
	return k, err
}

// ID returns the RFC 7638 SHA-256 thumbprint.
func (k *PublicKey) ID() watchword.KeyID { return k.id }

// JWK returns the members of RFC 7638 §3.2 in order. The caller must not change it.
func (k *PublicKey) JWK() []byte { return k.jwk }

// SPKI returns the SubjectPublicKeyInfo (RFC 5280) as DER. The caller must not change it.
func (k *PublicKey) SPKI() []byte { return k.spki }

// Curve returns P-256, Ed25519 or X25519.
func (k *PublicKey) Curve() string { return k.crv }

// MaySign reports whether this kind of key signs: P-256 and Ed25519.
func (k *PublicKey) MaySign() bool { return k.crv != X25519 }

// MaySeal reports whether this kind of key unseals: P-256 and X25519.
func (k *PublicKey) MaySeal() bool { return k.crv != Ed }

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
