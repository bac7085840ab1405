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

// CheckNonce refuses what is no nonce of a device: 22 to 64 characters of
// base64url. Code: bad_request.
func CheckNonce(nonce string) error {
	good := len(nonce) >= 22 && len(nonce) <= 64
	for _, c := range []byte(nonce) {
		good = good && (c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z')
	}
	if !good {
		return watchword.RefuseField("nonce", "must be 22 to 64 characters of base64url")
	}
	return nil
}

// SignTime says with the time key what time it is, to anyone who chose nonce. Tokens
// know whole seconds alone: up to one is cut off. Codes: bad_request, unavailable.
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

// VerifyTime checks a signed time under the time keys of the trust bundle and
// returns it. It is fresh because it carries the nonce, and as old as the nonce
// is: whoever made that bounds by a monotonic clock how long the answer took.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown,
// signature_invalid, issuer_mismatch, nonce_mismatch, token_lifetime.
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
	// By its own word: only that the window is one.
	if err := (validity{iat: c.IAT, exp: c.EXP}).check(c.IAT.time(), TimeLifetime, 0, 0); err != nil {
		return time.Time{}, err
	}
	return c.IAT.time(), nil
}
