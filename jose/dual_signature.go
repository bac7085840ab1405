package jose

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// DualSignature is two compact JWSs over the identical payload, with unverified signatures: a statement by two keys (an old
// and a new one), in this order.
type DualSignature struct {
	First, Second *Unverified
}

// SignDual returns the JSON array ["…","…"] of payload signed by first and by second.
func SignDual(first, second *Signer, typ string, payload []byte) (string, error) {
	var both [2]string
	for i, s := range []*Signer{first, second} {
		raw, err := s.Sign(typ, payload)
		if err != nil {
			return "", err
		}
		both[i] = raw
	}
	return `["` + both[0] + `","` + both[1] + `"]`, nil // base64url and dots need no escape
}

// LooksLikeDual reports whether raw begins as a JSON array does, and so is no
// compact JWS: where one signature or two may come.
func LooksLikeDual(raw string) bool { return strings.HasPrefix(raw, "[") }

// ParseDual reads a JSON array of exactly two compact JWSs, each as [ParseJWS]
// takes it and of at most max bytes, with one typ and byte for byte one payload.
// Codes: those of ParseJWS; token_malformed for any other shape.
func ParseDual(raw string, max int) (*DualSignature, error) {
	if len(raw) > 2*max+len(`["",""]`) {
		return nil, tooLarge("the pair of tokens", 2*max)
	}
	if jsontext.Value(raw).Kind() != '[' || strings.Count(raw, `"`) != 4 { // so nothing but two strings can be in it
		return nil, malformed(nil, "it must be a JSON array of two compact tokens")
	}
	var both []string
	if err := json.Unmarshal([]byte(raw), &both); err != nil || len(both) != 2 {
		return nil, malformed(err, "it must be a JSON array of two compact tokens")
	}
	first, err := ParseJWS(both[0], max)
	if err != nil {
		return nil, err
	}
	second, err := ParseJWS(both[1], max)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first.payload, second.payload) || !SameType(first.Typ, second.Typ) {
		return nil, malformed(nil, "both tokens must have the same claims")
	}
	return &DualSignature{first, second}, nil
}

// Typ returns the typ of both.
func (p *DualSignature) Typ() string { return p.First.Typ }

// UnverifiedPayload returns the unverified payload, as [Unverified.UnverifiedPayload] does.
func (p *DualSignature) UnverifiedPayload() []byte { return p.First.UnverifiedPayload() }

// Verify checks the first signature under first and the second under second,
// which must be another key, and returns the payload. Codes: as
// [Unverified.Verify].
func (p *DualSignature) Verify(first, second *PublicKey) ([]byte, error) {
	if first.ID() == second.ID() {
		return nil, watchword.Refuse(watchword.KeyUnknown, "the two signatures must be by different keys")
	}
	if _, err := p.First.Verify(first); err != nil {
		return nil, err
	}
	return p.Second.Verify(second)
}
