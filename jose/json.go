package jose

import (
	"bytes"
	"errors"
	"io"
	"strconv"
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
	w := walkers.Get().(*walker)
	defer w.release()
	w.in = *bytes.NewBuffer(b) // a *bytes.Buffer is read in place
	w.d.Reset(&w.in)
	return w.walk(f)
}

// walker is a decoder with its buffers, kept for the next token.
type walker struct {
	d  *jsontext.Decoder
	in bytes.Buffer
}

var walkers = sync.Pool{New: func() any { return &walker{d: jsontext.NewDecoder(new(bytes.Buffer))} }}

// release forgets the bytes that were read, and keeps the rest.
func (w *walker) release() {
	w.in = bytes.Buffer{}
	w.d.Reset(&w.in)
	walkers.Put(w)
}

func (w *walker) walk(f func(name string, value jsontext.Value) error) error {
	if t, err := w.d.ReadToken(); err != nil || t.Kind() != '{' {
		return malformed(err, "is no JSON object")
	}
	for w.d.PeekKind() != '}' {
		raw, err := w.d.ReadValue()
		if err != nil {
			return malformed(err, "is no strict JSON")
		}
		name, err := nameOf(raw)
		if err != nil {
			return err
		}
		v, err := w.d.ReadValue()
		if err != nil {
			return malformed(err, "is no strict JSON")
		}
		if err := f(name, v); err != nil {
			return err
		}
	}
	if _, err := w.d.ReadToken(); err != nil {
		return malformed(err, "is no strict JSON")
	}
	if _, err := w.d.ReadToken(); !errors.Is(err, io.EOF) {
		return malformed(nil, "has bytes after its end")
	}
	return nil
}

// common is the names that stand in nearly every token: they cost no allocation.
var common = map[string]string{
	"alg": "alg", "typ": "typ", "kid": "kid", "enc": "enc", "cty": "cty", "epk": "epk", "kty": "kty",
	"crv": "crv", "x": "x", "y": "y", "iss": "iss", "sub": "sub", "aud": "aud", "client_id": "client_id",
	"jti": "jti", "iat": "iat", "exp": "exp", "nbf": "nbf", "key": "key", "dev": "dev", "perm": "perm",
	"deny": "deny", "cnf": "cnf",
}

func nameOf(raw jsontext.Value) (string, error) {
	if len(raw) > 2 {
		if n, ok := common[string(raw[1:len(raw)-1])]; ok {
			return n, nil
		}
	}
	return String(raw)
}

// checkDepth bounds nesting before anything recurses.
func checkDepth(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return malformed(nil, "nests deeper than 8")
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

func malformed(err error, what string) error {
	return watchword.Because(err, watchword.TokenMalformed, "%s", what)
}

// String reads a JSON string.
func String(v jsontext.Value) (string, error) {
	if v.Kind() != '"' {
		return "", malformed(nil, "a string is expected")
	}
	if s := v[1 : len(v)-1]; bytes.IndexByte(s, '\\') < 0 {
		return string(s), nil
	}
	s, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return "", malformed(err, "a string is expected")
	}
	return string(s), nil
}

// Int reads a JSON integer of at most 53 bits: no fraction, no exponent, no -0.
func Int(v jsontext.Value) (int64, error) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n > 1<<53 || n < -1<<53 || v[0] == '+' || n == 0 && len(v) > 1 {
		return 0, malformed(nil, "an integer is expected")
	}
	return n, nil
}

// Strings reads a JSON array of strings.
func Strings(v jsontext.Value) ([]string, error) {
	var out []string
	if v.Kind() != '[' {
		return nil, malformed(nil, "an array of strings is expected")
	}
	if err := json.Unmarshal(v, &out); err != nil {
		return nil, malformed(err, "an array of strings is expected")
	}
	return out, nil
}

// Decode reads b, which must be what [Walk] takes, into a struct. Members that
// the struct does not have are passed over (RFC 7519 §4).
func Decode(b []byte, into any) error {
	if err := checkDepth(b); err != nil {
		return err
	}
	if len(b) == 0 || b[0] != '{' {
		return malformed(nil, "is no JSON object")
	}
	if err := json.Unmarshal(b, into); err != nil {
		if e, ok := errors.AsType[*watchword.Error](err); ok {
			return e
		}
		return malformed(err, "is not of the expected shape")
	}
	return nil
}

// DecodeExact is [Decode], but refuses members that the struct does not have,
// naming their path. Code: token_malformed, with Field.
func DecodeExact(b []byte, into any) error {
	if err := checkDepth(b); err != nil {
		return err
	}
	err := json.Unmarshal(b, into, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	out := &watchword.Error{Code: watchword.TokenMalformed, Detail: "is not of the expected shape", Err: err}
	if se, ok := errors.AsType[*json.SemanticError](err); ok && len(se.JSONPointer) > 1 {
		out.Field = string(se.JSONPointer[1:])
	}
	return out
}
