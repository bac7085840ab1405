package main

import (
	"errors"
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

// inspection describes a token without trusting it.
type inspection struct {
	Kind    string            `json:"kind"`             // its name, "sealed", or "unknown"
	Signer  string            `json:"signer,omitempty"` // party that signs this kind
	Reader  string            `json:"reader,omitempty"` // party that accepts it
	Size    int               `json:"size"`
	MaxSize int               `json:"most,omitempty"` // maximum size of the kind, in bytes
	Header  []inspectedMember `json:"header,omitempty"`
	Claims  []inspectedMember `json:"claims,omitempty"`
	Checks  []checkResult     `json:"checks"`
	Parts   []*inspection     `json:"parts,omitempty"` // elements of an array, and contained tokens
	Good    bool              `json:"good"`            // no check failed
	Checked bool              `json:"signature_checked"`

	raw  string
	typ  string
	kind *tokenKind
}

// inspectedMember is one member with its meaning.
type inspectedMember struct {
	Name    string         `json:"name"`
	Value   jsontext.Value `json:"value"`
	Meaning string         `json:"meaning,omitempty"`
	Lines   []string       `json:"lines,omitempty"` // of perm and deny, one permission each
}

// checkResult is the result of one check. Where is part or part.member.
type checkResult struct {
	Check  string         `json:"check"`
	Result string         `json:"result"` // good, bad, unknown
	Code   watchword.Code `json:"code,omitempty"`
	Where  string         `json:"where,omitempty"`
	Detail string         `json:"detail"`
}

func (p *inspection) good(check, format string, a ...any) {
	p.Checks = append(p.Checks, checkResult{Check: check, Result: "good", Detail: fmt.Sprintf(format, a...)})
}

func (p *inspection) unknown(check, format string, a ...any) {
	p.Checks = append(p.Checks, checkResult{Check: check, Result: "unknown", Detail: fmt.Sprintf(format, a...)})
}

func (p *inspection) bad(check string, code watchword.Code, where, format string, a ...any) {
	p.Checks = append(p.Checks, checkResult{Check: check, Result: "bad", Code: code, Where: where, Detail: fmt.Sprintf(format, a...)})
}

// addRefusal adds a refusal of a server's check: code and detail are those of the server's response and log. A repeated
// refusal is added once.
func (p *inspection) addRefusal(err error) {
	v := checkResult{Check: "refusal", Result: "bad", Code: watchword.CodeOf(err), Detail: errorText(err)}
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		v.Where, v.Detail = e.Field, e.Detail
	}
	if !slices.Contains(p.Checks, v) {
		p.Checks = append(p.Checks, v)
	}
}

// errorText returns an error's text without its code.
func errorText(err error) string {
	s := err.Error()
	return strings.TrimPrefix(s, string(watchword.CodeOf(err))+": ")
}

func (p *inspection) summarize() *inspection {
	p.Good = true
	for _, v := range p.Checks {
		p.Good = p.Good && v.Result != "bad"
	}
	for _, q := range p.Parts {
		p.Good = p.Good && q.Good
	}
	return p
}

// inspect explains raw, whatever it contains.
func inspect(raw string, now time.Time) *inspection {
	p := &inspection{raw: raw, Size: len(raw), Kind: "unknown"}
	switch {
	case strings.HasPrefix(strings.TrimSpace(raw), "["):
		p.inspectArray(now)
	case strings.HasPrefix(strings.TrimSpace(raw), "{"):
		p.bad("form", watchword.TokenMalformed, "", "a JSON serialization (RFC 7515 §7.2): the compact form alone is taken")
	case strings.Count(raw, ".") == 2:
		p.inspectJWS(now)
	case strings.Count(raw, ".") == 4:
		p.inspectJWE()
	default:
		p.bad("form", watchword.TokenMalformed, "", "a token has 3 parts between dots, a sealed one 5; this has %d", strings.Count(raw, ".")+1)
		if head, _, ok := strings.Cut(raw, "."); ok {
			p.header(head)
		}
		if _, err := jose.ParseJWS(raw, watchword.MaxBundle); err != nil {
			p.addRefusal(err)
		}
	}
	return p.summarize()
}

// inspectArray explains two JWSs over one payload, for statements that two keys must sign.
func (p *inspection) inspectArray(now time.Time) {
	p.Kind = "array"
	vs := items(jsontext.Value(p.raw))
	payloads := map[string]bool{}
	for i, v := range vs[:min(len(vs), 4)] { // more than two are invalid in any case
		s, ok := text(v)
		if !ok {
			p.bad("form", watchword.TokenMalformed, strconv.Itoa(i+1), "is no string")
			continue
		}
		q := inspect(s, now)
		p.Parts = append(p.Parts, q)
		if parts := strings.Split(s, "."); len(parts) == 3 {
			payloads[parts[1]] = true
		}
		p.Kind = "array of " + q.Kind
	}
	switch {
	case len(vs) != 2:
		p.bad("form", watchword.TokenMalformed, "", "an array has two tokens: the old key's and the new one's; this has %d", len(vs))
	case len(payloads) == 1:
		p.good("payload", "both sign the identical payload")
	default:
		p.bad("payload", watchword.TokenMalformed, "", "the two sign different payloads")
	}
}

func (p *inspection) inspectJWS(now time.Time) {
	parts := strings.Split(p.raw, ".")
	p.header(parts[0])
	payload, wrong := decodeLenient(parts[1])
	p.encoding("payload", wrong)
	sig, wrong := decodeLenient(parts[2])
	p.encoding("signature", wrong)
	switch {
	case len(sig) == 0:
		p.bad("form", watchword.TokenMalformed, "signature", "is empty: the token is not signed")
	case len(sig) != 64:
		p.bad("form", watchword.TokenMalformed, "signature", "has %d bytes; those of ES256 and Ed25519 have 64", len(sig))
	}
	p.findKind()
	p.body(payload, now)
	p.size()
	p.strictCheck(now)
}

// findKind finds the kind by typ; an assertion may have none.
func (p *inspection) findKind() {
	for i := range tokenKinds {
		if jose.SameType(p.typ, tokenKinds[i].typ) {
			p.kind = &tokenKinds[i]
		}
	}
	switch {
	case p.kind != nil:
	case p.typ == "" || jose.SameType(p.typ, "JWT"):
		p.unknown("kind", "typ says nothing: taken as a client assertion at /oauth/token, and nowhere else")
		p.kind = &tokenKinds[0]
	default:
		p.bad("kind", watchword.TokenKind, "header.typ", "names no kind that is taken here")
	}
	if p.kind != nil {
		p.Kind, p.Signer, p.Reader, p.MaxSize = p.kind.name, p.kind.signer, p.kind.reader, p.kind.most
	}
}

func (p *inspection) size() {
	switch {
	case p.MaxSize == 0 && p.Size > watchword.MaxBundle:
		p.bad("size", watchword.TooLarge, "", "%d bytes: no kind has more than %d", p.Size, watchword.MaxBundle)
	case p.MaxSize == 0:
	case p.Size > p.MaxSize:
		p.bad("size", watchword.TooLarge, "", "%d bytes; this kind may have %d", p.Size, p.MaxSize)
	default:
		p.good("size", "%d bytes of %d", p.Size, p.MaxSize)
	}
}

func (p *inspection) encoding(part string, wrong []string) {
	for _, w := range wrong {
		p.bad("encoding", watchword.TokenMalformed, part, "%s", w)
	}
}

// header explains the header, and reports errors of single members.
func (p *inspection) header(encoded string) {
	b, wrong := decodeLenient(encoded)
	p.encoding("header", wrong)
	ms, err := members(b)
	if err != nil {
		path, what := jsonErrorAt(err)
		p.bad("header", watchword.TokenMalformed, joined("header", path), "%s", what)
	}
	for _, m := range ms {
		s, isText := text(m.value)
		p.Header = append(p.Header, inspectedMember{Name: m.name, Value: value(m.value), Meaning: headerMeaning(m.name, s)})
		where := "header." + m.name
		switch m.name {
		case "typ":
			p.typ = s
		case "alg":
			p.algorithm(s)
		case "zip", "crit", "b64":
			p.bad("header", watchword.TokenMalformed, where, "changes what the bytes mean, and is refused")
		case "jku", "x5u", "x5c", "x5t", "x5t#S256":
			p.bad("header", watchword.TokenMalformed, where, "contains or refers to an unverified key, and is refused (RFC 8725 §3)")
		}
		if !isText && strings.Contains(" alg typ kid cty enc ", " "+m.name+" ") || isText && s == "" {
			p.bad("header", watchword.TokenMalformed, where, "must be a text that is not empty")
		}
	}
}

func (p *inspection) algorithm(alg string) {
	switch {
	case alg == jose.ES256, alg == jose.Ed, alg == jose.EdDSA, alg == "ECDH-ES":
	case strings.EqualFold(alg, "none"):
		p.bad("algorithm", watchword.AlgorithmInvalid, "header.alg", "the token is not signed: anyone can have written it")
	case strings.HasPrefix(alg, "HS"):
		p.bad("algorithm", watchword.AlgorithmInvalid, "header.alg", "a shared secret: every verifier can also sign")
	default:
		p.bad("algorithm", watchword.AlgorithmInvalid, "header.alg", "is not taken here: ES256 and Ed25519 sign, ECDH-ES seals")
	}
}

// strictCheck calls the real verifiers and adds what they refuse beyond the errors that were already added.
func (p *inspection) strictCheck(now time.Time) {
	var err error
	if p.kind != nil && p.kind.typ == token.TypDPoP {
		var u *jose.Unverified
		var k *jose.PublicKey
		if u, k, err = jose.ParseProof(p.raw, watchword.MaxToken); err == nil {
			if _, verr := u.Verify(k); verr != nil {
				p.bad("signature", watchword.SignatureInvalid, "signature", "is not that of the key in its header")
			} else {
				p.Checked = true
				p.good("signature", "is that of the key in its header, %s; whose key that is, it cannot say", k.ID())
			}
		}
		// For the request that the proof names; the access token of the request is unknown here.
		if _, derr := token.VerifyDPoP(p.raw, p.claim("htm"), p.claim("htu"), "", now); derr != nil {
			p.addRefusal(derr)
			err = nil // it was added, with the server's code and detail
			if !p.Checked {
				return
			}
		}
	} else {
		_, err = jose.ParseJWS(p.raw, max(p.MaxSize, watchword.MaxToken))
	}
	if err != nil {
		p.addRefusal(err)
	} else {
		p.good("encoding", "three parts of strict base64url, a strict header, a signature of 64 bytes")
	}
	if p.kind == &tokenKinds[0] && err == nil {
		if _, err := token.ParseAssertion(p.raw, true); err != nil {
			p.addRefusal(err)
		}
	}
}

// claim returns a claim that is a string; empty for other claims.
func (p *inspection) claim(name string) string {
	for _, c := range p.Claims {
		if s, ok := text(c.Value); ok && c.Name == name {
			return s
		}
	}
	return ""
}

// inspectJWE explains the header of a JWE, including which key can decrypt it.
func (p *inspection) inspectJWE() {
	p.Kind, p.Reader, p.MaxSize = "sealed", "the holder of the private key that kid names", watchword.MaxDocument
	parts := strings.Split(p.raw, ".")
	p.header(parts[0])
	for i, name := range []string{"", "encrypted key", "initialization vector", "text", "tag"} {
		b, wrong := decodeLenient(parts[i])
		if i == 0 {
			continue
		}
		p.encoding(name, wrong)
		if want := []int{0, 0, 12, -1, 16}[i]; want >= 0 && len(b) != want {
			p.bad("form", watchword.TokenMalformed, name, "has %d bytes instead of %d", len(b), want)
		}
	}
	p.size()
	var epk jsontext.Value
	for _, h := range p.Header {
		if h.Name == "epk" {
			epk = h.Value
		}
	}
	crv := jose.P256
	if k, err := jose.ParseJWK(epk, jose.ForEncryption); err != nil {
		p.bad("header", watchword.TokenMalformed, "header.epk", "%s", errorText(err))
	} else if k.Alg() == "" {
		crv = jose.X25519
	}
	// A new key cannot decrypt it, but the decryption reports all other errors first.
	k, err := jose.GenerateKey(crv)
	if err != nil {
		return
	}
	o, err := k.Decrypter()
	if err != nil {
		return
	}
	_, _, err = o.Decrypt(p.raw, watchword.MaxDocument)
	switch watchword.CodeOf(err) {
	case watchword.KeyUnknown, watchword.SignatureInvalid:
		p.good("encoding", "five parts of strict base64url, a strict header")
	default:
		p.addRefusal(err)
	}
	p.unknown("inside", "sealed: what it says, only its recipient can read")
}

func joined(part, path string) string {
	if path == "" {
		return part
	}
	return part + "." + path
}

// value returns v if it is JSON that can be printed, and otherwise a text that describes it.
func value(v jsontext.Value) jsontext.Value {
	if out, err := jsontext.AppendFormat(nil, v, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err == nil {
		if s := jsontext.Value(strings.ToValidUTF8(string(out), "\ufffd")); s.IsValid(jsontext.AllowDuplicateNames(true)) {
			return s
		}
	}
	q, err := jsontext.AppendQuote(nil, strings.ToValidUTF8(string(v), "\ufffd"))
	if err != nil {
		return jsontext.Value("null")
	}
	return q
}
