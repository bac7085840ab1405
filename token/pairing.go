package token

import (
	"encoding/base64"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// pairingContext replaces the one-time code of an enrollment in the first proof of a pairing, when the device has no code
// yet.
const pairingContext = "watchword-pairing"

// PairingHashClaim returns the code_hash of the proof with which a device requests a pairing.
func PairingHashClaim() string { return CodeHashClaim(pairingContext) }

// CodeHashClaim returns [CodeDigest] in base64url, as in proofs. A pairing uses its device code like an enrollment its
// one-time code.
func CodeHashClaim(code string) string {
	sum := CodeDigest(code)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// TrustPinOfBundle returns the pin of the newest root that a trust bundle names, as an argument of [VerifyTrust]. It proves
// nothing: the bundle must have come over an authenticated connection. Codes: as there.
func TrustPinOfBundle(raw string) (string, error) {
	t, _, err := readTrust(raw)
	if err != nil {
		return "", err
	}
	if len(t.Roots) == 0 {
		return "", watchword.Refuse(watchword.BundleInvalid, "the trust bundle must name a root")
	}
	return TrustPin(t.Roots[len(t.Roots)-1]), nil
}

// VerifyPairing is [VerifyEnrollment] for a proof that is exchanged for a token: it returns the proof's single use, which
// the caller must mark used. Codes: as there.
func VerifyPairing(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) (SingleUse, error) {
	c, err := verifyPossession(raw, key, issuer, possession{typ: TypEnrollment, codeHash: codeHash, seal: seal}, now)
	return SingleUse{JTI: c.jti, Issued: c.iat.time(), Expires: c.exp.time()}, err
}
