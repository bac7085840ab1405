package jose

import (
	"crypto/elliptic"
	"encoding/base64"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/internal/peers"
)

// Differences between this package and the reference libraries over the same bytes. Each accepted difference is in a list
// with its reason; one that is not in the list fails the test, and so does an unused line of a list.

// stricter is what an oracle takes and we refuse.
var stricter = map[string]string{
	"kid":           "a kid must be the key's own thumbprint; a library is told the key and passes kid over",
	"member":        "a header has alg, typ and kid alone: members that are not needed are refused (RFC 7515 §4 lets unknown members be passed over)",
	"key in header": "a key that a token brings along proves nothing (RFC 8725 §3)",
	"empty":         "what is there and says nothing is a mistake or a trick",
	"twice":         "RFC 7515 §4 lets a parser take the last of two members; two parsers then read two tokens",
	"json":          "no strict JSON: bad UTF-8, half a surrogate, or deeper than 8",
	"serialization": "the compact form alone",
	"base64url":     "one value has one encoding (RFC 7515 §2)",
	"type":          "a member that we do not use there still has its type",
	"jwk":           "a JWK has the members that its kind needs and none beside, of a key that works",
	"alg":           "the header's alg must be the key's own (RFC 8725 §3.1); jwx is told an alg and does not look",
	"kdf":           "apu and apv are not there: sender and receiver are in the claims",
}

// looser is what an oracle refuses and we take.
var looser = map[string]string{
	"white space": "jwx checks the signature over the header as it would write it, not as it was signed",
	"EdDSA":       "go-jose does not know the name Ed25519 (RFC 9864)",
	"X25519":      "go-jose has no X25519",
}

// difference compares verdicts, and notes which lines of the lists were needed.
type difference struct {
	t      *testing.T
	others *peers.Peers
	used   map[string]bool
}

func (d *difference) judge(name, reason, oracle string, ours, theirs error) {
	d.t.Helper()
	switch {
	case ours == nil && theirs != nil:
		if looser[reason] == "" {
			d.t.Errorf("%s: we take it, %s refuses: %v", name, oracle, theirs)
		}
		d.used["looser "+reason] = true
	case ours != nil && theirs == nil:
		if stricter[reason] == "" {
			d.t.Errorf("%s: %s takes it, we refuse: %v", name, oracle, ours)
		}
		d.used["stricter "+reason] = true
	}
}

// verify compares the verdicts over a JWS.
func (d *difference) verify(name, reason, alg, theirAlg string, k *PublicKey, raw string) {
	d.t.Helper()
	_, ours := verify(raw, k)
	_, theirs := d.others.VerifyJWS(d.t, peers.JWX, alg, k.Crypto(), raw)
	d.judge(name, reason, "jwx", ours, theirs)
	if theirAlg != alg {
		reason = theirAlg
	}
	_, theirs = d.others.VerifyJWS(d.t, peers.GoJOSE, theirAlg, k.Crypto(), raw)
	d.judge(name, reason, "go-jose", ours, theirs)
}

// reasonOf says which line a header of headerCases needs, if any.
func reasonOf(name string) string {
	for reason, names := range map[string][]string{
		"kid":           {"kid with a NUL behind"},
		"key in header": {"the very key that signed", "jku", "x5t", "x5t#S256"},
		"member": {
			"cty, which a JWE has", "enc, which a JWE has", "epk, which a JWE has", "iss, a claim repeated", "an empty name", "b64 true, which changes nothing",
			"nested to eight", "the name of alg in capitals",
		},
		"empty":       {"an empty kid", "an empty typ", "an empty crit"},
		"type":        {"kid null", "typ null", "typ as a number"},
		"alg":         {"alg of the other kind of key, old name", "nothing"},
		"white space": {"white space that JSON has"},
		"twice":       {"alg twice, the same", "alg twice, once escaped", "alg twice, the first escaped", "a member twice inside one that is not taken"},
		"json":        {"a half surrogate", "a surrogate pair turned round", "an overlong character", "a surrogate in UTF-8", "a NUL behind", "a second object behind"},
	} {
		if slices.Contains(names, name) {
			return reason
		}
	}
	return ""
}

func TestDifferencesFromTheOracles(t *testing.T) {
	d := &difference{t, peers.Find(t), map[string]bool{}}
	t.Run("headers", func(t *testing.T) { d.t = t; d.headers() })
	t.Run("encodings", func(t *testing.T) { d.t = t; d.encodings() })
	t.Run("signatures", func(t *testing.T) { d.t = t; d.signatures() })
	t.Run("seals", func(t *testing.T) { d.t = t; d.seals() })
	t.Run("keys", func(t *testing.T) { d.t = t; d.keys() })
	for reason := range stricter {
		if !d.used["stricter "+reason] {
			t.Errorf("nothing is refused any more for %q", reason)
		}
	}
	for reason := range looser {
		if !d.used["looser "+reason] {
			t.Errorf("nothing is taken any more for %q", reason)
		}
	}
}

func (d *difference) headers() {
	s := newSigner(d.t, P256)
	k := s.Public()
	for _, tc := range headerCases(s) {
		raw := under(d.t, s, tc.header, `{"a":1}`)
		d.verify(tc.name, reasonOf(tc.name), "ES256", "ES256", k, raw)
	}
	ed := newSigner(d.t, Ed)
	d.verify("Ed25519", "", "Ed25519", "EdDSA", ed.Public(), under(d.t, ed, `{"alg":"Ed25519"}`, `{}`))
}

// encodings writes each part of a good token in every other way that a lenient
// decoder might take for the same bytes.
func (d *difference) encodings() {
	s := newSigner(d.t, P256)
	ok := under(d.t, s, `{"alg":"ES256"}`, `{"ab":1}`)
	parts := strings.Split(ok, ".")
	try := func(name, raw string) {
		reason := "base64url"
		if strings.HasPrefix(name, "json") {
			reason = "serialization"
		}
		d.verify(name, reason, "ES256", "ES256", s.Public(), raw)
	}
	try("as it is", ok)
	for i, part := range parts {
		with := func(p string) string {
			q := slices.Clone(parts)
			q[i] = p
			return strings.Join(q, ".")
		}
		for _, c := range []string{"\n", "\r\n", " ", "\t", "=", "==", "\x00", "."} {
			try(fmt.Sprintf("part %d with %q behind", i, c), with(part+c))
			try(fmt.Sprintf("part %d with %q before", i, c), with(c+part))
			try(fmt.Sprintf("part %d with %q inside", i, c), with(part[:3]+c+part[3:]))
		}
		try(fmt.Sprintf("part %d padded", i), with(part+strings.Repeat("=", (4-len(part)%4)%4)))
		try(fmt.Sprintf("part %d in the other alphabet", i), with(strings.NewReplacer("-", "+", "_", "/").Replace(part)))
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
			try(fmt.Sprintf("part %d ends in %c", i, c), with(part[:len(part)-1]+string(c)))
		}
		try(fmt.Sprintf("no part %d", i), with(""))
	}
	try("json flattened", `{"protected":"`+parts[0]+`","payload":"`+parts[1]+`","signature":"`+parts[2]+`"}`)
	try("json general", `{"payload":"`+parts[1]+`","signatures":[{"protected":"`+parts[0]+`","signature":"`+parts[2]+`"}]}`)
	try("json general, two of one", `{"payload":"`+parts[1]+`","signatures":[{"protected":"`+parts[0]+`","signature":"`+parts[2]+`"},{"protected":"`+parts[0]+`","signature":"`+parts[2]+`"}]}`)
}

func (d *difference) signatures() {
	s := newSigner(d.t, P256)
	ok := under(d.t, s, `{"alg":"ES256"}`, `{"ab":1}`)
	cut := strings.LastIndexByte(ok, '.')
	sig, err := base64.RawURLEncoding.DecodeString(ok[cut+1:])
	if err != nil {
		d.t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	r, v := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	raw := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	for name, b := range map[string][]byte{
		"as signed": sig, "n-s": raw(r, new(big.Int).Sub(n, v)), "DER": derSignature(nil, (*[64]byte)(sig)), "zeros": make([]byte, 64),
		"r is n": raw(n, v), "s is n": raw(r, n), "r is zero": raw(new(big.Int), v), "s is zero": raw(r, new(big.Int)), "swapped": raw(v, r),
		"63 bytes": sig[:63], "65 bytes": append([]byte{0}, sig...), "96 bytes": append(make([]byte, 32), sig...),
		"each with a zero before": append(append([]byte{0}, sig[:32]...), append([]byte{0}, sig[32:]...)...), "none": nil,
	} {
		d.verify(name, "", "ES256", "ES256", s.Public(), ok[:cut+1]+b64.EncodeToString(b))
	}
}

func (d *difference) seals() {
	for _, crv := range []string{P256, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			d.t.Fatal(err)
		}
		o, err := k.Decrypter()
		if err != nil {
			d.t.Fatal(err)
		}
		judge := func(name, reason, raw string) {
			_, _, ours := o.Decrypt(raw, 1<<16)
			_, theirs := d.others.Decrypt(d.t, peers.JWX, "", privateECDH(d.t, k), raw)
			d.judge(crv+" "+name, reason, "jwx", ours, theirs)
			_, theirs = d.others.Decrypt(d.t, peers.GoJOSE, "", privateECDH(d.t, k), raw)
			if crv == X25519 && ours == nil {
				reason = "X25519"
			}
			d.judge(crv+" "+name, reason, "go-jose", ours, theirs)
		}
		for _, tc := range sealCases(d.t, crv, string(k.Public().ID())) {
			reason := map[string]string{
				"apu": "kdf", "apv": "kdf", "an empty apu": "kdf", "jwk": "key in header", "another kid": "kid", "an empty kid": "empty",
				"iv, of a key wrap": "member", "p2c, which makes others work for hours": "member", "crit": "member", "cty as a number": "type",
				"epk with d": "jwk", "epk twice": "twice", "epk with a member twice": "twice",
			}[tc.name]
			judge(tc.name, reason, sealUnder(d.t, k.Public(), tc.apu, tc.apv, "march", tc.header))
		}
		ok := sealUnder(d.t, k.Public(), "", "", "march", func(e string) string { return `{"alg":"ECDH-ES","enc":"A256GCM","epk":` + e + `}` })
		parts := strings.Split(ok, ".")
		for i, part := range parts {
			for _, c := range []string{"\n", " ", "=", "==", "A", "AA", "."} {
				q := slices.Clone(parts)
				q[i] = part + c
				judge(fmt.Sprintf("part %d with %q behind", i, c), "base64url", strings.Join(q, "."))
			}
		}
		judge("json", "serialization", `{"protected":"`+parts[0]+`","iv":"`+parts[2]+`","ciphertext":"`+parts[3]+`","tag":"`+parts[4]+`"}`)
	}
}

func (d *difference) keys() {
	for _, crv := range []string{P256, Ed, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			d.t.Fatal(err)
		}
		own := string(k.Public().JWK())
		with := func(members string) string { return own[:len(own)-1] + "," + members + "}" }
		x := own[strings.Index(own, `"x":"`)+5:][:43]
		for name, raw := range map[string]string{
			"as it is":          own,
			"kid":               with(`"kid":"` + string(k.Public().ID()) + `"`),
			"another kid":       with(`"kid":"x"`),
			"an unknown member": with(`"ext":true`),
			"use of no kind":    with(`"use":"x"`),
			"alg of no kind":    with(`"alg":"x"`),
			"ops twice":         with(`"key_ops":["verify","verify"]`),
			"private":           string(k.JWK()),
			"kty twice":         with(own[1:strings.IndexByte(own, ',')]),
			"another kty":       strings.NewReplacer("OKP", "EC", `"EC"`, `"OKP"`).Replace(own),
			"another crv":       strings.NewReplacer("P-256", "P-384", "X25519", "X448", "Ed25519", "Ed448").Replace(own),
			"padding":           strings.Replace(own, x, x+"=", 1),
			"a line break":      strings.Replace(own, x, x[:9]+`\n`+x[9:], 1),
			"escaped":           strings.Replace(own, "kty", `\u006bty`, 1),
			"one byte less":     strings.Replace(own, x, x[:42], 1),
			"one byte more":     strings.Replace(own, x, "AAAA"+x[:42], 1),
			"x of zeros":        strings.Replace(own, x, strings.Repeat("A", 43), 1),
			"x of ones":         strings.Replace(own, x, strings.Repeat("_", 42)+"8", 1),
			"x one off":         strings.Replace(own, x, "B"+x[1:], 1),
			"no x":              strings.Replace(own, `"x":`, `"z":`, 1),
			"x null":            strings.Replace(own, `"`+x+`"`, "null", 1),
		} {
			reason := "jwk"
			_, ours := parsedAnyUse([]byte(raw))
			_, theirs := d.others.Thumbprint(d.t, peers.JWX, []byte(raw))
			d.judge(crv+" "+name, reason, "jwx", ours, theirs)
			if crv == X25519 {
				continue
			}
			_, theirs = d.others.Thumbprint(d.t, peers.GoJOSE, []byte(raw))
			d.judge(crv+" "+name, reason, "go-jose", ours, theirs)
		}
	}
}
