package verify

import (
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

// parseJWKS reads a JWK set (RFC 7517 §5). Keys of kinds that do not sign here are
// passed over, as are members that we do not know; what is left must be strict:
// each key named by its own thumbprint, none twice, none private. A set without
// any is good: then no key counts. Code: key_damaged.
func parseJWKS(b []byte) (token.KeySet, error) {
	var doc struct {
		Keys *[]jsontext.Value `json:"keys"`
	}
	switch err := jose.Decode(b, &doc); {
	case err != nil:
		return nil, badSet(err, "it is no JWK set")
	case doc.Keys == nil:
		return nil, badSet(nil, "it is no JWK set")
	case len(*doc.Keys) > maxKeys:
		return nil, badSet(nil, "a set may have 64 keys")
	}
	set := token.KeySet{}
	for _, raw := range *doc.Keys {
		k, err := parseKey(raw)
		if err != nil {
			return nil, badSet(err, "a key of the set is none, or not named by its thumbprint")
		}
		if k == nil {
			continue
		}
		if _, twice := set[k.ID()]; twice {
			return nil, badSet(nil, "a key stands twice")
		}
		set[k.ID()] = k
	}
	return set, nil
}

// parseKey returns nil for a key that is of no kind that signs here.
func parseKey(raw jsontext.Value) (*jose.PublicKey, error) {
	var kty, crv, use, alg string
	var kept []string
	kid := false
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
		case "x", "y", "key_ops", "d":
		default:
			return nil
		}
		kept = append(kept, `"`+name+`":`+string(v))
		return err
	})
	if err != nil {
		return nil, err
	}
	signs := kty == "EC" && crv == jose.P256 || kty == "OKP" && crv == jose.Ed
	if !signs || use == "enc" || strings.HasPrefix(alg, "ECDH") {
		return nil, nil
	}
	if !kid {
		return nil, watchword.Refuse(watchword.BadRequest, "it has no kid")
	}
	return jose.ParseJWK([]byte("{" + strings.Join(kept, ",") + "}"))
}

func badSet(err error, why string) error {
	return watchword.Because(err, watchword.KeyDamaged, "the issuer's keys do not count: %s", why)
}
