package token

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Trust is a trust bundle: the server's public keys by role and its TLS certificate authorities, signed by the root.
type Trust struct {
	Issuer  string
	Version int64
	Epoch   int64
	Roots   []*jose.PublicKey
	Issuers []*jose.PublicKey
	Command []*jose.PublicKey
	Time    []*jose.PublicKey
	Log     []*jose.PublicKey
	// Witnesses are the witnesses that cosign the log's checkpoints, as C2SP verifier keys, at most 16. Quorum is the
	// number of cosignatures that a device requires if it executes only logged commands.
	Witnesses []string
	Quorum    int64
	// History is every issuer identifier that the server has had, in the order of their first use, with Issuer among them, at most
	// 16; empty if there was no other than Issuer. MQTTS is HOST:PORT of MQTT over TLS; both are stated once the address moved.
	History []IssuerPeriod
	MQTTS   string
	// LogOrigin is the origin of the log that Log signs, at most 512 bytes; empty means that of the first issuer. Use Origin.
	LogOrigin string
	CAs       [][]byte // DER of the server's own authority's certificates, if any
	WebPKI    bool     // the server's certificate is of the public Web PKI
	// TLSProxy: TLS ends at a proxy with that certificate, so client and server do not have one TLS connection.
	TLSProxy bool
	Issued   time.Time
	Expires  time.Time
}

// BundleVersion is the version of a trust bundle. The epoch counts first: a bundle of a higher epoch is newer, whatever its
// number is, since a server that is restored from a backup cannot know the last number that was used.
type BundleVersion struct{ Epoch, Number int64 }

// Compare returns -1, 0 or +1 if v is older than w, equal or newer.
func (v BundleVersion) Compare(w BundleVersion) int {
	return cmp.Or(cmp.Compare(v.Epoch, w.Epoch), cmp.Compare(v.Number, w.Number))
}

// NewerThan reports whether v is newer than w.
func (v BundleVersion) NewerThan(w BundleVersion) bool { return v.Compare(w) > 0 }

// String returns the version as EPOCH.NUMBER.
func (v BundleVersion) String() string {
	return strconv.FormatInt(v.Epoch, 10) + "." + strconv.FormatInt(v.Number, 10)
}

// BundleVersion returns the version of the bundle.
func (t Trust) BundleVersion() BundleVersion { return BundleVersion{t.Epoch, t.Version} }

// Origin returns the origin of the log.
func (t Trust) Origin() string {
	if t.LogOrigin != "" {
		return t.LogOrigin
	}
	return watchword.LogOrigin(t.FirstIssuer())
}

type trustTLS struct {
	CA     []string `json:"ca,omitempty"` // standard base64 of DER, as x5c has it
	WebPKI bool     `json:"web_pki,omitempty"`
	Proxy  bool     `json:"proxy,omitempty"`
}

// TrustPin returns the SHA-256 of a root key's SubjectPublicKeyInfo, in base64url.
func TrustPin(root *jose.PublicKey) string {
	sum := sha256.Sum256(root.SPKI())
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// SignTrust signs t with every root that it names: one compact JWS, or, while a
// new root is introduced, a JSON array of two over the identical payload.
func SignTrust(t Trust, roots ...*jose.Signer) (string, error) {
	payload, err := t.payload()
	if err != nil {
		return "", err
	}
	return SignTrustPayload(payload, roots...)
}

// TrustPayload returns the bytes that the roots of t sign, for an offline root.
func TrustPayload(t Trust) ([]byte, error) { return t.payload() }

// CheckTrustPayload verifies the output of [TrustPayload] as a device would verify the bundle once its roots have signed it: its form
// and size, that it follows known, and that a root of known is among those that must sign. Codes: as [VerifyNextTrust].
func CheckTrustPayload(payload []byte, known Trust) error {
	t, err := parseTrust(payload)
	if err != nil {
		return err
	}
	const others = 512 // bytes of the header and signature of each root, at most
	if len(t.Roots)*(base64.RawURLEncoding.EncodedLen(len(payload))+others) > watchword.MaxBundle {
		return watchword.Refuse(watchword.TooLarge, "a trust bundle must have at most 64 KiB")
	}
	if err := t.CheckFollows(known); err != nil {
		return err
	}
	roots := NewKeySet(known.Roots...)
	for _, r := range t.Roots {
		if roots[r.ID()] != nil {
			return nil
		}
	}
	return watchword.Refuse(watchword.KeyUnknown, "the trust bundle is not signed by a known root")
}

// SignTrustPayload signs the output of [TrustPayload]. One signer gives a compact JWS, two a JSON array. Codes: bad_request
// for more signers; bad_request and too_large if devices would refuse the bundle; unavailable.
func SignTrustPayload(payload []byte, roots ...*jose.Signer) (string, error) {
	var raw string
	var err error
	known := KeySet{}
	switch len(roots) {
	case 1:
		raw, err = roots[0].Sign(TypTrust, payload)
	case 2:
		raw, err = jose.SignDual(roots[0], roots[1], TypTrust, payload)
	default:
		return "", watchword.Refuse(watchword.BadRequest, "a trust bundle must be signed by one root, or by an old and a new one")
	}
	if err != nil {
		return "", err
	}
	for _, r := range roots {
		known[r.Public().ID()] = r.Public()
	}
	t, signatures, err := readTrust(raw)
	if err == nil {
		err = t.verifySignatures(signatures, known, time.Time{}) // includes the signatures: bundles are rarely signed, and some of the keys are external
	}
	return raw, signerError(err, TypTrust)
}

func (t Trust) payload() ([]byte, error) {
	keys := map[string][]json.RawMessage{}
	for role, ks := range map[string][]*jose.PublicKey{
		"root": t.Roots, "issuer": t.Issuers, "command": t.Command, "time": t.Time, "log": t.Log,
	} {
		for _, k := range ks {
			keys[role] = append(keys[role], k.JWK())
		}
	}
	anchors := trustTLS{WebPKI: t.WebPKI, Proxy: t.TLSProxy}
	for _, der := range t.CAs {
		anchors.CA = append(anchors.CA, base64.StdEncoding.EncodeToString(der))
	}
	m := map[string]any{
		"iss": t.Issuer, "jti": watchword.NewNonce(), "iat": t.Issued.Unix(), "exp": t.Expires.Unix(),
		"ver": t.Version, "epoch": t.Epoch, "keys": keys, "tls": anchors,
	}
	if len(t.Witnesses) > 0 {
		m["witnesses"], m["quorum"] = t.Witnesses, t.Quorum
	}
	if len(t.History) > 1 {
		m["issuers"] = issuerClaims(t.History)
		if t.MQTTS != "" {
			m["mqtts"] = t.MQTTS
		}
	}
	if t.LogOrigin != "" && t.LogOrigin != watchword.LogOrigin(t.FirstIssuer()) {
		m["log_origin"] = t.LogOrigin
	}
	return json.Marshal(m)
}

// VerifyTrust verifies the first trust bundle of a device: the root whose SPKI has the SHA-256 pin must be among those that
// it names, and each of those must have signed it. now is zero for a device without a clock. Codes: too_large,
// token_malformed, algorithm_invalid, token_kind, pin_mismatch, key_unknown, signature_invalid, bundle_invalid.
func VerifyTrust(raw, pin string, now time.Time) (Trust, error) {
	t, signatures, err := readTrust(raw)
	if err != nil {
		return Trust{}, err
	}
	for _, root := range t.Roots {
		if subtle.ConstantTimeCompare([]byte(TrustPin(root)), []byte(pin)) == 1 {
			if err := t.verifySignatures(signatures, NewKeySet(root), now); err != nil {
				return Trust{}, err
			}
			return t, nil
		}
	}
	return Trust{}, watchword.Refuse(watchword.PinMismatch, "the root key of the trust bundle does not match the pin: this is not the server that made the link")
}

// VerifyNextTrust verifies a bundle that follows known: signed by a root of known and by each root that it names, with the
// same issuer or one that follows it in History, and not older ([BundleVersion]). So a new root is introduced by a bundle that the old one signed too. Codes: as [VerifyTrust].
func VerifyNextTrust(raw string, known Trust, now time.Time) (Trust, error) {
	t, signatures, err := readTrust(raw)
	if err != nil {
		return Trust{}, err
	}
	if err := t.verifySignatures(signatures, NewKeySet(known.Roots...), now); err != nil {
		return Trust{}, err
	}
	if err := t.CheckFollows(known); err != nil {
		return Trust{}, err
	}
	return t, nil
}

// CheckFollows returns an error if the bundle is of another issuer than known, and does not follow it, or if it is older. Code: bundle_invalid.
func (t Trust) CheckFollows(known Trust) error {
	if !t.HasIssuer(known.Issuer) || known.BundleVersion().NewerThan(t.BundleVersion()) {
		return watchword.Refuse(watchword.BundleInvalid, "iss of the trust bundle must be the known issuer or follow it (issuers), and epoch and ver must not be lower than the known ones; see docs/errors.md")
	}
	return nil
}

// readTrust parses a bundle without verifying it. The bundle itself contains the keys of its signers, which the caller must
// verify.
func readTrust(raw string) (Trust, []*jose.Unverified, error) {
	if len(raw) > watchword.MaxBundle {
		return Trust{}, nil, watchword.Refuse(watchword.TooLarge, "a trust bundle must have at most 64 KiB")
	}
	var signatures []*jose.Unverified
	if jose.LooksLikeDual(raw) {
		p, err := jose.ParseDual(raw, watchword.MaxBundle)
		if err != nil {
			return Trust{}, nil, err
		}
		signatures = []*jose.Unverified{p.First, p.Second}
	} else {
		u, err := jose.ParseJWS(raw, watchword.MaxBundle)
		if err != nil {
			return Trust{}, nil, err
		}
		signatures = []*jose.Unverified{u}
	}
	if !jose.SameType(signatures[0].Typ, TypTrust) {
		return Trust{}, nil, refuse(watchword.TokenKind, "typ must be %q", TypTrust)
	}
	t, err := parseTrust(signatures[0].UnverifiedPayload())
	return t, signatures, err
}

// verifySignatures verifies that exactly the roots that t names have signed it, among them one of known, and that it is
// valid now.
func (t Trust) verifySignatures(signatures []*jose.Unverified, known KeySet, now time.Time) error {
	roots, signed, knownSigner := NewKeySet(t.Roots...), KeySet{}, false
	for _, p := range signatures {
		k, ok := roots[watchword.KeyID(p.Kid)]
		if !ok {
			return watchword.Refuse(watchword.KeyUnknown, "the trust bundle is signed by a root that it does not contain")
		}
		if _, err := p.Verify(k); err != nil {
			return err
		}
		signed[k.ID()] = k
		knownSigner = knownSigner || known[k.ID()] != nil
	}
	if !knownSigner {
		return watchword.Refuse(watchword.KeyUnknown, "the trust bundle is not signed by a known root")
	}
	if len(signed) != len(roots) || len(signed) != len(signatures) {
		return watchword.Refuse(watchword.BundleInvalid, "the trust bundle must be signed by every root that it contains")
	}
	if now.IsZero() {
		now = t.Issued
	}
	if err := (validity{iat: toNumericDate(t.Issued), exp: toNumericDate(t.Expires)}).check(now, TrustLifetime, Skew, Skew); err != nil {
		return watchword.Wrap(err, watchword.BundleInvalid, "the trust bundle has expired, or is not valid yet")
	}
	return nil
}

func parseTrust(payload []byte) (Trust, error) {
	var t Trust
	var w validity
	var jti string
	err := jose.Walk(payload, func(name string, v jsontext.Value) error {
		switch name {
		case "iss":
			return readString(&t.Issuer, v)
		case "jti":
			return readString(&jti, v)
		case "ver":
			return readInt(&t.Version, v)
		case "epoch":
			return readInt(&t.Epoch, v)
		case "keys":
			return jose.Walk(v, t.readRole)
		case "tls":
			return jose.Walk(v, t.readTLS)
		case "witnesses":
			return jose.Each(v, t.readWitness)
		case "quorum":
			return readInt(&t.Quorum, v)
		case "issuers":
			return jose.Each(v, t.readIssuer)
		case "mqtts":
			return readString(&t.MQTTS, v)
		case "log_origin":
			return readString(&t.LogOrigin, v)
		}
		return w.member(name, v)
	})
	if err != nil {
		return Trust{}, err
	}
	if t.Issuer == "" || t.Version < 1 || t.Epoch < 1 {
		return Trust{}, refuse(watchword.TokenMalformed, "iss, ver and epoch are required")
	}
	if t.Quorum < 0 || t.Quorum > int64(len(t.Witnesses)) {
		return Trust{}, watchword.Refuse(watchword.TokenMalformed, "quorum must not be larger than the number of witnesses")
	}
	if err := t.checkHistory(); err != nil {
		return Trust{}, err
	}
	if len(t.LogOrigin) > maxLogOrigin {
		return Trust{}, watchword.Refuse(watchword.TokenMalformed, "log_origin must have at most %d bytes", maxLogOrigin)
	}
	t.Issued, t.Expires = w.iat.time(), w.exp.time()
	return t, checkJTI(jti)
}

// readRole parses the keys of one role; unknown roles are ignored.
func (t *Trust) readRole(name string, v jsontext.Value) error {
	to, ok := map[string]*[]*jose.PublicKey{
		"root": &t.Roots, "issuer": &t.Issuers, "command": &t.Command, "time": &t.Time, "log": &t.Log,
	}[name]
	if !ok {
		return nil
	}
	return jose.Each(v, func(item jsontext.Value) error {
		k, err := jose.ParseJWK(item, jose.ForSigning)
		if err != nil {
			return watchword.Wrap(err, watchword.TokenMalformed, "each key of a trust bundle must be a public JWK for signatures")
		}
		*to = append(*to, k)
		return nil
	})
}

// maxLogOrigin is the maximum length of a log's origin, in bytes.
const maxLogOrigin = 512

// MaxWitnesses is the maximum number of witnesses in a bundle.
const MaxWitnesses = 16

// readWitness parses one of the witnesses. Its key is validated when checkpoints are verified.
func (t *Trust) readWitness(item jsontext.Value) error {
	s, err := jose.String(item)
	if err != nil {
		return err
	}
	if s == "" || len(s) > 256 || len(t.Witnesses) == MaxWitnesses {
		return watchword.Refuse(watchword.TokenMalformed, "a trust bundle contains at most 16 witnesses, of at most 256 bytes each")
	}
	t.Witnesses = append(t.Witnesses, s)
	return nil
}

// readTLS parses the TLS part: ca, standard base64 of DER as in x5c, web_pki and proxy.
func (t *Trust) readTLS(name string, v jsontext.Value) error {
	switch name {
	case "ca":
		return jose.Each(v, func(item jsontext.Value) error {
			s, err := jose.String(item)
			if err != nil {
				return err
			}
			der, err := base64.StdEncoding.Strict().DecodeString(s)
			if err != nil || strings.ContainsAny(s, "\r\n") { // which the standard library passes over
				return watchword.Refuse(watchword.TokenMalformed, "tls.ca must be an array of base64 strings")
			}
			t.CAs = append(t.CAs, der)
			return nil
		})
	case "web_pki", "proxy":
		if v.Kind() != 't' && v.Kind() != 'f' {
			return watchword.Refuse(watchword.TokenMalformed, "%s must be true or false", name)
		}
		*map[string]*bool{"web_pki": &t.WebPKI, "proxy": &t.TLSProxy}[name] = v.Kind() == 't'
	}
	return nil
}

// ReadTrust parses a bundle without verifying its signatures: the caller's own, or one that was verified before.
func ReadTrust(raw string) (Trust, error) {
	t, _, err := readTrust(raw)
	return t, err
}
