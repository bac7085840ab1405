package verify

import (
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Limits of a key set.
const (
	maxJWKS = 64 << 10
	maxKeys = 64
)

// parseJWKS parses a JWK set (RFC 7517 §5). Keys of types that cannot sign here, and keys that are only for encryption, are
// ignored. The other keys are checked strictly: use, key_ops and alg must allow signing, kid must be the thumbprint, and no
// key may be duplicate or private. A set without signing keys is valid; then no token is. Code: key_damaged.
func parseJWKS(b []byte) (token.KeySet, error) {
	var doc struct {
		Keys *[]jsontext.Value `json:"keys"`
	}
	switch err := jose.Decode(b, &doc); {
	case err != nil:
		return nil, jwksInvalid(err, "the document must be a JWK Set (RFC 7517)")
	case doc.Keys == nil:
		return nil, jwksInvalid(nil, "the document must be a JWK Set (RFC 7517)")
	case len(*doc.Keys) > maxKeys:
		return nil, jwksInvalid(nil, "a set must have at most 64 keys")
	}
	set := token.KeySet{}
	for _, raw := range *doc.Keys {
		k, err := parseKey(raw)
		if err != nil {
			return nil, jwksInvalid(err, "each key of the set must be a valid JWK whose kid is its thumbprint (RFC 7638)")
		}
		if k == nil {
			continue
		}
		if _, twice := set[k.ID()]; twice {
			return nil, jwksInvalid(nil, "each key must be given once")
		}
		set[k.ID()] = k
	}
	return set, nil
}

// parseKey returns nil for a key that cannot sign here: of another type, or only for encryption. A key with contradictory
// members is refused.
func parseKey(raw jsontext.Value) (*jose.PublicKey, error) {
	var kty, crv, use, alg string
	kid, ops := false, []string(nil)
	err := jose.Walk(raw, func(name string, v jsontext.Value) (err error) {
		switch name {
		case "kty":
			kty, err = jose.String(v)
		case "crv":
			crv, err = jose.String(v)
		case "use":
			use, err = jose.String(v)
		case "kid":
			kid = true
		case "alg":
			alg, err = jose.String(v)
		case "key_ops":
			ops, err = jose.Strings(v)
		case "d", "k", "priv": // of any key type: a published private key is compromised
			err = watchword.Refuse(watchword.BadRequest, "the key must be a public key for signatures")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	signs := kty == "EC" && crv == jose.P256 || kty == "OKP" && crv == jose.Ed
	agrees := strings.HasPrefix(alg, "ECDH-ES")
	derives := len(ops) > 0 && !slices.ContainsFunc(ops, func(op string) bool { return op != "deriveKey" && op != "deriveBits" })
	seals := (use == "enc" || agrees || derives) && (use == "" || use == "enc") && (alg == "" || agrees) && (len(ops) == 0 || derives)
	if !signs || seals {
		return nil, nil
	}
	if !kid {
		return nil, watchword.Refuse(watchword.BadRequest, "kid is required")
	}
	return jose.ParseJWK(raw, jose.ForSigning)
}

func jwksInvalid(err error, why string) error {
	return watchword.Wrap(err, watchword.KeyDamaged, "the issuer's key set is not valid: %s", why)
}
