package backup

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// The manifest is a compact JWS (RFC 7515 §7.1) whose payload is the JSON of [Manifest]. It has the hash of each member, so its
// signature covers the whole archive. The log key signs it: it is on the server also where the root is offline, and the
// bundle in the manifest, which the root signed, introduces it to a reader who knows nothing but the root's pin.

// sign returns the manifest, signed. Code: backup_invalid if a reader would refuse it.
func (m Manifest) sign(logKey *jose.Signer) (string, error) {
	payload, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	signed, err := logKey.Sign(token.TypBackup, payload)
	if err == nil && len(signed) > maxSmall {
		err = watchword.Refuse(watchword.TooLarge, "the manifest has %d bytes, the limit is %d", len(signed), maxSmall)
	}
	if err == nil {
		_, err = openManifest(signed, "") // a backup that cannot be read is found when it is made
	}
	return signed, err
}

// openManifest verifies a manifest: that a log key signed it which a trust bundle names that the root of the manifest signed, and
// that this is the root of that pin; empty: any. Codes: backup_invalid, pin_mismatch.
func openManifest(signed, pin string) (m Manifest, err error) {
	u, err := jose.ParseJWS(signed, maxSmall)
	if err != nil {
		return m, invalid(err, "the manifest of the backup is not a JWS: %s", err)
	}
	if !jose.SameType(u.Typ, token.TypBackup) {
		return m, invalid(nil, "the manifest of the backup has the type %.100q, and must have %q", u.Typ, token.TypBackup)
	}
	if err := json.Unmarshal(u.UnverifiedPayload(), &m); err != nil {
		return m, invalid(err, "the manifest of the backup is not readable: %s", err)
	}
	bundle, err := token.VerifyTrust(m.Trust, m.Root, time.Time{}) // its times: see Manifest.CheckTimes
	if err != nil {
		return Manifest{}, invalid(err, "the trust bundle in the backup is not signed by the root %.64q that the backup names: it was not made by a server of that root", m.Root)
	}
	at := slices.IndexFunc(bundle.Log, func(k *jose.PublicKey) bool { return string(k.ID()) == u.Kid })
	if at < 0 {
		return Manifest{}, invalid(nil, "the backup is signed with the key %.64q, which no trust bundle of the root %s names as a log key: it was not made by a server of that root", u.Kid, m.Root)
	}
	if _, err := u.Verify(bundle.Log[at]); err != nil {
		return Manifest{}, invalid(err, "the signature of the backup does not verify: its manifest was changed, or was not made by the server")
	}
	if bundle.FirstIssuer() != m.Issuer || bundle.Origin() != m.Log.Origin {
		return Manifest{}, invalid(nil, "the manifest names the server %.200s with the log %.200s, and its trust bundle the server %.200s with the log %.200s: they must be the same", m.Issuer, m.Log.Origin, bundle.FirstIssuer(), bundle.Origin())
	}
	return m, checkRoot(bundle, pin)
}

// CheckTimes returns an error if the backup was not made while the trust bundle in it was valid: the server had no bundle of that
// time, or the log key was replaced or revoked before, and someone who has it made the backup. m must be of [Extract]. Code:
// backup_invalid.
func (m Manifest) CheckTimes() error {
	t, err := token.ReadTrust(m.Trust)
	if err != nil {
		return err
	}
	if m.Made.Before(t.Issued.Add(-token.Skew)) || m.Made.After(t.Expires.Add(token.Skew)) {
		return invalid(nil, "the manifest has the time %s, and the trust bundle that names its log key was valid from %s to %s: either the server had no valid bundle then, or the log key was replaced before, and someone else used it",
			m.Made.UTC().Format(time.RFC3339), t.Issued.UTC().Format(time.RFC3339), t.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkRoot refuses a bundle that a root of another pin signed. Code: pin_mismatch.
func checkRoot(bundle token.Trust, pin string) error {
	var pins []string
	for _, root := range bundle.Roots { // two while a new one is introduced: both signed
		pins = append(pins, token.TrustPin(root))
	}
	if pin == "" || slices.Contains(pins, pin) {
		return nil
	}
	return watchword.Refuse(watchword.PinMismatch, "the backup is of a server with the root %s, and not %s: it is of another server, or of before or after a change of the root", strings.Join(pins, " and "), pin)
}
