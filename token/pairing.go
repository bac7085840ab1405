package token

import (
	"encoding/base64"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// pairingContext stands where the one-time code of an enrollment stands: the proof of a
// device that asks to be paired, and has no code yet, is about this word.
const pairingContext = "watchword-pairing"

// PairingHashClaim is the code_hash of the proof by which a device asks to be paired.
func PairingHashClaim() string { return CodeHashClaim(pairingContext) }

// CodeHashClaim is [CodeDigest] as it stands in proofs: base64url. What a one-time code
// is to an enrollment, the device code is to a pairing.
func CodeHashClaim(code string) string {
	sum := CodeDigest(code)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// BundlePin returns the pin of the newest root that a trust bundle names. It proves
// nothing: it is for bundles that came over a connection which somebody else
// vouches for, and goes into [VerifyTrust] then. Codes: as there.
func BundlePin(raw string) (string, error) {
	t, _, err := readTrust(raw)
	if err != nil {
		return "", err
	}
	if len(t.Roots) == 0 {
		return "", watchword.Refuse(watchword.BundleInvalid, "the trust bundle names no root")
	}
	return Pin(t.Roots[len(t.Roots)-1]), nil
}

// VerifyPairing is [VerifyEnrollment] for a proof that is worth a token: it
// returns the proof's single use, which whoever acts on it spends. Codes: as there.
func VerifyPairing(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) (SingleUse, error) {
	c, err := verifyEnrollment(raw, key, issuer, codeHash, seal, now)
	return SingleUse{JTI: c.jti, Expires: c.exp.time()}, err
}
