package mqtt

import (
	"encoding/binary"

	"github.com/coder/websocket"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// The bounds of WebSocket frames. A frame is not held in memory, and may have several MQTT
// packets, or a part of one.
const (
	maxFrameBytes = 1 << 20 // payload of one frame, and of all fragments of one message; twice the longest packet where that is more
	maxFragments  = 1024    // frames of one message
)

// frameError is a frame that ends the connection, with the code of the close frame (RFC 6455
// §7.4.1).
type frameError struct {
	cause *packet.Error
	code  websocket.StatusCode
}

// Error is the cause's.
func (e *frameError) Error() string { return e.cause.Error() }

// Unwrap is for the reason code of MQTT.
func (e *frameError) Unwrap() error { return e.cause }

// frameValidator looks at the headers of the frames that a client sends (RFC 6455 §5.2), before
// anybody waits for what they declare. The rest of the protocol is the library's to check.
type frameValidator struct {
	maxBytes uint64 // bytes of a message

	header      [14]byte
	headerBytes int    // bytes of head
	payloadLeft uint64 // bytes of the payload that are to come
	size        uint64 // of the message so far
	fragments   int    // of the message so far
}

func newFrameValidator(packetBytes int) frameValidator {
	return frameValidator{maxBytes: max(maxFrameBytes, 2*uint64(packetBytes))}
}

// validate returns how many bytes of b stand before the first header that is refused.
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

// parseHeader judges as much of a header as is there, and reports whether it is whole.
func (f *frameValidator) parseHeader() (encoded bool, bad *frameError) {
	if f.headerBytes < 2 {
		return false, nil
	}
	last, control := f.header[0]&0x80 != 0, f.header[0]&0x08 != 0
	masked, length := f.header[1]&0x80 != 0, uint64(f.header[1]&0x7f)
	switch {
	case !masked: // §5.1
		return false, newFrameError(websocket.StatusProtocolError, "a frame of WebSocket without a mask")
	case control && length > 125: // §5.5
		return false, newFrameError(websocket.StatusProtocolError, "a control frame of WebSocket over 125 bytes")
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
		return false, newFrameError(websocket.StatusProtocolError, "a frame of WebSocket of more than 2^63 bytes")
	}
	if !control && (length > f.maxBytes || f.size+length > f.maxBytes) {
		return false, newFrameError(websocket.StatusMessageTooBig, "a longer message of WebSocket than the server takes")
	}
	if f.headerBytes < need+4 { // the mask
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
		return false, newFrameError(websocket.StatusMessageTooBig, "a message of WebSocket in more fragments than the server takes")
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
