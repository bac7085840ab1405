package attack_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// mutation makes a bad credential of what would be a good one. Its signature holds,
// unless the mutation is of the signature.
type mutation struct {
	name string
	want watchword.Code
	// head and payload change what is signed; nil leaves it.
	head, payload func(string) string
	// raw changes what is shown.
	raw func(raw string) string
}

// put puts a member at the beginning of a JSON object.
func put(member string) func(string) string {
	return func(s string) string { return "{" + member + "," + strings.TrimPrefix(s, "{") }
}

// set changes the value of a member; an endpoint whose credentials lack it gets it.
func set(name, value string) func(string) string {
	return func(s string) string {
		var m map[string]json.RawMessage
		if json.Unmarshal([]byte(s), &m) != nil {
			return s
		}
		delete(m, name)
		b, _ := json.Marshal(m) // as it was read
		if value == "" {
			return string(b)
		}
		return put(`"` + name + `":` + value)(string(b))
	}
}

func is(s string) func(string) string   { return func(string) string { return s } }
func also(s string) func(string) string { return func(x string) string { return x + s } }
func deep(n int) string                 { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }

func part(raw string, i int) (string, []int) { // the i-th part of a compact JWS, and where it is
	begin := 0
	for range i {
		begin += strings.IndexByte(raw[begin:], '.') + 1
	}
	end := strings.IndexByte(raw[begin:], '.')
	if end < 0 {
		end = len(raw) - begin
	}
	return raw[begin : begin+end], []int{begin, begin + end}
}

// inPart changes the i-th part of a compact JWS.
func inPart(i int, f func(string) string) func(string) string {
	return func(raw string) string {
		p, at := part(raw, i)
		return raw[:at[0]] + f(p) + raw[at[1]:]
	}
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// loose sets the unused bits at the end; if there are none, it adds a letter.
func loose(p string) string {
	if len(p)%4 == 0 {
		return p + "A"
	}
	last := strings.IndexByte(alphabet, p[len(p)-1])
	return p[:len(p)-1] + alphabet[last|1:last|1+1]
}

// signature changes the bytes of a JWS's signature.
func signature(f func([]byte) []byte) func(string) string {
	return inPart(2, func(p string) string {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil {
			return p
		}
		return b64(f(b))
	})
}

func der(b []byte) []byte {
	out := []byte{0x30, 70, 2, 33, 0}
	out = append(append(out, b[:32]...), 2, 33, 0)
	return append(out, b[32:]...)
}

// mutations is every game that is known to us, for keys of one curve; other is the
// algorithms of the others. kid and jwk are left to the endpoints that take them.
func mutations(other ...string) []mutation {
	const (
		malformed = watchword.TokenMalformed
		badAlg    = watchword.AlgorithmInvalid
		unknown   = watchword.KeyUnknown
		badSig    = watchword.SignatureInvalid
	)
	var out []mutation
	head := func(name string, want watchword.Code, f func(string) string) {
		out = append(out, mutation{name: "header: " + name, want: want, head: f})
	}
	claims := func(name string, want watchword.Code, f func(string) string) {
		out = append(out, mutation{name: "claims: " + name, want: want, payload: f})
	}
	raw := func(name string, want watchword.Code, f func(string) string) {
		out = append(out, mutation{name: "bytes: " + name, want: want, raw: f})
	}
	for _, alg := range []string{
		"none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "RS256", "RS512", "PS256", "PS512", "ES384", "ES512", "ES256K",
		"es256", "Es256", "ES256 ", " ES256", "ES256\\u0000", "ed25519", "EDDSA", "Ed448", "ECDH-ES", "ＥＳ256",
	} {
		head("alg "+alg, badAlg, set("alg", `"`+alg+`"`))
	}
	for _, alg := range other {
		head("alg of another curve: "+alg, badAlg, set("alg", `"`+alg+`"`))
	}
	head("no alg", badAlg, set("alg", ""))
	for _, v := range []string{`""`, `null`, `1`, `["ES256"]`, `{"x":"ES256"}`, `true`} {
		head("alg "+v, malformed, set("alg", v))
		head("typ "+v, malformed, set("typ", v))
	}
	for _, member := range []string{
		`"jku":"https://evil.example/jwks"`, `"x5u":"https://evil.example/x"`, `"x5c":["AAAA"]`, `"x5t":"AAAA"`, `"x5t#S256":"AAAA"`, `"crit":["exp"]`, `"crit":[]`,
		`"b64":false`, `"b64":true`, `"zip":"DEF"`, `"cty":"JWT"`, `"enc":"A256GCM"`, `"epk":{}`, `"iss":"x"`, `"ALG":"ES256"`, `"Typ":"x"`, `"":1`, `"p2c":1000000000`,
		`"alg":"ES256"`, `"\u0061lg":"ES256"`, `"typ":"x"`, `"t\u0079p":"x"`, `"x":{"a":1,"a":2}`, `"x":` + deep(9),
	} {
		head(member, malformed, put(member))
	}
	head("a byte order mark", malformed, func(s string) string { return "\ufeff" + s })
	head("bad UTF-8", malformed, put("\"x\":\"\xff\""))
	head("half a surrogate", malformed, set("typ", `"\ud800"`))
	head("a NUL behind", malformed, also("\x00"))
	head("another object behind", malformed, also("{}"))
	head("a comment", malformed, also("//"))
	head("an array", malformed, func(s string) string { return "[" + s + "]" })
	head("a text", malformed, is(`"ES256"`))
	head("null", malformed, is("null"))
	head("nothing", malformed, is(""))
	head("an empty object", badAlg, is("{}"))

	for _, n := range []string{
		"1e9", "2e9", "1.0", "1700000000.0", "1700000000.5", "-0", "-0.0", "0x10", "01", "+1", "1e400", "-1e400", "NaN", "Infinity", "null", "true", `"1900000000"`, `""`, "[1900000000]", "{}",
		"9223372036854775808", "-9223372036854775809", "99999999999999999999999999999999999", "0", "-1", "-9223372036854775808",
	} {
		claims("iat "+n, malformed, set("iat", n))
	}
	for _, member := range []string{
		`"iat":1`, `"i\u0061t":1`, `"jti":"x"`, `"x":{"a":1,"a":2}`, `"x":[{"a":{"b":1,"\u0062":1}}]`, `"x":` + deep(8), `"x":` + strings.Repeat("[", 8) + strings.Repeat("]", 8), "\"x\":\"\xc0\xaf\"", `"x":"\udc00\ud800"`, "\"x\xff\":1", `"x":"\x"`, "\"x\":\"\n\"", `"x":.5`, `"x":tru`,
	} {
		claims(member, malformed, put(member))
	}
	claims("another object behind", malformed, also("{}"))
	claims("a comma behind", malformed, func(s string) string { return strings.TrimSuffix(s, "}") + ",}" })
	claims("an array", malformed, func(s string) string { return "[" + s + "]" })
	claims("null", malformed, is("null"))
	claims("nothing", malformed, is(""))
	claims("UTF-16", malformed, func(s string) string { return "\xff\xfe" + strings.Join(strings.Split(s, ""), "\x00") })
	claims("no jti", malformed, set("jti", ""))
	claims("an empty jti", malformed, set("jti", `""`))
	claims("a jti of 129 bytes", malformed, set("jti", `"`+strings.Repeat("x", 129)+`"`))
	claims("a jti that is a number", malformed, set("jti", "1"))

	for i, name := range []string{"header", "payload", "signature"} {
		raw("bits behind the "+name, malformed, inPart(i, loose))
		raw("padding behind the "+name, malformed, inPart(i, also("=")))
		raw("a space in the "+name, malformed, inPart(i, func(p string) string { return p[:8] + " " + p[8:] }))
		raw("the other alphabet in the "+name, malformed, inPart(i, func(p string) string { return "+" + p[1:] }))
		raw("percents in the "+name, malformed, inPart(i, func(p string) string { return "%41" + p[1:] }))
		raw("a letter of another script in the "+name, malformed, inPart(i, func(p string) string { return "а" + p[1:] }))
		raw("one letter more in the "+name, malformed, inPart(i, func(p string) string {
			for len(p)%4 != 1 {
				p += "A"
			}
			return p
		}))
	}
	raw("no signature", malformed, inPart(2, is("")))
	raw("two parts", malformed, func(r string) string { return r[:strings.LastIndexByte(r, '.')] })
	raw("four parts", malformed, also(".AAAA"))
	raw("an empty part before", malformed, func(r string) string { return "." + r })
	raw("63 bytes of signature", malformed, signature(func(b []byte) []byte { return b[:63] }))
	raw("65 bytes of signature", malformed, signature(func(b []byte) []byte { return append(b, 0) }))
	raw("the signature as DER", malformed, signature(der))
	raw("a signature of zeros", badSig, signature(func(b []byte) []byte { return make([]byte, 64) }))
	raw("a signature of ones", badSig, signature(func(b []byte) []byte { return []byte(strings.Repeat("\xff", 64)) }))
	raw("r without s", badSig, signature(func(b []byte) []byte { return append(b[:32:32], make([]byte, 32)...) }))
	raw("r and s changed places", badSig, signature(func(b []byte) []byte { return append(b[32:64:64], b[:32]...) }))
	raw("s and the order", badSig, signature(func(b []byte) []byte { return append(b[:32:32], order256.Bytes()...) }))
	raw("one bit", badSig, signature(func(b []byte) []byte { b[63] ^= 1; return b }))
	return out
}

var order256, _ = new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)

// kidMutations is for the endpoints that find the key by its kid.
func kidMutations(ep *endpointFixture, d endpoint) []mutation {
	var out []mutation
	kid := func(v string, want watchword.Code) {
		out = append(out, mutation{name: "header: kid " + v, want: want, head: set("kid", v)})
	}
	id := string(d.key.Public().ID())
	for _, v := range []string{
		"../../../../etc/passwd", "/dev/null", "' OR '1'='1", "x'; DROP TABLE tokens; --", "$(id)", "`id`", "https://evil.example/key", id + `\u0000`, " " + id, id + " ", id + "=",
		strings.ToUpper(id), strings.ToLower(id), id[:42], id + "A", "0", string(ep.operator.Public().ID()) + "x", string(ep.ring.Root().ID()) + "x", strings.Repeat("A", 128),
	} {
		kid(`"`+v+`"`, watchword.KeyUnknown)
	}
	for _, v := range []string{`""`, "null", "1", "[]", `["` + id + `"]`, `{"a":1}`, `"` + strings.Repeat("A", 129) + `"`} {
		kid(v, watchword.TokenMalformed)
	}
	out = append(
		out,
		mutation{name: "header: kid of another key that counts elsewhere", want: watchword.KeyUnknown, head: set("kid", `"`+string(ep.ring.Public("log")[0].ID())+`"`)},
		mutation{name: "header: no kid", want: watchword.KeyUnknown, head: set("kid", "")},
		mutation{name: "header: kid twice", want: watchword.TokenMalformed, head: put(`"kid":"` + id + `"`)},
		mutation{name: "header: a key in the header", want: watchword.TokenMalformed, head: put(`"jwk":` + string(d.key.Public().JWK()))},
		mutation{name: "header: HS256 with the public key", want: watchword.AlgorithmInvalid, head: set("alg", `"HS256"`), raw: hmacs(d.key.Public())},
		mutation{name: "header: HS256 with the key as JWK", want: watchword.AlgorithmInvalid, head: set("alg", `"HS256"`), raw: hmacOf(d.key.Public().JWK())},
	)
	return out
}

func hmacs(k *jose.PublicKey) func(string) string { return hmacOf(k.SPKI()) }

// hmacOf signs with a public key as if it were a secret (RFC 8725 §2.1).
func hmacOf(key []byte) func(string) string {
	return func(raw string) string {
		i := strings.LastIndexByte(raw, '.')
		h := hmac.New(sha256.New, key)
		h.Write([]byte(raw[:i]))
		return raw[:i+1] + b64(h.Sum(nil))
	}
}

// foreignClaims is what a credential of the wrong tenant, issuer and audience says.
func foreignClaims(d endpoint, issuer string) []mutation {
	var out []mutation
	c := d.claims()
	for _, v := range []string{"https://evil.example", issuer + "/", issuer + "/t/evil", strings.ToUpper(issuer), issuer + "#", "https://evil.example/" + issuer, "", " " + issuer, issuer + `\u0000`} {
		if c["iss"] == issuer {
			out = append(out, mutation{name: "claims: iss " + v, want: watchword.IssuerMismatch, payload: set("iss", `"`+v+`"`)})
		}
		if c["aud"] != nil {
			out = append(out, mutation{name: "claims: aud " + v, want: watchword.AudienceMismatch, payload: set("aud", `"`+v+`"`)})
		}
	}
	if c["aud"] != nil {
		out = append(out, mutation{name: "claims: aud of no server", want: watchword.AudienceMismatch, payload: set("aud", `[]`)},
			mutation{name: "claims: no aud", want: watchword.AudienceMismatch, payload: set("aud", "")},
			mutation{name: "claims: aud null", want: watchword.TokenMalformed, payload: set("aud", "null")},
			mutation{name: "claims: aud a number", want: watchword.TokenMalformed, payload: set("aud", "1")},
			mutation{name: "claims: aud of arrays", want: watchword.TokenMalformed, payload: set("aud", `[["x"]]`)})
	}
	return out
}

// noTime is what a credential may say of a device that has no clock.
var noTime = map[string]bool{"claims: iat 0": true, "claims: iat -1": true, "claims: iat -9223372036854775808": true}

// of is what d says to m; ok is false where m is no mutation there.
func (m mutation) of(d endpoint) (code watchword.Code, ok bool) {
	game := func(prefix string) bool { return strings.HasPrefix(m.name, prefix) }
	switch d.typ {
	case token.TypReceipt:
		if noTime[m.name] {
			return "", false
		}
	case token.TypAccess:
		if d.refusalCode == inactive && m.want == watchword.AudienceMismatch {
			return "", false // tokens of every audience may be introspected
		}
	case token.TypTrust:
		switch {
		case strings.Contains(m.name, "jti"):
			return "", false // a bundle has its version
		case m.name == "claims: iat 0", m.name == "claims: iat -1", m.want == watchword.IssuerMismatch && m.name != "claims: iss ":
			return watchword.BundleInvalid, true
		case m.name == "claims: iss ":
			return watchword.TokenMalformed, true
		}
	case token.TypAssertion:
		switch {
		case game("header: no kid"):
			return "", false // each of a client's few keys is tried
		case m.want == watchword.KeyUnknown, m.want == watchword.SignatureInvalid, game("header: alg of another curve"):
			return watchword.ClientInvalid, true // which subjects exist is not disclosed
		}
	case token.TypRekey: // a pair: the games of one JWS among two are another's
		if m.raw != nil || game("header: alg of") || game("header: kid") || game("header: no kid") {
			return "", false
		}
	}
	return d.codeFor(m.want), true
}

// Every game with header, encoding, numbers and text, at every endpoint that checks a
// signature, with signatures that hold.
func TestMutatedCredentials(t *testing.T) {
	_, err := buildBinary() // before anything has a clock that runs
	must(t, err)
	t.Run("P-256", func(t *testing.T) {
		mutationsAtEndpoints(t, newEndpoints(t, newClock().now), func(endpoint) bool { return true }, jose.Ed, jose.EdDSA)
	})
	t.Run("Ed25519", func(t *testing.T) {
		ep := newEndpointsFor(t, newClock().now, device.Options{SignCurve: jose.Ed})
		mutationsAtEndpoints(t, ep, func(d endpoint) bool { return d.key == ep.deviceKey }, jose.ES256)
	})
}

func mutationsAtEndpoints(t *testing.T, ep *endpointFixture, at func(endpoint) bool, otherAlgs ...string) {
	cells := 0
	for _, d := range ep.endpoints {
		if strings.HasPrefix(d.name, "MQTT 3.1.1") || !at(d) {
			continue // of MQTT 3.1.1: the same endpoint with fewer words
		}
		t.Run(d.name, func(t *testing.T) {
			ms := append(mutations(otherAlgs...), foreignClaims(d, ep.ring.Issuer())...)
			if !d.keyInHeader {
				ms = append(ms, kidMutations(ep, d)...)
			}
			var shown []matrixCell
			for _, m := range ms {
				want, ok := m.of(d)
				if !ok {
					continue
				}
				b, err := json.Marshal(d.claims())
				must(t, err)
				head, payload := d.header(d.typ, d.key), string(b)
				if m.head != nil {
					head = m.head(head)
				}
				if m.payload != nil {
					payload = m.payload(payload)
				}
				raw := d.forge(t, head, payload)
				if m.raw != nil {
					raw = m.raw(raw)
				}
				got := d.present(raw)
				cells++
				if got.code != want {
					t.Errorf("%s: got %q, want %q: %s", m.name, got.code, want, got.text)
				}
				shown = append(shown, matrixCell{m.name, raw, want, got})
			}
			ep.wantSameTexts(t, d, shown)
			if got := d.present(d.sign(t, d.typ, d.claims())); got.code != accepted {
				t.Errorf("with nothing wrong: got %q: %s", got.code, got.text)
			}
		})
	}
	t.Logf("%d mutations", cells)
}
