package token

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Trust is a trust bundle: the server's public keys by role and the anchors for
// its TLS, signed by the root.
type Trust struct {
	Issuer  string
	Version int64
	Epoch   int64
	Root    []*jose.PublicKey
	Issuers []*jose.PublicKey
	Command []*jose.PublicKey
	Time    []*jose.PublicKey
	Log     []*jose.PublicKey
	CA      [][]byte // DER of the own authority's certificates, if any
	WebPKI  bool     // the server has a certificate from the public Web PKI
	Issued  time.Time
	Expires time.Time
}

type trustClaims struct {
	Iss   string                      `json:"iss"`
	JTI   string                      `json:"jti"`
	IAT   unix                        `json:"iat"`
	EXP   unix                        `json:"exp"`
	Ver   unix                        `json:"ver"`
	Epoch unix                        `json:"epoch"`
	Keys  map[string][]jsontext.Value `json:"keys"`
	TLS   trustTLS                    `json:"tls"`
}

type trustTLS struct {
	CA     []string `json:"ca,omitempty"` // standard base64 of DER, as x5c has it
	WebPKI bool     `json:"web_pki,omitempty"`
}

// Pin is the SHA-256 of a root key's SubjectPublicKeyInfo, in base64url.
func Pin(root *jose.PublicKey) string {
	sum := sha256.Sum256(root.SPKI())
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// SignTrust signs t with the root key.
func SignTrust(s *jose.Signer, t Trust) (string, error) {
	keys := map[string][]json.RawMessage{}
	for role, ks := range map[string][]*jose.PublicKey{
		"root": t.Root, "issuer": t.Issuers, "command": t.Command, "time": t.Time, "log": t.Log,
	} {
		for _, k := range ks {
			keys[role] = append(keys[role], k.JWK())
		}
	}
	anchors := trustTLS{WebPKI: t.WebPKI}
	for _, der := range t.CA {
		anchors.CA = append(anchors.CA, base64.StdEncoding.EncodeToString(der))
	}
	b, err := json.Marshal(map[string]any{
		"iss": t.Issuer, "jti": watchword.NewNonce(), "iat": t.Issued.Unix(), "exp": t.Expires.Unix(),
		"ver": t.Version, "epoch": t.Epoch, "keys": keys, "tls": anchors,
	})
	if err != nil {
		return "", err
	}
	return s.Sign(TypTrust, b)
}

// VerifyTrust checks a trust bundle for the first time: its root must be the one
// whose SPKI has the SHA-256 pin, and must have signed it. Codes: too_large,
// token_malformed, algorithm_invalid, token_kind, pin_mismatch,
// signature_invalid, bundle_invalid. now is zero for a device without a clock.
func VerifyTrust(raw, pin string, now time.Time) (Trust, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxBundle)
	if err != nil {
		return Trust{}, err
	}
	// Who signed is found in the unverified payload, and counts only if it has the pin.
	t, err := parseTrust(u.UnverifiedPayload())
	if err != nil {
		return Trust{}, err
	}
	for _, root := range t.Root {
		if subtle.ConstantTimeCompare([]byte(Pin(root)), []byte(pin)) == 1 {
			return checkTrust(raw, NewKeySet(root), now)
		}
	}
	return Trust{}, watchword.Refuse(watchword.PinMismatch, "the bundle's root is not the pinned one: this is not the server that made the link")
}

// VerifyNextTrust checks a bundle that follows known: signed by a root of known,
// same issuer, and not older. Codes: as [VerifyTrust], key_unknown.
func VerifyNextTrust(raw string, known Trust, now time.Time) (Trust, error) {
	t, err := checkTrust(raw, NewKeySet(known.Root...), now)
	if err != nil {
		return Trust{}, err
	}
	if t.Issuer != known.Issuer || t.Version < known.Version || t.Epoch < known.Epoch {
		return Trust{}, watchword.Refuse(watchword.BundleInvalid, "the bundle is another issuer's, or older than the known one")
	}
	return t, nil
}

func checkTrust(raw string, keys KeySet, now time.Time) (Trust, error) {
	payload, _, err := open(raw, watchword.MaxBundle, TypTrust, keys)
	if err != nil {
		return Trust{}, err
	}
	t, err := parseTrust(payload)
	if err != nil {
		return Trust{}, err
	}
	if now.IsZero() {
		now = t.Issued
	}
	err = window{iat: seconds(t.Issued), exp: seconds(t.Expires)}.check(now, TrustLife, Skew, Skew)
	if err != nil {
		return Trust{}, watchword.Because(err, watchword.BundleInvalid, "the trust bundle is over, or from the future")
	}
	return t, nil
}

func parseTrust(payload []byte) (Trust, error) {
	var c trustClaims
	if err := jose.Decode(payload, &c); err != nil {
		return Trust{}, err
	}
	if c.Iss == "" || c.Ver < 1 || c.Epoch < 1 {
		return Trust{}, watchword.Refuse(watchword.TokenMalformed, "iss, ver and epoch are mandatory")
	}
	t := Trust{
		Issuer: c.Iss, Version: int64(c.Ver), Epoch: int64(c.Epoch), WebPKI: c.TLS.WebPKI,
		Issued: c.IAT.time(), Expires: c.EXP.time(),
	}
	for role, to := range map[string]*[]*jose.PublicKey{
		"root": &t.Root, "issuer": &t.Issuers, "command": &t.Command, "time": &t.Time, "log": &t.Log,
	} {
		for _, raw := range c.Keys[role] {
			k, err := jose.ParseJWK(bytes.Clone(raw))
			if err != nil {
				return Trust{}, watchword.Because(err, watchword.TokenMalformed, "a key of the bundle is no public JWK")
			}
			*to = append(*to, k)
		}
	}
	for _, s := range c.TLS.CA {
		der, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil {
			return Trust{}, watchword.Refuse(watchword.TokenMalformed, "a TLS anchor of the bundle is no base64")
		}
		t.CA = append(t.CA, der)
	}
	return t, nil
}
