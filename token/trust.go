package token

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"strings"
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
// token_malformed, algorithm_invalid, token_kind, pin_mismatch, key_unknown,
// signature_invalid, bundle_invalid. now is zero for a device without a clock.
func VerifyTrust(raw, pin string, now time.Time) (Trust, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxBundle)
	if err != nil {
		return Trust{}, err
	}
	if !jose.SameType(u.Typ, TypTrust) {
		return Trust{}, watchword.Refuse(watchword.TokenKind, "this is no trust bundle")
	}
	// Who signed is found in the unverified payload, and counts only if it has the pin.
	t, err := parseTrust(u.UnverifiedPayload())
	if err != nil {
		return Trust{}, err
	}
	for _, root := range t.Root {
		if subtle.ConstantTimeCompare([]byte(Pin(root)), []byte(pin)) == 1 {
			return checkTrust(u, root, t, now)
		}
	}
	return Trust{}, watchword.Refuse(watchword.PinMismatch, "the bundle's root is not the pinned one: this is not the server that made the link")
}

// VerifyNextTrust checks a bundle that follows known: signed by a root of known,
// same issuer, and not older. Codes: as [VerifyTrust], key_unknown.
func VerifyNextTrust(raw string, known Trust, now time.Time) (Trust, error) {
	u, root, err := parse(raw, watchword.MaxBundle, TypTrust, NewKeySet(known.Root...))
	if err != nil {
		return Trust{}, err
	}
	t, err := parseTrust(u.UnverifiedPayload())
	if err != nil {
		return Trust{}, err
	}
	if t, err = checkTrust(u, root, t, now); err != nil {
		return Trust{}, err
	}
	if t.Issuer != known.Issuer || t.Version < known.Version || t.Epoch < known.Epoch {
		return Trust{}, watchword.Refuse(watchword.BundleInvalid, "the bundle is another issuer's, or older than the known one")
	}
	return t, nil
}

// checkTrust returns t, which is what u says, if root signed it and it holds now.
func checkTrust(u *jose.Unverified, root *jose.PublicKey, t Trust, now time.Time) (Trust, error) {
	if u.Kid == "" {
		return Trust{}, watchword.Refuse(watchword.KeyUnknown, "kid is mandatory")
	}
	if _, err := u.Verify(root); err != nil {
		return Trust{}, err
	}
	if now.IsZero() {
		now = t.Issued
	}
	err := window{iat: seconds(t.Issued), exp: seconds(t.Expires)}.check(now, TrustLife, Skew, Skew)
	if err != nil {
		return Trust{}, watchword.Because(err, watchword.BundleInvalid, "the trust bundle is over, or from the future")
	}
	return t, nil
}

func parseTrust(payload []byte) (Trust, error) {
	var t Trust
	var w window
	var jti string
	err := jose.Walk(payload, func(name string, v jsontext.Value) error {
		switch name {
		case "iss":
			return text(&t.Issuer, v)
		case "jti":
			return text(&jti, v)
		case "ver":
			return number(&t.Version, v)
		case "epoch":
			return number(&t.Epoch, v)
		case "keys":
			return jose.Walk(v, t.role)
		case "tls":
			return jose.Walk(v, t.anchor)
		}
		return w.member(name, v)
	})
	if err != nil {
		return Trust{}, err
	}
	if t.Issuer == "" || t.Version < 1 || t.Epoch < 1 {
		return Trust{}, watchword.Refuse(watchword.TokenMalformed, "iss, ver and epoch are mandatory")
	}
	t.Issued, t.Expires = w.iat.time(), w.exp.time()
	return t, checkJTI(jti)
}

// role reads the keys of one role; roles that we do not know are passed over.
func (t *Trust) role(name string, v jsontext.Value) error {
	to, ok := map[string]*[]*jose.PublicKey{
		"root": &t.Root, "issuer": &t.Issuers, "command": &t.Command, "time": &t.Time, "log": &t.Log,
	}[name]
	if !ok {
		return nil
	}
	return jose.Each(v, func(item jsontext.Value) error {
		k, err := jose.ParseJWK(item)
		if err != nil || !k.MaySign() {
			return watchword.Because(err, watchword.TokenMalformed, "a key of the bundle is no public JWK that signs")
		}
		*to = append(*to, k)
		return nil
	})
}

// anchor reads what the bundle says of TLS: ca, standard base64 of DER as x5c has
// it, and web_pki.
func (t *Trust) anchor(name string, v jsontext.Value) error {
	switch name {
	case "ca":
		return jose.Each(v, func(item jsontext.Value) error {
			s, err := jose.String(item)
			if err != nil {
				return err
			}
			der, err := base64.StdEncoding.Strict().DecodeString(s)
			if err != nil || strings.ContainsAny(s, "\r\n") { // which the standard library passes over
				return watchword.Refuse(watchword.TokenMalformed, "a TLS anchor of the bundle is no base64")
			}
			t.CA = append(t.CA, der)
			return nil
		})
	case "web_pki":
		t.WebPKI = v.Kind() == 't'
		if !t.WebPKI && v.Kind() != 'f' {
			return watchword.Refuse(watchword.TokenMalformed, "web_pki is true or false")
		}
	}
	return nil
}
