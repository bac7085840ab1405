package verify

import (
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// The bounds of a key set.
const (
	maxJWKS = 64 << 10
	maxKeys = 64
)

// parseJWKS reads a JWK set (RFC 7517 §5). Keys of kinds that do not sign here, and
// keys that say that they are for encryption alone, are passed over; what is left must
// be strict: each key for signing by all that it says, named by its own thumbprint,
// none twice, none private. A set without
// any is good: then no key counts. Code: key_damaged.
func parseJWKS(b []byte) (token.KeySet, error) {
	var doc struct {
		Keys *[]jsontext.Value `json:"keys"`
	}
	switch err := jose.Decode(b, &doc); {
	case err != nil:
		return nil, jwksInvalid(err, "it is no JWK set")
	case doc.Keys == nil:
		return nil, jwksInvalid(nil, "it is no JWK set")
	case len(*doc.Keys) > maxKeys:
		return nil, jwksInvalid(nil, "a set may have 64 keys")
	}
	set := token.KeySet{}
	for _, raw := range *doc.Keys {
		k, err := parseKey(raw)
		if err != nil {
			return nil, jwksInvalid(err, "a key of the set is none, or not named by its thumbprint")
		}
		if k == nil {
			continue
		}
		if _, twice := set[k.ID()]; twice {
			return nil, jwksInvalid(nil, "a key stands twice")
		}
		set[k.ID()] = k
	}
	return set, nil
}

// parseKey returns nil for a key that is not for signing here: one of another kind,
// or one that is for encryption by all that it says. A key that contradicts itself is refused.
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
		case "d", "k", "priv": // of any kind: whoever publishes one has lost it
			err = watchword.Refuse(watchword.BadRequest, "it is private or symmetric")
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
		return nil, watchword.Refuse(watchword.BadRequest, "it has no kid")
	}
	return jose.ParseJWK(raw, jose.ForSigning)
}

func jwksInvalid(err error, why string) error {
	return watchword.Wrap(err, watchword.KeyDamaged, "the issuer's keys do not count: %s", why)
}
