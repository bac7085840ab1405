package jose

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"strconv"

	"github.com/watchword-iot/watchword"
)

// Signer signs with one key. It is safe for concurrent use if the key behind it is.
type Signer struct {
	key    crypto.Signer
	public *PublicKey
}

// NewSigner wraps any P-256 or Ed25519 key of the standard library's interface:
// one in memory, in a TPM or behind PKCS#11. Code: bad_request.
func NewSigner(s crypto.Signer) (*Signer, error) {
	pub, err := PublicFrom(s.Public())
	if err != nil {
		return nil, err
	}
	if !pub.MaySign() {
		return nil, badKey("an X25519 key does not sign")
	}
	return &Signer{s, pub}, nil
}

// Public returns the public half.
func (s *Signer) Public() *PublicKey { return s.public }

// Sign returns a compact JWS of payload with the header {"alg","typ","kid"}.
func (s *Signer) Sign(typ string, payload []byte) (string, error) {
	head := `{"alg":"` + s.public.Alg() + `","typ":` + strconv.Quote(typ) + `,"kid":"` + string(s.public.ID()) + `"}`
	out := make([]byte, 0, b64.EncodedLen(len(head))+b64.EncodedLen(len(payload))+2+86)
	out = b64.AppendEncode(out, []byte(head))
	out = append(out, '.')
	out = b64.AppendEncode(out, payload)
	sig, err := s.sign(out)
	if err != nil {
		return "", watchword.Because(err, watchword.Unavailable, "the signing key did not sign")
	}
	out = append(out, '.')
	return string(b64.AppendEncode(out, sig)), nil
}

func (s *Signer) sign(input []byte) ([]byte, error) {
	if s.public.Alg() == Ed {
		return s.key.Sign(rand.Reader, input, crypto.Hash(0))
	}
	sum := sha256.Sum256(input)
	der, err := s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 || rs.R.Sign() < 0 || rs.S.Sign() < 0 || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return nil, badKey("the key behind the signer gave no ECDSA signature")
	}
	sig := make([]byte, 64)
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return sig, nil
}
