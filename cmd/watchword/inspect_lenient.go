package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Lenient parsing, to explain invalid credentials: it parses as much as it can of any input. Its results are only
// displayed; the packages jose and token alone decide what is accepted.

// decodeLenient decodes base64url as far as possible, and returns all errors of s.
func decodeLenient(s string) (out []byte, wrong []string) {
	clean := make([]byte, 0, len(s))
	seen := map[string]bool{}
	note := func(format string, a ...any) {
		if w := fmt.Sprintf(format, a...); !seen[w] {
			seen[w] = true
			wrong = append(wrong, w)
		}
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			clean = append(clean, c)
		case c == '+', c == '/':
			note("the alphabet of standard base64 (%q), not of base64url", c)
			clean = append(clean, map[byte]byte{'+': '-', '/': '_'}[c])
		case c == '=':
			note("padding (=)")
		case c == '\n', c == '\r':
			note("a line break at character %d", i+1)
		case c == ' ', c == '\t':
			note("white space at character %d", i+1)
		case len(wrong) < 8:
			note("%q at character %d is no base64url", c, i+1)
		}
	}
	if len(clean)%4 == 1 {
		note("a length that no bytes give: something is cut off")
		clean = clean[:len(clean)-1]
	}
	out, err := base64.RawURLEncoding.DecodeString(string(clean))
	if err != nil {
		note("%v", err)
	}
	if base64.RawURLEncoding.EncodeToString(out) != string(clean) {
		note("trailing bits that are not zero: a second way to write the same bytes")
	}
	return out, wrong
}

// member is one member of a JSON object, with its unparsed value.
type member struct {
	name  string
	value jsontext.Value
}

// members parses the members of an object as far as possible, including duplicates. err is the error of a strict parser.
func members(b []byte) (ms []member, err error) {
	_, err = jsontext.AppendFormat(nil, b) // strict: duplicates, UTF-8, trailing data
	d := jsontext.NewDecoder(bytes.NewReader(b), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if t, terr := d.ReadToken(); terr != nil || t.Kind() != '{' {
		return nil, firstError(err, errors.New("is no JSON object"))
	}
	for d.PeekKind() == '"' {
		t, terr := d.ReadToken()
		if terr != nil {
			break
		}
		name := t.String()
		v, verr := d.ReadValue()
		if verr != nil {
			break
		}
		ms = append(ms, member{name, v.Clone()})
	}
	return ms, err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// jsonErrorAt describes the error of a JSON text, and its path in it.
func jsonErrorAt(err error) (path, what string) {
	if se, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		path = strings.ReplaceAll(strings.TrimPrefix(string(se.JSONPointer), "/"), "/", ".")
		what = se.Err.Error()
		if errors.Is(se.Err, io.ErrUnexpectedEOF) {
			what = "ends too early"
		}
		if errors.Is(se.Err, jsontext.ErrDuplicateName) {
			what = "is a duplicate member"
		}
		return path, what
	}
	return "", err.Error()
}

// text returns the text of a JSON string, false for other values.
func text(v jsontext.Value) (string, bool) {
	if v.Kind() != '"' {
		return "", false
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil && len(b) == 0 {
		return "", false
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), true
}

// items returns the values of a JSON array, as far as it is one.
func items(v jsontext.Value) (out []jsontext.Value) {
	d := jsontext.NewDecoder(bytes.NewReader(v), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if t, err := d.ReadToken(); err != nil || t.Kind() != '[' {
		return nil
	}
	for d.PeekKind() != ']' {
		item, err := d.ReadValue()
		if err != nil {
			break
		}
		out = append(out, item.Clone())
	}
	return out
}
