package token

import (
	"cmp"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// ClaimedIssuer returns which of accepted, the issuers of a server, a token names in iss, or else in aud, and the first one
// if it names none. Nothing of raw is verified: the caller verifies it with the result as the expected issuer. accepted must not be empty.
func ClaimedIssuer(raw string, accepted []string) string {
	if len(accepted) == 1 {
		return accepted[0]
	}
	u := parseAny(raw)
	if u == nil {
		return accepted[0]
	}
	iss, aud := "", ""
	see := func(into *string, v jsontext.Value) error {
		s, err := jose.String(v)
		if err == nil && *into == "" && slices.Contains(accepted, s) {
			*into = s
		}
		return err
	}
	err := jose.Walk(u.UnverifiedPayload(), func(name string, v jsontext.Value) error {
		switch {
		case name == "iss":
			return see(&iss, v)
		case name == "aud" && v.Kind() == '"':
			return see(&aud, v)
		case name == "aud" && v.Kind() == '[':
			return jose.Each(v, func(item jsontext.Value) error { return see(&aud, item) })
		}
		return nil
	})
	if err != nil {
		return accepted[0]
	}
	return cmp.Or(iss, aud, accepted[0])
}

// parseAny parses a compact JWS, or the first of two over one payload; nil if it is neither.
func parseAny(raw string) *jose.Unverified {
	if jose.LooksLikeDual(raw) {
		p, err := jose.ParseDual(raw, watchword.MaxBundle)
		if err != nil {
			return nil
		}
		return p.First
	}
	u, err := jose.ParseJWS(raw, watchword.MaxBundle)
	if err != nil {
		return nil
	}
	return u
}
