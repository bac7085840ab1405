package packet

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"
)

// reader parses a packet's body. After the first error it reads zeros.
type reader struct {
	b   []byte
	v   Version
	err *Error
}

func (r *reader) fail(reason Reason, what string) {
	if r.err == nil {
		r.err = &Error{Reason: reason, Detail: what}
	}
	r.b = nil
}

// take returns the next n bytes, which alias the body.
func (r *reader) take(n int) []byte {
	if r.err != nil || len(r.b) < n {
		r.fail(MalformedPacket, "the packet ends too early")
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// binary reads binary data (§1.5.6). It aliases the body.
func (r *reader) binary() []byte { return r.take(int(r.uint16())) }

// text reads a UTF-8 string (§1.5.4): well-formed, and without U+0000.
func (r *reader) text() string {
	b := r.binary()
	if r.err == nil && (!utf8.Valid(b) || strings.IndexByte(string(b), 0) >= 0) {
		r.fail(MalformedPacket, "each string must be UTF-8 without U+0000")
	}
	return string(b)
}

// topic reads a topic name; empty where a topic alias replaces it.
func (r *reader) topic() string {
	s := r.text()
	if strings.ContainsAny(s, "+#") {
		r.fail(TopicNameInvalid, "a topic name must not contain + or #")
	}
	return s
}

// responseTopic reads a topic name of at least one character (§4.7.3).
func (r *reader) responseTopic() string {
	s := r.topic()
	if r.err == nil && s == "" {
		r.fail(ProtocolError, "Response Topic must not be empty")
	}
	return s
}

// packetID reads a packet identifier, which is never 0 (§2.2.1).
func (r *reader) packetID() uint16 {
	id := r.uint16()
	if r.err == nil && id == 0 {
		r.fail(ProtocolError, "Packet Identifier must not be 0")
	}
	return id
}

func (r *reader) varint() uint32 {
	n, used, err := varint(r.b)
	if r.err == nil && (err != nil || used == 0) {
		r.fail(MalformedPacket, "a variable byte integer must have at most 4 bytes")
		return 0
	}
	r.take(used)
	return n
}

var errVarint = errors.New("a variable byte integer of more than four bytes, or not in its shortest form")

// varint decodes a variable byte integer (§1.5.5) in its shortest form. used is 0 where b is
// incomplete.
func varint(b []byte) (n uint32, used int, err error) {
	for i := range 4 {
		if i >= len(b) {
			return 0, 0, nil
		}
		n |= uint32(b[i]&127) << (7 * i)
		if b[i] < 128 {
			if i > 0 && b[i] == 0 {
				return 0, 0, errVarint
			}
			return n, i + 1, nil
		}
	}
	return 0, 0, errVarint
}

func appendVarint(out []byte, n uint32) []byte {
	for n >= 128 {
		out = append(out, byte(n)|128)
		n >>= 7
	}
	return append(out, byte(n))
}

func appendText(out []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(s))), s...)
}

func appendBinary(out, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
}

func bit(b bool, n uint) byte {
	if b {
		return 1 << n
	}
	return 0
}
