package api

import "encoding/base64"

// Base64 is bytes that are standard base64 with padding in JSON (RFC 4648 §4), and a plain string in OpenAPI.
type Base64 []byte

// MarshalText returns b in base64.
func (b Base64) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText reads base64. The error is that of package base64.
func (b *Base64) UnmarshalText(text []byte) (err error) {
	*b, err = base64.StdEncoding.AppendDecode(nil, text)
	return err
}
