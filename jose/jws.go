package jose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Unverified is a compact JWS with an unverified signature.
type Unverified struct {
	Alg, Typ, Kid string

	input     []byte // what is signed: header.payload
	payload   []byte
	signature [64]byte
	der       [72]byte // the same for ES256, as the standard library wants it
	derLen    int
}

// ParseJWS reads a compact JWS (RFC 7515 §7.1) of at most max bytes: three parts
// of strict base64url, a strict header with nothing in it but alg, typ and kid,
// a signature of 64 bytes. It does not look into the payload. Codes: too_large,
// token_malformed, algorithm_invalid.
func ParseJWS(raw string, max int) (*Unverified, error) {
	u, _, err := parseJWS(raw, max, jwsHeader)
	return u, err
}

// ParseProof is [ParseJWS] for a proof of possession, whose header carries the
// public key that signed it and no kid (RFC 9449 §4.2). That key proves nothing
// by itself: the caller says whose it must be. Codes: those of ParseJWS;
// bad_request for a jwk that is absent, private, or not for signing.
func ParseProof(raw string, max int) (*Unverified, *PublicKey, error) {
	u, jwk, err := parseJWS(raw, max, proofHeader)
	if err != nil {
		return nil, nil, err
	}
	if jwk == nil {
		return nil, nil, keyInvalid("jwk is required in the header")
	}
	k, err := ParseJWK(jwk, ForSigning)
	if err != nil {
		return nil, nil, err
	}
	return u, k, nil
}

func parseJWS(raw string, max int, f headerKind) (*Unverified, []byte, error) {
	if len(raw) > max {
		return nil, nil, tooLarge("the token", max)
	}
	head, body, sig, ok := splitJWS(raw)
	if !ok {
		return nil, nil, malformed(nil, "it must be a compact token of three parts")
	}
	// One allocation holds the token and what is decoded from it.
	headLen, bodyLen := b64.DecodedLen(head), b64.DecodedLen(body)
	buf := make([]byte, len(raw)+headLen+bodyLen)
	in, out := buf[:copy(buf, raw)], buf[len(raw):]
	if err := decodeInto(out[:headLen], in[:head]); err != nil {
		return nil, nil, err
	}
	h, err := parseHeader(out[:headLen], f)
	if err != nil {
		return nil, nil, err
	}
	if h.alg != ES256 && h.alg != Ed && h.alg != EdDSA {
		return nil, nil, algorithmInvalid()
	}
	u := &Unverified{Alg: h.alg, Typ: h.typ, Kid: h.kid, input: in[:head+1+body], payload: out[headLen:]}
	if err := decodeInto(u.payload, u.input[head+1:]); err != nil {
		return nil, nil, err
	}
	if b64.DecodedLen(sig) != len(u.signature) {
		return nil, nil, malformed(nil, "the signature must have 64 bytes")
	}
	if err := decodeInto(u.signature[:], in[len(raw)-sig:]); err != nil {
		return nil, nil, err
	}
	if h.alg == ES256 {
		u.derLen = len(derSignature(u.der[:0], &u.signature))
	}
	return u, h.jwk, nil
}

// splitJWS returns the lengths of the three parts.
func splitJWS(raw string) (head, body, sig int, ok bool) {
	head = strings.IndexByte(raw, '.')
	if head < 0 {
		return 0, 0, 0, false
	}
	body = strings.IndexByte(raw[head+1:], '.')
	if body < 0 {
		return 0, 0, 0, false
	}
	rest := raw[head+1+body+1:]
	return head, body, len(rest), strings.IndexByte(rest, '.') < 0
}

// UnverifiedPayload returns the unverified payload: it may be used to select the key of the sender, and for nothing else.
func (u *Unverified) UnverifiedPayload() []byte { return u.payload }

// Verify checks the signature under k and returns the payload. The header's alg
// must be the key's own (RFC 8725 §3.1), its kid, if there is one, the key's
// thumbprint. With ES256 two signatures, (r, s) and (r, n-s), hold for the same
// bytes: what must happen once is keyed by jti, never by a token's bytes.
// Codes: algorithm_invalid, key_unknown, signature_invalid.
func (u *Unverified) Verify(k *PublicKey) ([]byte, error) {
	alg := u.Alg
	if alg == EdDSA {
		alg = Ed
	}
	if k.Alg() == "" || alg != k.Alg() {
		return nil, algorithmInvalid()
	}
	if u.Kid != "" && u.Kid != string(k.ID()) {
		return nil, watchword.Refuse(watchword.KeyUnknown, "kid must be the thumbprint of the key that verifies")
	}
	ok := false
	switch alg {
	case ES256:
		sum := sha256.Sum256(u.input)
		ok = ecdsa.VerifyASN1(k.ec, sum[:], u.der[:u.derLen])
	case Ed:
		ok = ed25519.Verify(k.ed, u.input, u.signature[:])
	}
	if !ok {
		return nil, watchword.Refuse(watchword.SignatureInvalid, "the signature does not verify; see docs/errors.md")
	}
	return u.payload, nil
}

// derSignature writes r||s as the ASN.1 SEQUENCE of two INTEGERs that the
// standard library wants. Zero and numbers beyond the order are its to refuse.
func derSignature(out []byte, sig *[64]byte) []byte {
	out = append(out, 0x30, 0)
	out = derInteger(out, sig[:32])
	out = derInteger(out, sig[32:])
	out[1] = byte(len(out) - 2)
	return out
}

func derInteger(out, n []byte) []byte {
	for len(n) > 1 && n[0] == 0 {
		n = n[1:]
	}
	if n[0]&0x80 != 0 {
		out = append(out, 0x02, byte(len(n)+1), 0)
	} else {
		out = append(out, 0x02, byte(len(n)))
	}
	return append(out, n...)
}
