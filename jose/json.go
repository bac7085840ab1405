package jose

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// maxDepth is how deep a JSON document may nest; the outer object counts.
const maxDepth = 8

// Walk reads b, which must be one JSON object with nothing after it: valid
// UTF-8, no member twice at any depth, at most 8 deep. It calls f for each
// member of the object in their order; value aliases b. An error of f ends the walk and
// is returned as it is. Code: token_malformed.
func Walk(b []byte, f func(name string, value jsontext.Value) error) error {
	if err := checkDepth(b); err != nil {
		return err
	}
	w := newWalker(b)
	defer w.release()
	return w.walk(f)
}

// walker is a decoder with its buffers, kept for the next token. It is reset
// when it is given back, and looks at in for the first time when it reads.
type walker struct {
	d  *jsontext.Decoder
	in bytes.Buffer
}

var walkers = sync.Pool{New: func() any {
	w := &walker{}
	w.d = jsontext.NewDecoder(&w.in)
	return w
}}

// newWalker returns a walker at the beginning of b, which is read in place, as a
// *bytes.Buffer is.
func newWalker(b []byte) *walker {
	w := walkers.Get().(*walker)
	w.in = *bytes.NewBuffer(b)
	return w
}

// release forgets the bytes that were read, and keeps the rest.
func (w *walker) release() {
	w.in = bytes.Buffer{}
	w.d.Reset(&w.in)
	walkers.Put(w)
}

func (w *walker) walk(f func(name string, value jsontext.Value) error) error {
	if t, err := w.d.ReadToken(); err != nil || t.Kind() != '{' {
		return malformed(err, "it must be a JSON object")
	}
	for w.d.PeekKind() != '}' {
		raw, err := w.d.ReadValue()
		if err != nil {
			return malformed(err, "it must be strict JSON: UTF-8, no member twice")
		}
		name, err := String(raw)
		if err != nil {
			return err
		}
		v, err := w.d.ReadValue()
		if err != nil {
			return malformed(err, "it must be strict JSON: UTF-8, no member twice")
		}
		if err := f(name, v); err != nil {
			return err
		}
	}
	return w.end()
}

// end reads the closing bracket, and that nothing follows.
func (w *walker) end() error {
	if _, err := w.d.ReadToken(); err != nil {
		return malformed(err, "it must be strict JSON: UTF-8, no member twice")
	}
	if _, err := w.d.ReadToken(); !errors.Is(err, io.EOF) {
		return malformed(nil, "the JSON value must not be followed by other bytes")
	}
	return nil
}

// Each reads v, which must be one JSON array as [Walk] would take it inside an
// object, and calls f for each of its items in their order; item aliases v. An
// error of f ends it and is returned as it is. Code: token_malformed.
func Each(v jsontext.Value, f func(item jsontext.Value) error) error {
	if err := checkDepth(v); err != nil {
		return err
	}
	w := newWalker(v)
	defer w.release()
	if t, err := w.d.ReadToken(); err != nil || t.Kind() != '[' {
		return malformed(err, "a claim must be an array")
	}
	for w.d.PeekKind() != ']' {
		item, err := w.d.ReadValue()
		if err != nil {
			return malformed(err, "it must be strict JSON: UTF-8, no member twice")
		}
		if err := f(item); err != nil {
			return err
		}
	}
	return w.end()
}

// internedStrings is the strings that are in nearly every token, as names or as values: they cost no allocation.
var internedStrings = func() map[string]string {
	m := map[string]string{}
	for _, s := range strings.Fields(`alg typ kid enc cty epk jwk kty crv x y d use iss sub aud client_id jti iat exp nbf key dev perm deny cnf jkt
		htm htu ath nonce code_hash seal_jkt epoch seq cid ch st result cmd args act order args_hash ver keys tls config
		ES256 Ed25519 EdDSA ECDH-ES A256GCM EC OKP P-256 X25519 JWT at+jwt client-authentication+jwt dpop+jwt
		pub call get put post patch delete GET PUT POST PATCH DELETE accepted done refused failed interrupted conflict`) {
		m[s] = s
	}
	return m
}()

// maxInterned is the bytes of the longest of common.
const maxInterned = len("client-authentication+jwt")

// checkDepth bounds nesting before anything recurses.
func checkDepth(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		c := b[i]
		if !structural[c] {
			continue
		}
		switch {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return malformed(nil, "JSON must not be nested deeper than 8 levels")
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// structural is the bytes that checkDepth looks at: few of a token's.
var structural = [256]bool{'"': true, '\\': true, '{': true, '}': true, '[': true, ']': true}

func malformed(err error, what string) error {
	return watchword.Wrap(err, watchword.TokenMalformed, "%s", what)
}

// String reads a JSON string, as [Walk] and [Each] give it.
func String(v jsontext.Value) (string, error) {
	b, err := text(v)
	if len(b) <= maxInterned {
		if s, ok := internedStrings[string(b)]; ok {
			return s, err
		}
	}
	return string(b), err
}

// text is the bytes of a JSON string: those of v itself where nothing is escaped.
func text(v jsontext.Value) ([]byte, error) {
	if len(v) < 2 || v[0] != '"' {
		return nil, malformed(nil, "a claim must be a string")
	}
	if s := v[1 : len(v)-1]; bytes.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	s, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return nil, malformed(err, "a claim must be a string")
	}
	return s, nil
}

// Int reads a JSON integer of at most 53 bits, which every JSON library gives
// back as it is (RFC 7493 §2.2): no fraction, no exponent, no -0.
func Int(v jsontext.Value) (int64, error) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n >= 1<<53 || n <= -1<<53 || v[0] == '+' || n == 0 && len(v) > 1 {
		return 0, malformed(nil, "a claim must be an integer")
	}
	return n, nil
}

// Strings reads a JSON array of strings.
func Strings(v jsontext.Value) ([]string, error) {
	var out []string
	err := Each(v, func(item jsontext.Value) error {
		s, err := String(item)
		out = append(out, s)
		return err
	})
	return out, err
}

// Decode reads b, which must be what [Walk] takes, into a struct. Members that
// the struct does not have are passed over (RFC 7519 §4). It is slower than Walk,
// and takes null where the struct's field does not say otherwise.
func Decode(b []byte, into any) error {
	if err := checkObject(b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		if e, ok := errors.AsType[*watchword.Error](err); ok {
			return e
		}
		return malformed(err, "it must have the expected members, each of its type")
	}
	return nil
}

// DecodeExact is [Decode], but refuses members that the struct does not have,
// naming their path. Code: token_malformed, with Field.
func DecodeExact(b []byte, into any) error {
	if err := checkObject(b); err != nil {
		return err
	}
	err := json.Unmarshal(b, into, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	out := &watchword.Error{Code: watchword.TokenMalformed, Detail: "it must have the expected members, each of its type", Err: err}
	if se, ok := errors.AsType[*json.SemanticError](err); ok && len(se.JSONPointer) > 1 {
		out.Field = string(se.JSONPointer[1:])
	}
	return out
}

// checkObject bounds nesting, and refuses null, which would decode into anything.
func checkObject(b []byte) error {
	if jsontext.Value(b).Kind() != '{' {
		return malformed(nil, "it must be a JSON object")
	}
	return checkDepth(b)
}
