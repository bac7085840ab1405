package token

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

type timeClaims struct {
	Iss   string      `json:"iss"`
	JTI   string      `json:"jti"`
	IAT   numericDate `json:"iat"`
	EXP   numericDate `json:"exp"`
	Nonce string      `json:"nonce"`
}

// CheckTimeNonce returns an error if nonce is not a device's nonce: 22 to 64 characters of base64url. Code: bad_request.
func CheckTimeNonce(nonce string) error {
	good := len(nonce) >= 22 && len(nonce) <= 64
	for _, c := range []byte(nonce) {
		good = good && (c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z')
	}
	if !good {
		return watchword.RefuseField("nonce", "must be 22 to 64 characters of base64url")
	}
	return nil
}

// SignTime signs the current time with the time key, for the client that chose nonce. Tokens have whole seconds: up to one
// second is cut off. Codes: bad_request, unavailable.
func SignTime(s *jose.Signer, issuer, nonce string, now time.Time) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": issuer, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(TimeLifetime).Unix(), "nonce": nonce,
	})
	if err != nil {
		return "", err
	}
	return signTyped(s, TypTime, watchword.MaxToken, b, func(payload []byte) error {
		_, err := readTime(payload, issuer, nonce)
		return err
	})
}

// VerifyTime verifies a signed time with the time keys of the trust bundle and returns it. The nonce proves that it was
// signed after the nonce was generated; the caller must bound the time since then by a monotonic clock.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown, signature_invalid, issuer_mismatch,
// nonce_mismatch, token_lifetime.
func VerifyTime(raw string, keys KeySet, issuer, nonce string) (time.Time, error) {
	payload, _, err := verifyTyped(raw, watchword.MaxToken, TypTime, keys)
	if err != nil {
		return time.Time{}, err
	}
	return readTime(payload, issuer, nonce)
}

func readTime(payload []byte, issuer, nonce string) (time.Time, error) {
	var c timeClaims
	if err := jose.Decode(payload, &c); err != nil {
		return time.Time{}, err
	}
	if err := checkIssuer(c.Iss, issuer); err != nil {
		return time.Time{}, err
	}
	if err := checkJTI(c.JTI); err != nil {
		return time.Time{}, err
	}
	if nonce == "" || c.Nonce != nonce {
		return time.Time{}, refuse(watchword.NonceMismatch, "nonce of the signed time must be the one that was sent")
	}
	// Only the consistency of its own times is checked.
	if err := (validity{iat: c.IAT, exp: c.EXP}).check(c.IAT.time(), TimeLifetime, 0, 0); err != nil {
		return time.Time{}, err
	}
	return c.IAT.time(), nil
}
