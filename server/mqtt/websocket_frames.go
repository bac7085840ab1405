package mqtt

import (
	"encoding/binary"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// Limits of WebSocket frames. A frame is not buffered; it may contain several MQTT packets, or a
// part of one.
const (
	maxFrameBytes = 1 << 20 // payload of one frame, and of all fragments of one message; at least twice the largest packet
	maxFragments  = 1024    // frames of one message
)

// frameError is an invalid frame, with the code of the close frame (RFC 6455 §7.4.1).
type frameError struct {
	cause *packet.Error
	code  websocket.StatusCode
}

// Error returns the text of the cause.
func (e *frameError) Error() string { return e.cause.Error() }

// Unwrap returns the cause, which has the MQTT reason code.
func (e *frameError) Unwrap() error { return e.cause }

// frameValidator validates the headers of a client's frames (RFC 6455 §5.2) before any payload is
// awaited. The library checks the rest of the protocol.
type frameValidator struct {
	maxBytes uint64 // of a message

	header      [14]byte
	headerBytes int    // of header
	payloadLeft uint64 // of the payload
	size        uint64 // of the message so far
	fragments   int    // of the message so far
}

func newFrameValidator(packetBytes int) frameValidator {
	return frameValidator{maxBytes: max(maxFrameBytes, 2*uint64(packetBytes))}
}

// validate returns how many bytes of b precede the first invalid header.
func (f *frameValidator) validate(b []byte) (good int, bad *frameError) {
	for at := 0; at < len(b); {
		if f.payloadLeft > 0 {
			n := min(f.payloadLeft, uint64(len(b)-at))
			f.payloadLeft -= n
			at += int(n)
			continue
		}
		if f.headerBytes == 0 {
			good = at
		}
		f.header[f.headerBytes] = b[at]
		f.headerBytes++
		at++
		encoded, bad := f.parseHeader()
		if bad != nil {
			return good, bad
		}
		if encoded {
			f.headerBytes = 0
		}
	}
	return len(b), nil
}

// parseHeader parses the available part of a header, and reports whether it is complete.
func (f *frameValidator) parseHeader() (encoded bool, bad *frameError) {
	if f.headerBytes < 2 {
		return false, nil
	}
	last, control := f.header[0]&0x80 != 0, f.header[0]&0x08 != 0
	masked, length := f.header[1]&0x80 != 0, uint64(f.header[1]&0x7f)
	switch {
	case !masked: // §5.1
		return false, newFrameError(websocket.StatusProtocolError, "a WebSocket frame of a client must be masked")
	case control && length > 125: // §5.5
		return false, newFrameError(websocket.StatusProtocolError, "a WebSocket control frame must have at most 125 bytes")
	}
	need := 2
	switch length {
	case 126:
		if need += 2; f.headerBytes >= need {
			length = uint64(binary.BigEndian.Uint16(f.header[2:]))
		}
	case 127:
		if need += 8; f.headerBytes >= need {
			length = binary.BigEndian.Uint64(f.header[2:])
		}
	}
	if f.headerBytes < need {
		return false, nil
	}
	if length>>63 != 0 {
		return false, newFrameError(websocket.StatusProtocolError, "a WebSocket frame must have fewer than 2^63 bytes")
	}
	if !control && (length > f.maxBytes || f.size+length > f.maxBytes) {
		return false, newFrameError(websocket.StatusMessageTooBig, "the WebSocket message is larger than the server's limit")
	}
	if f.headerBytes < need+4 { // masking key
		return false, nil
	}
	f.payloadLeft = length
	if control {
		return true, nil
	}
	f.size += length
	f.fragments++
	switch {
	case last:
		f.size, f.fragments = 0, 0
	case f.fragments >= maxFragments:
		return false, newFrameError(websocket.StatusMessageTooBig, "the WebSocket message has more fragments than the server's limit")
	}
	return true, nil
}

func newFrameError(code websocket.StatusCode, what string) *frameError {
	reason := packet.ProtocolError
	if code == websocket.StatusMessageTooBig {
		reason = packet.PacketTooLarge
	}
	return &frameError{&packet.Error{Reason: reason, Detail: what}, code}
}
