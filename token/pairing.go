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
	pins, err := TrustPinsOfBundle(raw)
	if err != nil {
		return "", err
	}
	return pins[len(pins)-1], nil
}

// TrustPinsOfBundle returns the pins of all roots that a trust bundle names, the newest last: at least one. Like that of
// [TrustPinOfBundle] the result is not proved. Codes: as there.
func TrustPinsOfBundle(raw string) (pins []string, err error) {
	t, _, err := readTrust(raw)
	if err != nil {
		return nil, err
	}
	if len(t.Roots) == 0 {
		return nil, watchword.Refuse(watchword.BundleInvalid, "the trust bundle must name a root")
	}
	for _, root := range t.Roots {
		pins = append(pins, TrustPin(root))
	}
	return pins, nil
}

// VerifyPairing is [VerifyEnrollment] for a proof that is exchanged for a token: it returns the proof's single use, which
// the caller must mark used. Codes: as there.
func VerifyPairing(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) (SingleUse, error) {
	c, err := verifyPossession(raw, key, issuer, possession{typ: TypEnrollment, codeHash: codeHash, seal: seal}, now)
	return SingleUse{JTI: c.jti, Issued: c.iat.time(), Expires: c.exp.time()}, err
}
