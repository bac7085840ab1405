package token_test

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// What SignAccess writes, VerifyAccess and a plain JSON parser read alike.
func TestAccessTokenClaims(t *testing.T) {
	s := signer(t, jose.P256)
	g := token.Grant{
		Issuer: issuer, Subject: watchword.Subject{ID: dev, Labels: watchword.Labels{"site": "plant-1", "kind": "lamp"}}, Key: "k", JTI: "tok_1",
		Issued: now, Expires: now.Add(10 * time.Minute), Audience: `https://api.example/?a="b"&c=<d>`, Bound: "b",
		Perm: []watchword.Permission{
			{Resource: "topic:devices/lamp-1/\u00e9\"\\\u2028/#", Actions: []string{"pub", "sub"}}, {Resource: "fn:site=plant-1,kind=lamp/lamp.*", Actions: []string{"call"}},
		},
		Deny: []watchword.Permission{{Resource: "api:/v1/<&>/#", Actions: []string{"get"}}},
	}
	more := watchword.Permission{Resource: "api:/#", Actions: []string{"get"}}
	for name, change := range map[string]func(*token.Grant){
		"all there is": func(*token.Grant) {},
		"the least":    func(g *token.Grant) { g.Subject.Labels, g.Audience, g.Bound, g.Perm, g.Deny = nil, "", "", nil, nil },
	} {
		g := g
		change(&g)
		raw, err := token.SignAccess(s, g)
		if err != nil {
			t.Fatal(err)
		}
		aud := g.Audience
		if aud == "" {
			aud = issuer
		}
		a, err := token.VerifyAccess(raw, token.NewKeySet(s.Public()), issuer, aud, now, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		perm, deny, err := a.Permissions()
		if err != nil || a.Bound != g.Bound || len(perm) != len(g.Perm) || len(g.Perm) > 0 && !reflect.DeepEqual(perm, g.Perm) || !reflect.DeepEqual(deny, g.Deny) {
			t.Errorf("%s: %v, %v, %v, bound to %q", name, perm, deny, err, a.Bound)
		}
		if a.ClaimsDigest() != g.ClaimsDigest() {
			t.Errorf("%s: it says something else than was granted", name)
		}
		for what, change := range map[string]func(*token.Grant){
			"audience": func(g *token.Grant) { g.Audience += "x" }, "binding": func(g *token.Grant) { g.Bound += "x" },
			"permission":      func(g *token.Grant) { g.Perm = append(slices.Clip(g.Perm), g.Deny...); g.Perm = append(g.Perm, more) },
			"what it may not": func(g *token.Grant) { g.Deny = append(slices.Clip(g.Deny), more) },
		} {
			other := g
			if change(&other); other.ClaimsDigest() == g.ClaimsDigest() {
				t.Errorf("%s: another %s says the same", name, what)
			}
		}
		u, err := jose.ParseJWS(raw, watchword.MaxToken)
		if err != nil {
			t.Fatal(err)
		}
		var plain struct {
			Iss, Sub, Aud, JTI, Key string
			ClientID                string `json:"client_id"`
			Iat, Exp                int64
			Dev                     struct {
				ID     string
				Labels map[string]string
			}
		}
		if err := json.Unmarshal(u.UnverifiedPayload(), &plain); err != nil {
			t.Fatal(err)
		}
		if plain.Iss != issuer || plain.Sub != string(dev) || plain.Aud != aud || plain.ClientID != string(dev) || plain.JTI != "tok_1" || plain.Key != "k" ||
			plain.Iat != g.Issued.Unix() || plain.Exp != g.Expires.Unix() || plain.Dev.ID != string(dev) || !maps.Equal(plain.Dev.Labels, g.Subject.Labels) {
			t.Errorf("%s: %+v", name, plain)
		}
	}
}
