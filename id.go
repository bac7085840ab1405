package watchword

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"net"
	"strings"
	"time"
)

// TenantID names the wall between customers. [DefaultTenant] is always there.
type TenantID string

// DefaultTenant is the tenant that needs no mention in addresses.
const DefaultTenant TenantID = "default"

// SubjectID names a device, an operator or a service for its whole life. The
// three share one id space in their tenant, because it is the sub claim of
// every token the subject gets.
type SubjectID string

// KeyID is a public key's RFC 7638 SHA-256 thumbprint: 43 characters of
// unpadded base64url.
type KeyID string

// CommandID names one command. It is the jti of the command's JWT and the cid
// of its receipt.
type CommandID string

// SessionID names one live session.
type SessionID string

// MaxName is the longest id, label key or label value, in bytes.
const MaxName = 64

// ValidName reports whether s may name a tenant, subject, stream, function,
// label key or label value: [A-Za-z0-9._~-]{1,64}. No / + # $ % : = or space,
// so a name cannot widen a topic filter, a path or a selector.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxName {
		return false
	}
	for i := range len(s) {
		if !isNameByte(s[i]) {
			return false
		}
	}
	return true
}

func isNameByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '.' || c == '_' || c == '~' || c == '-'
}

// CheckName is [ValidName] with an error that names the field and never
// repeats the value. Code: bad_request.
func CheckName(field, s string) error {
	if ValidName(s) {
		return nil
	}
	return &Error{Code: BadRequest, Field: field, Detail: "must be 1 to 64 of A-Z a-z 0-9 . _ ~ -"}
}

// CheckSubjectID is [CheckName] for the id of a subject that is added, with a hint for an address of a network interface: its colons
// would make the id, as sub of a token, a URI. Code: bad_request.
func CheckSubjectID(s string) error {
	if err := CheckName("id", s); err != nil {
		if hw, herr := net.ParseMAC(s); herr == nil && strings.Contains(s, ":") {
			return RefuseField("id", "must be 1 to 64 of A-Z a-z 0-9 . _ ~ -: write the address as %s", strings.ReplaceAll(hw.String(), ":", "-"))
		}
		return err
	}
	return nil
}

// NewID returns prefix followed by 26 characters that sort by time: 48 bits of
// milliseconds and 80 random bits in Crockford's base 32, as a ULID.
func NewID(prefix string, now time.Time) string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return FormatID(prefix, now, binary.BigEndian.Uint16(b[:]), binary.BigEndian.Uint64(b[2:]))
}

// FormatID is [NewID] with the given 80 bits, for callers that increment them: then ids of one millisecond sort too.
func FormatID(prefix string, now time.Time, high uint16, lo uint64) string {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	out := make([]byte, len(prefix)+26)
	copy(out, prefix)
	hi := uint64(now.UnixMilli())<<16 | uint64(high)
	for i := len(out) - 1; i >= len(prefix); i-- {
		out[i] = digits[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out)
}

// NewNonce returns 128 random bits as 22 characters of unpadded base64url, the
// shape of every jti, nonce and one-time code.
func NewNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}
