package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// tokenKind describes a kind of token.
type tokenKind struct {
	typ, name, signer, reader string
	most                      int           // maximum size in bytes
	life                      time.Duration // from iat to exp; 0: the signer's choice
	must                      string        // mandatory claims
	signedBy                  string        // role of the server's keys, or empty
}

// tokenKinds lists each kind of docs/protocol.md, §1 to §4; the first may have no typ.
var tokenKinds = []tokenKind{
	{token.TypAssertion, "client assertion", "the subject's own key", "the token endpoint, and MQTT as a password", watchword.MaxToken, token.AssertionLifetime, "iss sub aud jti iat exp", ""},
	{token.TypAccess, "access token", "the server's issuer key", "the server's endpoints, and services that check its tokens", watchword.MaxToken, 0, "iss sub aud jti iat exp key perm", "issuer"},
	{token.TypDPoP, "DPoP proof", "the key in its header", "the verifier of the token that is sent with it", watchword.MaxToken, 0, "jti htm htu iat", ""},
	{token.TypEnrollment, "enrollment proof", "the new key itself", "POST /v1/enroll", watchword.MaxToken, token.ProofLifetime, "aud code_hash seal_jkt jti iat exp", ""},
	{token.TypLogin, "login proof", "the new key itself", "POST /v1/logins", watchword.MaxToken, token.ProofLifetime, "aud code_hash pin jti iat exp", ""},
	{token.TypRekey, "key change", "the old key, and the new one", "the server", watchword.MaxToken, token.RekeyLifetime, "iss sub aud jti iat exp sign_jkt seal_jkt", ""},
	{token.TypCommand, "command", "the server's command key", "the device, if it was sealed to it", watchword.MaxDocument, token.CommandLifetime, "iss aud jti iat exp epoch seq cmd args", "command"},
	{token.TypConfig, "configuration", "the server's command key", "the device", 2 * watchword.MaxDocument, token.ConfigLifetime, "iss aud jti iat exp ver config", "command"},
	{token.TypReceipt, "receipt", "the device's own key", "the server", watchword.MaxDocument, 0, "iss aud jti epoch seq cid ch st", ""},
	{token.TypOrder, "order", "the orderer's own key", "the server, and a device that pinned that key", watchword.MaxToken, token.CommandLifetime, "iss aud server cmd args_hash jti iat exp", ""},
	{token.TypTrust, "trust bundle", "the root key", "devices", watchword.MaxBundle, token.TrustLifetime, "iss jti iat exp ver epoch keys", "root"},
	{token.TypTime, "signed time", "the server's time key", "a device without a clock", watchword.MaxToken, token.TimeLifetime, "iss jti iat exp nonce", "time"},
}

func headerMeaning(name, v string) string {
	switch name {
	case "alg":
		switch v {
		case "ES256":
			return "how it is signed: ECDSA on P-256 with SHA-256"
		case "Ed25519", "EdDSA":
			return "how it is signed: Ed25519"
		case "ECDH-ES":
			return "how the content key is agreed: with a key made for this seal alone"
		}
		return "how it is signed or sealed"
	case "enc":
		return "how the content is encrypted"
	case "typ":
		return "the kind of token"
	case "cty":
		return "what is sealed inside"
	case "kid":
		return "the key, by its thumbprint (RFC 7638)"
	case "epk":
		return "the sender's key, made for this seal alone"
	case "jwk":
		return "the public key that signed, which proves possession of its private key only"
	}
	return "a member that is not taken here"
}

var claimMeanings = map[string]string{
	"iss": "who says it", "sub": "about whom", "aud": "for whom", "client_id": "who asked for it", "jti": "its own number: used once, revoked by it",
	"iat": "made", "exp": "ends", "nbf": "not before", "key": "the key that the subject proved", "dev": "the device: id and labels", "perm": "what it allows",
	"deny": "what it forbids, checked first", "cnf": "bound: counts only beside a proof of this key", "scope": "the share of its permissions that was asked for",
	"htm": "for this HTTP method", "htu": "for this address", "ath": "hash of the token beside it", "nonce": "what the reader gave to prove that it is fresh",
	"code_hash": "hash of the one-time code", "pin": "of the root key that the client saw", "seal_jkt": "thumbprint of the key that will unseal", "epoch": "of the server's counters", "seq": "number in the epoch: it only grows",
	"cmd": "the function to run", "args": "its arguments", "act": "who ordered it, by the server's word", "order": "the orderer's own signed word", "server": "the issuer that the order is given to", "args_hash": "hash of the arguments",
	"ver": "version: it only grows", "config": "what the device shall be", "cid": "the command that it answers", "ch": "hash of what was obeyed", "st": "what became of it",
	"result": "what the function gave back", "keys": "the server's public keys, by role", "tls": "by what the server's TLS is known",
	"log_origin": "name of the audit log",
}

// claimShape is the JSON type of each claim, by jsontext's first characters.
var claimShape = func() map[string]string {
	m := map[string]string{"aud": `"[`}
	for shape, names := range map[string]string{
		`"`: "iss sub client_id jti key log_origin scope htm htu ath nonce code_hash pin seal_jkt cmd order server args_hash cid ch st",
		"0": "epoch seq ver iat exp nbf", "[": "perm deny", "{": "args config keys tls act cnf dev",
	} {
		for _, name := range strings.Fields(names) {
			m[name] = shape
		}
	}
	return m
}()

var shapes = map[string]string{`"`: "a text", "0": "a whole number", "[": "an array", "{": "an object", `"[`: "a text, or an array of texts"}

// failed reports whether a check has failed already.
func (p *inspection) failed(check string) bool {
	return slices.ContainsFunc(p.Checks, func(v checkResult) bool { return v.Check == check && v.Result == "bad" })
}

// body explains the claims, and makes the checks that need only the kind and a clock.
func (p *inspection) body(payload []byte, now time.Time) {
	ms, err := members(payload)
	if err != nil {
		path, what := jsonErrorAt(err)
		p.bad("claims", watchword.TokenMalformed, joined("payload", path), "%s", what)
	}
	if werr := jose.Walk(payload, func(string, jsontext.Value) error { return nil }); err == nil && werr != nil {
		p.addRefusal(werr) // valid JSON, but too deep
	}
	have := map[string]jsontext.Value{}
	for _, m := range ms {
		have[m.name] = m.value
		s := inspectedMember{Name: m.name, Value: value(m.value), Meaning: claimMeanings[m.name]}
		if want := claimShape[m.name]; want != "" && !strings.ContainsRune(want, rune(m.value.Kind())) {
			p.bad("claims", watchword.TokenMalformed, "payload."+m.name, "must be %s", shapes[want])
		}
		switch m.name {
		case "iat", "exp", "nbf":
			if t, ok := parseMoment(m.value); ok {
				s.Meaning += " " + t.Local().Format("2006-01-02 15:04:05") + ", " + relativeTime(t, now)
			} else {
				p.bad("times", watchword.TokenMalformed, "payload."+m.name, "must be whole seconds since 1970")
			}
		case "perm", "deny":
			s.Lines = describePermissions(m.value, m.name == "deny")
		case "order":
			if raw, ok := text(m.value); ok {
				p.Parts = append(p.Parts, inspect(raw, now))
			}
		}
		p.Claims = append(p.Claims, s)
	}
	if p.kind == nil {
		return
	}
	var missing []string
	for _, name := range strings.Fields(p.kind.must) {
		if _, ok := have[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		p.bad("claims", watchword.TokenMalformed, "payload", "without %s, which every %s has", strings.Join(missing, ", "), p.kind.name)
	} else if err == nil && !p.failed("claims") {
		p.good("claims", "all that this kind must say")
	}
	if p.kind.typ != token.TypAccess && have["aud"].Kind() == '[' && len(items(have["aud"])) != 1 {
		p.bad("claims", watchword.AudienceMismatch, "payload.aud", "must name exactly one audience")
	}
	if jti, ok := text(have["jti"]); ok && (jti == "" || len(jti) > 128) {
		p.bad("claims", watchword.TokenMalformed, "payload.jti", "must have 1 to 128 bytes")
	}
	p.times(have, now)
}

// times compares the time claims with now, as a verifier with a correct clock would.
func (p *inspection) times(have map[string]jsontext.Value, now time.Time) {
	iat, made := parseMoment(have["iat"])
	exp, ends := parseMoment(have["exp"])
	nbf, begins := parseMoment(have["nbf"])
	if p.kind.typ == token.TypDPoP {
		exp, ends = iat.Add(token.DPoPLifetime), made
	}
	life := exp.Unix() - iat.Unix() // a Duration would overflow
	late := token.Skew
	if p.kind.typ == token.TypAccess {
		late = 0
	}
	wrong := len(p.Checks)
	if made && iat.After(now.Add(token.Skew)) {
		p.bad("times", watchword.TokenEarly, "payload.iat", "is in the future: %s", relativeTime(iat, now))
	}
	if begins && nbf.After(now.Add(token.Skew)) {
		p.bad("times", watchword.TokenEarly, "payload.nbf", "it does not count yet: %s", relativeTime(nbf, now))
	}
	if made && ends && (life <= 0 || p.kind.life > 0 && life > int64(p.kind.life/time.Second)) {
		p.bad("lifetime", watchword.TokenLifetime, "payload.exp", "lives %s; a %s may live %s", formatSeconds(life), p.kind.name, formatSeconds(int64(p.kind.life/time.Second)))
	}
	if ends && !now.Before(exp.Add(late)) {
		p.bad("times", watchword.TokenExpired, "payload.exp", "it ended %s", relativeTime(exp, now))
	}
	switch {
	case len(p.Checks) > wrong:
	case made && ends:
		p.good("times", "it counts now, and for %s more; life %s", strings.TrimPrefix(relativeTime(exp, now), "in "), formatSeconds(life))
	case made:
		p.good("times", "made %s; this kind has no end", relativeTime(iat, now))
	}
}

// parseMoment parses a time, of any number that is in range.
func parseMoment(v jsontext.Value) (time.Time, bool) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n <= -1<<53 || n >= 1<<53 {
		return time.Time{}, false
	}
	return time.Unix(n, 0), true
}

// relativeTime returns the distance of t from now, as "in 9 min" or "3 min ago".
func relativeTime(t, now time.Time) string {
	s := t.Unix() - now.Unix()
	switch {
	case s > 0:
		return "in " + formatSeconds(s)
	case s < 0:
		return formatSeconds(-s) + " ago"
	default:
		return "now"
	}
}

// formatSeconds formats seconds in the largest unit in which they are at least two.
func formatSeconds(s int64) string {
	const day = 24 * 60 * 60
	switch {
	case s < 0:
		return "-" + formatSeconds(-s)
	case s < 120:
		return fmt.Sprintf("%d s", s)
	case s < 120*60:
		return fmt.Sprintf("%d min", s/60)
	case s < 2*day:
		return fmt.Sprintf("%d h", s/3600)
	case s < 2*365*day:
		return fmt.Sprintf("%d days", s/day)
	default:
		return fmt.Sprintf("%d years", s/(365*day))
	}
}

// describePermissions returns each permission in words.
func describePermissions(v jsontext.Value, deny bool) (out []string) {
	may := "may "
	if deny {
		may = "may not "
	}
	for _, item := range items(v) {
		pair := items(item)
		if len(pair) != 2 {
			out = append(out, "no permission: "+string(item))
			continue
		}
		resource, _ := text(pair[0])
		var actions []string
		for _, a := range items(pair[1]) {
			s, _ := text(a)
			actions = append(actions, s)
		}
		p := watchword.Permission{Resource: resource, Actions: actions}
		if p.Check() != nil {
			out = append(out, "no permission: "+string(item))
			continue
		}
		out = append(out, may+describePermission(p))
	}
	return out
}

func describePermission(p watchword.Permission) string {
	if topic, ok := strings.CutPrefix(p.Resource, watchword.TopicPrefix); ok {
		var verbs []string
		if slices.Contains(p.Actions, "pub") {
			verbs = append(verbs, "publish on")
		}
		if slices.Contains(p.Actions, "sub") {
			verbs = append(verbs, "subscribe to")
		}
		return strings.Join(verbs, " and ") + " " + topic
	}
	if fn, ok := strings.CutPrefix(p.Resource, watchword.FunctionPrefix); ok {
		dev, name, _ := strings.Cut(fn, "/")
		switch {
		case dev == "*":
			dev = "every device"
		case strings.Contains(dev, "="):
			dev = "devices with " + dev
		}
		if name == "*" {
			name = "any function"
		}
		return "call " + name + " on " + dev
	}
	return strings.ToUpper(strings.Join(p.Actions, ", ")) + " " + strings.TrimPrefix(p.Resource, watchword.APIPrefix)
}
