package token

import (
	"encoding/base64"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// pairing stands where the one-time code of an enrollment stands: the proof of a
// device that asks to be paired, and has no code yet, is about this word.
const pairing = "watchword-pairing"

// PairingHash is the code_hash of the proof by which a device asks to be paired.
func PairingHash() string { return CodeHash(pairing) }

// CodeHash is [HashCode] as it stands in proofs: base64url. What a one-time code
// is to an enrollment, the device code is to a pairing.
func CodeHash(code string) string {
	sum := HashCode(code)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// PinOf returns the pin of the newest root that a trust bundle names. It proves
// nothing: it is for bundles that came over a connection which somebody else
// vouches for, and goes into [VerifyTrust] then. Codes: as there.
func PinOf(raw string) (string, error) {
	t, _, err := readTrust(raw)
	if err != nil {
		return "", err
	}
	if len(t.Root) == 0 {
		return "", watchword.Refuse(watchword.BundleInvalid, "the trust bundle names no root")
	}
	return Pin(t.Root[len(t.Root)-1]), nil
}

// VerifyPairing is [VerifyEnrollment] for a proof that is worth a token: it
// returns the proof's single use, which whoever acts on it spends. Codes: as there.
func VerifyPairing(raw string, key *jose.PublicKey, issuer, codeHash string, seal watchword.KeyID, now time.Time) (Spent, error) {
	c, err := verifyEnrollment(raw, key, issuer, codeHash, seal, now)
	return Spent{JTI: c.jti, Expires: c.exp.time()}, err
}
