package jose

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// under signs payload under a header of any bytes: what is refused then is
// refused for its header alone.
func under(t testing.TB, s *Signer, header, payload string) string {
	t.Helper()
	in := b64u(header) + "." + b64u(payload)
	sig, err := s.sign([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	return in + "." + b64.EncodeToString(sig)
}

// headerCase is a header for a token that the key of s then signs.
type headerCase struct {
	name, header string
	want         watchword.Code
}

func headerCases(s *Signer) []headerCase {
	kid := `"kid":"` + string(s.Public().ID()) + `"`
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	return []headerCase{
		{"alg, typ and kid", `{"alg":"ES256","typ":"at+jwt",` + kid + `}`, ""},
		{"alg alone", `{"alg":"ES256"}`, ""},
		{"white space that JSON has", "{ \"alg\" :\r\n\t\"ES256\" } ", ""},
		{"a name written with an escape", `{"\u0061lg":"ES256"}`, ""},
		{"a value written with an escape", `{"alg":"\u0045S256"}`, ""},

		{"alg in small letters", `{"alg":"es256"}`, watchword.AlgorithmInvalid},
		{"alg with one small letter", `{"alg":"Es256"}`, watchword.AlgorithmInvalid},
		{"alg with a space", `{"alg":"ES256 "}`, watchword.AlgorithmInvalid},
		{"alg with a NUL", `{"alg":"ES256\u0000"}`, watchword.AlgorithmInvalid},
		{"alg nOnE", `{"alg":"nOnE"}`, watchword.AlgorithmInvalid},
		{"alg of the other kind of key, old name", `{"alg":"EdDSA"}`, watchword.AlgorithmInvalid},
		{"alg ESP256, its name in COSE", `{"alg":"ESP256"}`, watchword.AlgorithmInvalid},
		{"alg of a JWE", `{"alg":"ECDH-ES"}`, watchword.AlgorithmInvalid},
		{"an empty alg", `{"alg":""}`, watchword.TokenMalformed},
		{"alg null", `{"alg":null}`, watchword.TokenMalformed},
		{"alg in an array", `{"alg":["ES256"]}`, watchword.TokenMalformed},
		{"the name of alg in capitals", `{"ALG":"ES256"}`, watchword.TokenMalformed},
		{"alg twice, the same", `{"alg":"ES256","alg":"ES256"}`, watchword.TokenMalformed},
		{"alg twice, once escaped", `{"alg":"ES256","\u0061lg":"none"}`, watchword.TokenMalformed},
		{"alg twice, the first escaped", `{"a\u006cg":"none","alg":"ES256"}`, watchword.TokenMalformed},
		{"nothing", `{}`, watchword.AlgorithmInvalid},
		{"an empty name", `{"alg":"ES256","":1}`, watchword.TokenMalformed},
		{"an empty kid", `{"alg":"ES256","kid":""}`, watchword.TokenMalformed},
		{"kid null", `{"alg":"ES256","kid":null}`, watchword.TokenMalformed},
		{"kid as a number", `{"alg":"ES256","kid":1}`, watchword.TokenMalformed},
		{"kid as an object", `{"alg":"ES256","kid":{}}`, watchword.TokenMalformed},
		{"kid with a NUL behind", `{"alg":"ES256","kid":"` + string(s.Public().ID()) + `\u0000"}`, watchword.KeyUnknown},
		{"an empty typ", `{"alg":"ES256","typ":""}`, watchword.TokenMalformed},
		{"typ null", `{"alg":"ES256","typ":null}`, watchword.TokenMalformed},
		{"typ as a number", `{"alg":"ES256","typ":1}`, watchword.TokenMalformed},
		{"cty, which a JWE has", `{"alg":"ES256","cty":"JWT"}`, watchword.TokenMalformed},
		{"enc, which a JWE has", `{"alg":"ES256","enc":"A256GCM"}`, watchword.TokenMalformed},
		{"epk, which a JWE has", `{"alg":"ES256","epk":{}}`, watchword.TokenMalformed},
		{"the very key that signed", `{"alg":"ES256","jwk":` + string(s.Public().JWK()) + `}`, watchword.TokenMalformed},
		{"jku", `{"alg":"ES256","jku":"https://x"}`, watchword.TokenMalformed},
		{"x5t", `{"alg":"ES256","x5t":"AA"}`, watchword.TokenMalformed},
		{"x5t#S256", `{"alg":"ES256","x5t#S256":"AA"}`, watchword.TokenMalformed},
		{"an empty crit", `{"alg":"ES256","crit":[]}`, watchword.TokenMalformed},
		{"b64 true, which changes nothing", `{"alg":"ES256","b64":true}`, watchword.TokenMalformed},
		{"iss, a claim repeated", `{"alg":"ES256","iss":"x"}`, watchword.TokenMalformed},
		{"a member twice inside one that is not taken", `{"alg":"ES256","x":{"a":1,"a":2}}`, watchword.TokenMalformed},
		{"a half surrogate", `{"alg":"ES256","kid":"\ud800"}`, watchword.TokenMalformed},
		{"a surrogate pair turned round", `{"alg":"ES256","kid":"\udc00\ud800"}`, watchword.TokenMalformed},
		{"a byte order mark", "\ufeff" + `{"alg":"ES256"}`, watchword.TokenMalformed},
		{"a NUL behind", `{"alg":"ES256"}` + "\x00", watchword.TokenMalformed},
		{"a NUL in a string", "{\"alg\":\"ES256\",\"kid\":\"a\x00\"}", watchword.TokenMalformed},
		{"an overlong character", "{\"alg\":\"ES256\",\"kid\":\"\xc0\xaf\"}", watchword.TokenMalformed},
		{"a surrogate in UTF-8", "{\"alg\":\"ES256\",\"kid\":\"\xed\xa0\x80\"}", watchword.TokenMalformed},
		{"a comma too many", `{"alg":"ES256",}`, watchword.TokenMalformed},
		{"a comment", `{"alg":"ES256"/**/}`, watchword.TokenMalformed},
		{"single quotes", `{'alg':'ES256'}`, watchword.TokenMalformed},
		{"a second object behind", `{"alg":"ES256"}{}`, watchword.TokenMalformed},
		{"an array", `[{"alg":"ES256"}]`, watchword.TokenMalformed},
		{"nested to eight", `{"alg":"ES256","x":` + deep(7) + `}`, watchword.TokenMalformed},
		{"a thousand brackets", `{"alg":"ES256","x":` + strings.Repeat("[", 1000), watchword.TokenMalformed},
		{"cut off", `{"alg":"ES256"`, watchword.TokenMalformed},
	}
}

func TestWellSignedInvalidHeadersAreRefused(t *testing.T) {
	s := newSigner(t, P256)
	for _, tc := range headerCases(s) {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := verify(under(t, s, tc.header, `{"a":1}`), s.Public()); watchword.CodeOf(err) != tc.want || err == nil && string(got) != `{"a":1}` {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestMediaTypesHaveAsciiCaseAlone(t *testing.T) {
	for _, tc := range []struct {
		got, want string
		same      bool
	}{
		{"at+jwt", "at+jwt", true},
		{"AT+JWT", "at+jwt", true},
		{"application/at+jwt", "at+jwt", true},
		{"APPLICATION/at+JWT", "at+jwt", true},
		{"application/application/at+jwt", "at+jwt", false},
		{"application/", "", false},
		{"text/at+jwt", "at+jwt", false},
		{"/at+jwt", "at+jwt", false},
		{"at+jwt;charset=utf-8", "at+jwt", false},
		{" at+jwt", "at+jwt", false},
		{"at+jwt\x00", "at+jwt", false},
		{"vnd.watchword.tru\u017ft+jwt", "vnd.watchword.trust+jwt", false}, // a long s
		{"vnd.watchword.re\u212aey+jwt", "vnd.watchword.rekey+jwt", false}, // the sign of the kelvin
		{"", "at+jwt", false},
	} {
		if got := SameType(tc.got, tc.want); got != tc.same {
			t.Errorf("%q and %q: %v", tc.got, tc.want, got)
		}
	}
}

func TestNonStrictJSONIsRefused(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n-1) + `{}` + strings.Repeat("}", n-1) }
	walk := func(s string) error {
		return Walk([]byte(s), func(string, jsontext.Value) error { return nil })
	}
	for _, ok := range []string{
		`{}`, ` {} `, `{"a":1,"A":2}`, `{"a":{"b":1},"b":{"b":1}}`, deep(8), `{"a":"` + strings.Repeat("[{", 50) + `"}`,
		`{"a":"\"[[[[[[[[["}`, `{"a":"\ud83d\ude00"}`, `{"a":"\u0000"}`, `{"a":1e400}`, `{"":0}`,
	} {
		if err := walk(ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{
		``, ` `, `null`, `1`, `"a"`, `[]`, `{`, `}`, `{}}`, `{} {}`, `{}x`, "{}\x00", "\ufeff{}", "\xff\xfe{\x00}\x00",
		`{"a":1,"a":1}`, `{"a":1,"\u0061":1}`, `{"a":{"b":1,"b":1}}`, `{"a":[{"b":1,"\u0062":1}]}`, `{"a":[[[{"b":1,"b":1}]]]}`,
		`{"a":01}`, `{"a":+1}`, `{"a":.5}`, `{"a":1.}`, `{"a":0x1}`, `{"a":1_000}`, `{"a":NaN}`, `{"a":Infinity}`, `{"a":-}`,
		`{"a":"\ud800"}`, `{"a":"\ud800\u0041"}`, `{"\udead":1}`, "{\"a\":\"\x01\"}", "{\"a\":\"\xff\"}", "{\"\xc3\x28\":1}", `{"a":"\x41"}`, `{"a":"\u00"}`,
		`{a:1}`, `{"a" 1}`, `{"a":1,}`, `{,"a":1}`, `{"a":[1,]}`, `{"a":True}`, `{"a":undefined}`, `{"a":}`, `{"a"}`, `{1:1}`, `{"a":1;"b":2}`,
		deep(9), `{"a":[[[[[[[[]]]]]]]]}`, strings.Repeat("[", 100000), `{"a":` + strings.Repeat(`[`, 100000) + `}`,
		"{\"a\":1\u00a0}", "{\"a\":1\v}", `{"a":1}//`, `{"a":"b"`, `{"a":"b`, `{"a`, `{"a":tru}`,
	} {
		if err := walk(bad); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("%.60q is taken: %v", bad, err)
		}
		var m map[string]any
		if err := Decode([]byte(bad), &m); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("%.60q is decoded: %v", bad, err)
		}
		if err := DecodeExact([]byte(bad), &m); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("%.60q is decoded exactly: %v", bad, err)
		}
	}
}

func TestNonIntegersAreRefused(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "-1": -1, "1790000000": 1790000000, "9007199254740991": 1<<53 - 1, "-9007199254740991": 1 - 1<<53,
	} {
		if n, err := Int(jsontext.Value(s)); err != nil || n != want {
			t.Errorf("%s: %d, %v", s, n, err)
		}
	}
	for _, bad := range []string{
		"-0", "0.0", "1.0", "1e9", "1E9", "1e0", "-0e0", "9007199254740992", "-9007199254740992", "9223372036854775808", "99999999999999999999999999",
		"null", "true", `"1"`, "[1]", "{}", "", "+1", " 1", "1 ", "1_000", "0x10", "NaN", "\u0661",
	} {
		if n, err := Int(jsontext.Value(bad)); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("%q is %d, %v", bad, n, err)
		}
	}
}

// Every value has one encoding: of all the ways in which a base64url string can
// be written otherwise, none is taken, in no part.
func TestBase64urlHasOneForm(t *testing.T) {
	s := newSigner(t, Ed)
	ok := under(t, s, `{"alg":"Ed25519"}`, `{"abc":1}`)
	parts := strings.Split(ok, ".")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i, part := range parts {
		try := func(what, p string) {
			t.Helper()
			q := append(append(append([]string{}, parts[:i]...), p), parts[i+1:]...)
			if _, err := verify(strings.Join(q, "."), s.Public()); watchword.CodeOf(err) != watchword.TokenMalformed {
				t.Errorf("part %d, %s: %v", i, what, err)
			}
		}
		for _, c := range []string{"\n", "\r", "\r\n", " ", "\t", "=", "==", "\x00", "+", "/", "%3D", "\u00ad"} {
			try("behind: "+c, part+c)
			try("before: "+c, c+part)
			try("inside: "+c, part[:5]+c+part[5:])
			try("instead: "+c, c)
		}
		try("one character more", part+"A")
		// The last character of a part that does not end on a byte has bits that must be zero.
		if unused := len(part) % 4; unused != 0 {
			last := strings.IndexByte(alphabet, part[len(part)-1])
			mask := map[int]int{2: 15, 3: 3}[unused]
			for n := 1; n <= mask; n++ {
				try("trailing bits", part[:len(part)-1]+string(alphabet[last|n]))
			}
		}
	}
}

func TestSignaturesAtTheEdge(t *testing.T) {
	s := newSigner(t, P256)
	ok := under(t, s, `{"alg":"ES256"}`, `{}`)
	cut := strings.LastIndexByte(ok, '.')
	sig, err := base64.RawURLEncoding.DecodeString(ok[cut+1:])
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	num := func(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
	r, sv := num(sig[:32]), num(sig[32:])
	high := new(big.Int).Sub(n, sv)
	for _, tc := range []struct {
		name string
		r, s *big.Int
		good bool
	}{
		{"as signed", r, sv, true},
		{"its twin with n-s, which ECDSA cannot avoid", r, high, true},
		{"r zero", new(big.Int), sv, false},
		{"s zero", r, new(big.Int), false},
		{"both zero", new(big.Int), new(big.Int), false},
		{"r is n", n, sv, false},
		{"s is n", r, n, false},
		{"r and n", new(big.Int).Add(r, n), sv, false},
		{"s and n", r, new(big.Int).Add(sv, n), false},
		{"all ones", num([]byte(strings.Repeat("\xff", 32))), num([]byte(strings.Repeat("\xff", 32))), false},
		{"one and one", big.NewInt(1), big.NewInt(1), false},
		{"r and s changed about", sv, r, false},
	} {
		if tc.r.BitLen() > 256 || tc.s.BitLen() > 256 {
			continue // r or s plus n does not always fit
		}
		out := make([]byte, 64)
		tc.r.FillBytes(out[:32])
		tc.s.FillBytes(out[32:])
		_, err := verify(ok[:cut+1]+b64.EncodeToString(out), s.Public())
		if tc.good && err != nil || !tc.good && watchword.CodeOf(err) != watchword.SignatureInvalid {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	ed := newSigner(t, Ed)
	ok = under(t, ed, `{"alg":"Ed25519"}`, `{}`)
	cut = strings.LastIndexByte(ok, '.')
	if sig, err = base64.RawURLEncoding.DecodeString(ok[cut+1:]); err != nil {
		t.Fatal(err)
	}
	// S and the order of the base point: malleable where S is not held below it (RFC 8032 §5.1.7).
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	le := make([]byte, 32)
	for i := range le {
		le[i] = sig[63-i]
	}
	sum := new(big.Int).Add(num(le), order).FillBytes(le)
	for i := range sum {
		sig[63-i] = sum[i]
	}
	if _, err := verify(ok[:cut+1]+b64.EncodeToString(sig), ed.Public()); watchword.CodeOf(err) != watchword.SignatureInvalid {
		t.Errorf("S plus the order: %v", err)
	}
}

func TestAProofsOwnKey(t *testing.T) {
	s, x := newSigner(t, P256), newSigner(t, Ed)
	dh, err := GenerateKey(X25519)
	if err != nil {
		t.Fatal(err)
	}
	k, err := GenerateKey(P256)
	if err != nil {
		t.Fatal(err)
	}
	own := string(s.Public().JWK())
	for _, tc := range []struct {
		name, header string
		want         watchword.Code
	}{
		{"its own key", `{"alg":"ES256","typ":"dpop+jwt","jwk":` + own + `}`, ""},
		{"with alg and use", `{"alg":"ES256","jwk":` + own[:len(own)-1] + `,"alg":"ES256","use":"sig"}}`, ""},
		{"another's key", `{"alg":"ES256","jwk":` + string(k.Public().JWK()) + `}`, watchword.SignatureInvalid},
		{"a key of another kind", `{"alg":"ES256","jwk":` + string(x.Public().JWK()) + `}`, watchword.AlgorithmInvalid},
		{"a key that does not sign", `{"alg":"ES256","jwk":` + string(dh.Public().JWK()) + `}`, watchword.BadRequest},
		{"a private key", `{"alg":"ES256","jwk":` + string(k.JWK()) + `}`, watchword.BadRequest},
		{"none", `{"alg":"ES256"}`, watchword.BadRequest},
		{"null", `{"alg":"ES256","jwk":null}`, watchword.BadRequest},
		{"a string", `{"alg":"ES256","jwk":"x"}`, watchword.BadRequest},
		{"a symmetric one", `{"alg":"ES256","jwk":{"kty":"oct","k":"AA"}}`, watchword.BadRequest},
		{"for sealing", `{"alg":"ES256","jwk":` + own[:len(own)-1] + `,"alg":"RS256"}}`, watchword.BadRequest},
		{"kid beside it", `{"alg":"ES256","kid":"x","jwk":` + own + `}`, watchword.TokenMalformed},
		{"twice", `{"alg":"ES256","jwk":` + own + `,"jwk":` + own + `}`, watchword.TokenMalformed},
		{"a member twice inside", `{"alg":"ES256","jwk":` + own[:len(own)-1] + `,"kty":"EC"}}`, watchword.TokenMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, k, err := ParseProof(under(t, s, tc.header, `{}`), 4096)
			if err == nil {
				_, err = u.Verify(k)
			}
			if watchword.CodeOf(err) != tc.want {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// sealUnder encrypts as Seal does, but with any header and with the KDF's party information, so that a refusal is due to
// the header.
func sealUnder(t testing.TB, to *PublicKey, apu, apv string, plaintext string, header func(epk string) string) string {
	t.Helper()
	e, err := to.dh.Curve().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	epk, err := fromECDH(e.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	z, err := e.ECDH(to.dh)
	if err != nil {
		t.Fatal(err)
	}
	return sealWith(t, z, apu, apv, plaintext, header(string(epk.JWK())))
}

// sealWith seals under a header of any bytes, with z as the shared secret.
func sealWith(t testing.TB, z []byte, apu, apv, plaintext, header string) string {
	t.Helper()
	block, err := aes.NewCipher(concatKDF(z, encA256GCM, apu, apv, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	head := b64u(header)
	iv := make([]byte, 12)
	out := aead.Seal(nil, iv, []byte(plaintext), []byte(head))
	n := len(out) - 16
	return head + ".." + b64.EncodeToString(iv) + "." + b64.EncodeToString(out[:n]) + "." + b64.EncodeToString(out[n:])
}

// sealCase is a header for a seal that holds.
type sealCase struct {
	name, apu, apv string
	header         func(epk string) string
	want           watchword.Code
}

func sealCases(t testing.TB, crv, kid string) []sealCase {
	const begin = `{"alg":"ECDH-ES","enc":"A256GCM",`
	return []sealCase{
		{"as others make it", "", "", func(e string) string { return begin + `"epk":` + e + `}` }, ""},
		{"with typ, cty and kid", "", "", func(e string) string { return begin + `"typ":"JOSE","cty":"JWT","kid":"` + kid + `","epk":` + e + `}` }, ""},
		{"apu", "Alice", "", func(e string) string { return begin + `"apu":"QWxpY2U","epk":` + e + `}` }, watchword.TokenMalformed},
		{"apv", "", "Bob", func(e string) string { return begin + `"apv":"Qm9i","epk":` + e + `}` }, watchword.TokenMalformed},
		{"an empty apu", "", "", func(e string) string { return begin + `"apu":"","epk":` + e + `}` }, watchword.TokenMalformed},
		{"zip", "", "", func(e string) string { return begin + `"zip":"DEF","epk":` + e + `}` }, watchword.TokenMalformed},
		{"crit", "", "", func(e string) string { return begin + `"crit":["exp"],"epk":` + e + `}` }, watchword.TokenMalformed},
		{"jwk", "", "", func(e string) string { return begin + `"jwk":` + e + `,"epk":` + e + `}` }, watchword.TokenMalformed},
		{"iv, of a key wrap", "", "", func(e string) string { return begin + `"iv":"AA","epk":` + e + `}` }, watchword.TokenMalformed},
		{"p2c, which makes others work for hours", "", "", func(e string) string { return begin + `"p2c":2147483647,"epk":` + e + `}` }, watchword.TokenMalformed},
		{"another kid", "", "", func(e string) string { return begin + `"kid":"x","epk":` + e + `}` }, watchword.KeyUnknown},
		{"an empty kid", "", "", func(e string) string { return begin + `"kid":"","epk":` + e + `}` }, watchword.TokenMalformed},
		{"cty as a number", "", "", func(e string) string { return begin + `"cty":1,"epk":` + e + `}` }, watchword.TokenMalformed},
		{"no epk", "", "", func(string) string { return begin[:len(begin)-1] + `}` }, watchword.TokenMalformed},
		{"epk null", "", "", func(string) string { return begin + `"epk":null}` }, watchword.TokenMalformed},
		{"epk twice", "", "", func(e string) string { return begin + `"epk":` + e + `,"epk":` + e + `}` }, watchword.TokenMalformed},
		{"epk with d", "", "", func(e string) string {
			return begin + `"epk":` + e[:len(e)-1] + `,"d":"` + strings.Repeat("A", 43) + `"}}`
		}, watchword.TokenMalformed},
		{"epk with a member twice", "", "", func(e string) string {
			return begin + `"epk":` + e[:len(e)-1] + `,"x":"` + strings.Repeat("A", 43) + `"}}`
		}, watchword.TokenMalformed},
		{"epk with a member that we do not know", "", "", func(e string) string { return begin + `"epk":` + e[:len(e)-1] + `,"ext":true}}` }, ""},
		{"epk on the other curve", "", "", func(string) string {
			other, err := GenerateKey(map[string]string{P256: X25519, X25519: P256}[crv])
			if err != nil {
				t.Fatal(err)
			}
			return begin + `"epk":` + string(other.Public().JWK()) + `}`
		}, watchword.TokenMalformed},
		{"epk is a key that signs", "", "", func(string) string { return begin + `"epk":` + string(newSigner(t, Ed).Public().JWK()) + `}` }, watchword.TokenMalformed},
		{"a key wrapped beside it", "", "", func(e string) string { return `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":` + e + `}` }, watchword.AlgorithmInvalid},
		{"alg in small letters", "", "", func(e string) string { return `{"alg":"ecdh-es","enc":"A256GCM","epk":` + e + `}` }, watchword.AlgorithmInvalid},
		{"enc A128GCM", "", "", func(e string) string { return `{"alg":"ECDH-ES","enc":"A128GCM","epk":` + e + `}` }, watchword.AlgorithmInvalid},
		{"no enc", "", "", func(e string) string { return `{"alg":"ECDH-ES","epk":` + e + `}` }, watchword.AlgorithmInvalid},
	}
}

// A point of low order gives a secret that is public (RFC 7748 §6.1): all zeros.
func TestLowOrderPointsAreRefused(t *testing.T) {
	k, err := GenerateKey(X25519)
	if err != nil {
		t.Fatal(err)
	}
	o, err := k.Decrypter()
	if err != nil {
		t.Fatal(err)
	}
	one := append([]byte{1}, make([]byte, 31)...)
	for name, point := range map[string][]byte{"zero": make([]byte, 32), "one": one} {
		raw := sealWith(t, make([]byte, 32), "", "", "march", `{"alg":"ECDH-ES","enc":"A256GCM","epk":{"kty":"OKP","crv":"X25519","x":"`+b64.EncodeToString(point)+`"}}`)
		if plain, _, err := o.Decrypt(raw, 4096); watchword.CodeOf(err) != watchword.TokenMalformed || !strings.Contains(err.Error(), "epk") {
			t.Errorf("%s: %q, %v", name, plain, err)
		}
	}
}

func TestWellEncryptedInvalidHeadersAreRefused(t *testing.T) {
	for _, crv := range []string{P256, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			t.Fatal(err)
		}
		o, err := k.Decrypter()
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range sealCases(t, crv, string(k.Public().ID())) {
			t.Run(crv+" "+tc.name, func(t *testing.T) {
				raw := sealUnder(t, k.Public(), tc.apu, tc.apv, "march", tc.header)
				plain, _, err := o.Decrypt(raw, 4096)
				if watchword.CodeOf(err) != tc.want || err == nil && string(plain) != "march" {
					t.Errorf("got %q, %v, want %q", plain, err, tc.want)
				}
			})
		}
		t.Run(crv+" shapes", func(t *testing.T) {
			ok, err := Encrypt(k.Public(), "JWT", []byte("march"))
			if err != nil {
				t.Fatal(err)
			}
			p := strings.Split(ok, ".")
			for name, raw := range map[string]string{
				"an encrypted key":              p[0] + ".AA." + strings.Join(p[2:], "."),
				"no iv":                         p[0] + "..." + p[3] + "." + p[4],
				"an iv of 11 bytes":             p[0] + ".." + b64.EncodeToString(make([]byte, 11)) + "." + p[3] + "." + p[4],
				"an iv of 16 bytes":             p[0] + ".." + b64.EncodeToString(make([]byte, 16)) + "." + p[3] + "." + p[4],
				"no tag":                        strings.Join(p[:4], ".") + ".",
				"a tag of 12 bytes":             strings.Join(p[:4], ".") + "." + p[4][:16],
				"a tag of 17 bytes":             strings.Join(p[:4], ".") + "." + b64.EncodeToString(make([]byte, 17)),
				"a tag with a line break":       ok[:len(ok)-3] + "\n" + ok[len(ok)-3:],
				"a byte of the text in the tag": strings.Join(p[:3], ".") + "." + p[3] + "AA" + "." + p[4],
				"a sixth part":                  ok + ".",
				"a JSON serialization":          `{"protected":"` + p[0] + `","iv":"` + p[2] + `","ciphertext":"` + p[3] + `","tag":"` + p[4] + `"}`,
			} {
				if plain, _, err := o.Decrypt(raw, 4096); err == nil || watchword.CodeOf(err) == watchword.Internal {
					t.Errorf("%s: %q, %v", name, plain, err)
				}
			}
			other, err := GenerateKey(crv)
			if err != nil {
				t.Fatal(err)
			}
			bare := sealUnder(t, other.Public(), "", "", "march", func(e string) string { return `{"alg":"ECDH-ES","enc":"A256GCM","epk":` + e + `}` })
			if plain, _, err := o.Decrypt(bare, 4096); watchword.CodeOf(err) != watchword.SignatureInvalid {
				t.Errorf("sealed to another, without kid: %q, %v", plain, err)
			}
			twice, err := Encrypt(k.Public(), "JWT", []byte(ok))
			if err != nil {
				t.Fatal(err)
			}
			inner, _, err := o.Decrypt(twice, 8192)
			if err != nil || string(inner) != ok {
				t.Fatalf("a seal in a seal: %v", err)
			}
			if _, err := ParseJWS(string(inner), 4096); watchword.CodeOf(err) != watchword.TokenMalformed {
				t.Errorf("what is sealed in a seal passes for a signature: %v", err)
			}
		})
	}
}

func TestPointsAreChecked(t *testing.T) {
	okp := func(crv string, x []byte) error {
		_, err := parsedAnyUse([]byte(`{"kty":"OKP","crv":"` + crv + `","x":"` + b64.EncodeToString(x) + `"}`))
		return err
	}
	little := func(n *big.Int) []byte {
		b := n.FillBytes(make([]byte, 32))
		for i := range 16 {
			b[i], b[31-i] = b[31-i], b[i]
		}
		return b
	}
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	for i := range int64(19) { // all numbers of 255 bits that are not below p: second names of the first 19
		for _, crv := range []string{Ed, X25519} {
			if err := okp(crv, little(new(big.Int).Add(p, big.NewInt(i)))); watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("%s p+%d: %v", crv, i, err)
			}
		}
	}
	for _, y := range smallOrders {
		for _, sign := range []byte{0, 0x80} {
			y[31] |= sign
			if err := okp(Ed, y[:]); watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("Ed25519 of small order %x: %v", y, err)
			}
		}
	}
	// What the list says is of low order is what the standard library gives no secret for.
	probe, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range lowOrders {
		pub, err := ecdh.X25519().NewPublicKey(u[:])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := probe.ECDH(pub); err == nil {
			t.Errorf("%x is listed, and gives a secret", u)
		}
		if err := okp(X25519, u[:]); watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("X25519 of low order %x: %v", u, err)
		}
	}
	k, err := GenerateKey(X25519)
	if err != nil {
		t.Fatal(err)
	}
	u := k.dh.PublicKey().Bytes()
	u[31] |= 0x80 // which X25519 passes over: a second name for the same key
	if err := okp(X25519, u); watchword.CodeOf(err) != watchword.BadRequest {
		t.Errorf("X25519 with the highest bit: %v", err)
	}
	// About half of all numbers are no y of any point; none of those is a key.
	on, off := 0, 0
	for i := range int64(200) {
		y := big.NewInt(i + 2)
		one := big.NewInt(1)
		yy := new(big.Int).Mul(y, y)
		num := new(big.Int).Sub(yy, one)
		d, _ := new(big.Int).SetString("37095705934669439343138083508754565189542113879843219016388785533085940283555", 10)
		den := new(big.Int).Add(new(big.Int).Mul(d, yy), one)
		xx := num.Mul(num, den.ModInverse(den.Mod(den, p), p))
		isPoint := big.Jacobi(xx.Mod(xx, p), p) >= 0
		if isPoint {
			on++
		} else {
			off++
		}
		if err := okp(Ed, little(y)); (err == nil) != isPoint {
			t.Errorf("y = %d: %v, though it is a point: %v", y, err, isPoint)
		}
	}
	if on < 50 || off < 50 {
		t.Errorf("%d points and %d that are none: the test tests nothing", on, off)
	}
}

// What a JWK says of its own use fits what it is taken for, or the key is refused:
// as a public key, as a private one, and in the header of a proof.
func TestKeyUse(t *testing.T) {
	const sig, enc = ForSigning, ForEncryption
	for _, tc := range []struct {
		crv, members string
		good         []Use
	}{
		{P256, ``, []Use{sig, enc}},
		{P256, `"use":"sig"`, []Use{sig}},
		{P256, `"use":"enc"`, []Use{enc}},
		{P256, `"alg":"ECDH-ES"`, []Use{enc}},
		{P256, `"alg":"ES256"`, []Use{sig}},
		{P256, `"alg":"ES256","use":"enc"`, nil},
		{P256, `"alg":"ECDH-ES","use":"sig"`, nil},
		{P256, `"use":"enc","OP":"sig"`, nil},
		{P256, `"use":"sig","key_ops":["deriveKey"]`, nil},
		{P256, `"alg":"ECDH-ES","OP":"sig"`, nil},
		{P256, `"alg":"ES256","key_ops":["deriveBits"]`, nil},
		{P256, `"OP":"sig","use":"sig","alg":"ES256"`, []Use{sig}},
		{P256, `"OP":"sig"`, []Use{sig}},
		{P256, `"key_ops":["sign","verify"]`, []Use{sig}},
		{P256, `"key_ops":["OTHER"]`, nil}, // a public key that only signs, a private one that only checks
		{P256, `"key_ops":["deriveKey","deriveBits"]`, []Use{enc}},
		{P256, `"key_ops":["deriveBits"],"use":"enc","alg":"ECDH-ES"`, []Use{enc}},
		{P256, `"key_ops":["sign","verify","deriveKey"]`, nil},
		{Ed, `"alg":"EdDSA"`, []Use{sig}},
		{Ed, `"alg":"Ed25519","use":"sig"`, []Use{sig}},
		{Ed, ``, []Use{sig}},
		{X25519, ``, []Use{enc}},
		{X25519, `"use":"enc","alg":"ECDH-ES"`, []Use{enc}},
		{P256, `"use":""`, nil},
		{P256, `"use":"SIG"`, nil},
		{P256, `"use":"tls"`, nil},
		{P256, `"use":null`, nil},
		{P256, `"alg":""`, nil},
		{P256, `"alg":"Ed25519"`, nil},
		{P256, `"alg":"ES384"`, nil},
		{P256, `"alg":"ECDH-ES+A256KW"`, nil},
		{P256, `"kid":""`, nil},
		{P256, `"key_ops":["verify","sign","verify"]`, nil},
		{P256, `"key_ops":["encrypt"]`, nil},
		{P256, `"key_ops":[null]`, nil},
		{P256, `"key_ops":"verify"`, nil},
		{P256, `"key_ops":null`, nil},
		{Ed, `"use":"enc"`, nil},
		{Ed, `"key_ops":["deriveKey"]`, nil},
		{Ed, `"alg":"ECDH-ES"`, nil},
		{Ed, `"y":"` + strings.Repeat("A", 43) + `"`, nil},
		{X25519, `"use":"sig"`, nil},
		{X25519, `"OP":"sig"`, nil},
		{X25519, `"alg":"Ed25519"`, nil},

		// Members that are not known say nothing (RFC 7517 §4).
		{P256, `"ext":true,"exp":1,"iat":null,"x5t":"a","use ":"enc","D":"a"`, []Use{sig, enc}},
		{X25519, `"x5c":[],"ext":{"d":[]}`, []Use{enc}},
		{P256, `"ext":true,"ext":true`, nil},
		{P256, `"ext":{"a":1,"a":1}`, nil},
		{P256, `"k":"AA"`, nil},
		{Ed, `"p":"AA"`, nil},
		{Ed, `"q":"AA"`, nil},
		{Ed, `"dp":"AA"`, nil},
		{Ed, `"dq":"AA"`, nil},
		{Ed, `"qi":"AA"`, nil},
		{P256, `"oth":[]`, nil},
		{X25519, `"priv":"AA"`, nil},
	} {
		k, err := GenerateKey(tc.crv)
		if err != nil {
			t.Fatal(err)
		}
		with := func(own []byte, does, other string) []byte {
			if tc.members == "" {
				return own
			}
			members := strings.NewReplacer(`"OP":"sig"`, `"key_ops":["`+does+`"]`, "OTHER", other).Replace(tc.members)
			return []byte(string(own[:len(own)-1]) + "," + members + "}")
		}
		for _, use := range []Use{sig, enc, ""} {
			ok := slices.Contains(tc.good, use)
			want := func(as string, err error) {
				if ok && err != nil || !ok && watchword.CodeOf(err) != watchword.BadRequest {
					t.Errorf("%s with %s as %s for %q: %v", tc.crv, tc.members, as, use, err)
				}
			}
			_, err := ParseJWK(with(k.Public().JWK(), "verify", "sign"), use)
			want("public", err)
			_, err = ParseJWK(with(k.JWK(), "verify", "sign"), use)
			if watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("%s with %s: a private key for a public one: %v", tc.crv, tc.members, err)
			}
			_, err = ParsePrivateJWK(with(k.JWK(), "sign", "verify"), use)
			want("private", err)
		}
		s := newSigner(t, P256)
		_, _, err = ParseProof(under(t, s, `{"alg":"ES256","jwk":`+string(with(k.Public().JWK(), "verify", "sign"))+`}`, `{}`), 4096)
		if ok := slices.Contains(tc.good, sig); (err == nil) != ok {
			t.Errorf("%s with %s in the header of a proof: %v", tc.crv, tc.members, err)
		}
	}
}

// Web Crypto exports the public half of a key for ECDH with no operation, and the
// private half with those that it does.
func TestKeysAsWebCryptoExportsThem(t *testing.T) {
	for _, crv := range []string{P256, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			t.Fatal(err)
		}
		with := func(own []byte, members string) []byte { return []byte(string(own[:len(own)-1]) + members) }
		if _, err := ParseJWK(with(k.Public().JWK(), `,"key_ops":[],"ext":true}`), ForEncryption); err != nil {
			t.Errorf("%s: %v", crv, err)
		}
		if _, err := ParseJWK(with(k.Public().JWK(), `,"key_ops":[],"ext":true}`), ForSigning); err == nil {
			t.Errorf("%s: a key that checks nothing is taken for checking", crv)
		}
		if _, err := ParsePrivateJWK(with(k.JWK(), `,"key_ops":["deriveBits"],"ext":false}`), ForEncryption); err != nil {
			t.Errorf("%s: %v", crv, err)
		}
		if _, err := ParsePrivateJWK(with(k.JWK(), `,"key_ops":[]}`), ForEncryption); err == nil {
			t.Errorf("%s: a private key that does nothing is taken", crv)
		}
	}
}

// The keys of Wycheproof's json_web_signature 354 and 356 and json_web_key 19 to 21:
// the signature holds, and the key is not for signing with ES256.
func TestAKeyThatIsForAnotherUseChecksNoSignature(t *testing.T) {
	const point = `"x":"04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY","y":"UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw","crv":"P-256","kty":"EC"}`
	const signed = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImtpZC1lYy1zaWduIn0.Zm9v.5cA0OHyMP7ezamUd5c9kV-FrGxdx4hbGXOdplQkutrqWrte5P-pAvsE3Ve6xSyU3YDQwUHjVVOtvcrEbbnZ8yA"
	k, err := ParseJWK([]byte(`{"alg":"ES256","use":"sig",`+point), ForSigning)
	if err != nil {
		t.Fatal(err)
	}
	u, err := ParseJWS(signed, 4096)
	if err != nil {
		t.Fatal(err)
	}
	u.Kid = "" // theirs is no thumbprint
	if got, err := u.Verify(k); err != nil || string(got) != "foo" {
		t.Fatalf("the signature itself: %q, %v", got, err)
	}
	for _, members := range []string{`"use":"enc",`, `"alg":"ES256","use":"enc",`, `"key_ops":["encrypt"],`, `"alg":"ES521","use":"sig",`, `"alg":"ES224","use":"sig",`} {
		if _, err := ParseJWK([]byte("{"+members+point), ForSigning); watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("with %s: %v", members, err)
		}
	}
}

// A private key that is damaged is refused without a word of it.
func TestARefusedPrivateKeyIsNotRepeated(t *testing.T) {
	for _, crv := range []string{P256, Ed, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			t.Fatal(err)
		}
		whole := string(k.JWK())
		var m map[string]string
		if err := json.Unmarshal([]byte(whole), &m); err != nil {
			t.Fatal(err)
		}
		d := m["d"]
		for name, raw := range map[string]string{
			"cut off":              whole[:len(whole)-10],
			"a second d":           whole[:len(whole)-1] + `,"d":"` + d + `"}`,
			"a bad character":      strings.Replace(whole, d, d[:20]+"\x01"+d[20:], 1),
			"a bad escape":         strings.Replace(whole, d, d[:20]+`\q`+d[20:], 1),
			"d as a name":          strings.Replace(whole, `"d":"`+d+`"`, `"`+d+`":1`, 1),
			"d without quotes":     strings.Replace(whole, `"`+d+`"`, d, 1),
			"another's public key": strings.Replace(whole, m["x"], m["d"], 1),
			"padding":              strings.Replace(whole, d, d+"=", 1),
			"no d":                 string(k.Public().JWK()),
			"d of zeros":           strings.Replace(whole, d, strings.Repeat("A", 43), 1),
		} {
			_, err := parsedPrivateAnyUse([]byte(raw))
			if watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("%s %s: %v", crv, name, err)
			} else if strings.Contains(err.Error(), d[:8]) || strings.Contains(err.Error(), d[21:30]) {
				t.Errorf("%s %s: the error repeats the key: %v", crv, name, err)
			}
		}
	}
}

func TestCommonStringsDoNotAllocate(t *testing.T) {
	for s := range internedStrings {
		v := jsontext.Value(`"` + s + `"`)
		if n := testing.AllocsPerRun(10, func() {
			if got, err := String(v); err != nil || got != s {
				t.Fatalf("%s is read as %q, %v", v, got, err)
			}
		}); n != 0 {
			t.Errorf("%s costs %v allocations", v, n)
		}
	}
}
