package mqtt_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// encodedPublish is the header of a client's frame, with a mask of zeros.
func encodedPublish(first byte, length uint64) []byte {
	switch {
	case length < 126:
		return []byte{first, 0x80 | byte(length), 0, 0, 0, 0}
	case length < 1<<16:
		return append(binary.BigEndian.AppendUint16([]byte{first, 0x80 | 126}, uint16(length)), 0, 0, 0, 0)
	}
	return append(binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, length), 0, 0, 0, 0)
}

const (
	finalBinary = 0x82
	firstBinary = 0x02
	more        = 0x00
	finalPing   = 0x89
	upgrade     = "GET / HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)

// A frame that is refused is refused at its header: no byte of what it declares is awaited.
func TestFramesOfWebSocketThatAreRefused(t *testing.T) {
	srv := newTestServer(t, mqtt.Options{})
	s := httptest.NewServer(srv.broker)
	defer s.Close()
	connect := packet.Append(nil, hello(packet.V5, "d", srv.token("d", time.Hour)), packet.V5)
	encoded := append(encodedPublish(finalBinary, uint64(len(connect))), connect...)
	endless := encodedPublish(firstBinary, 1)[:2:2]
	endless = append(endless, 0, 0, 0, 0, connect[0])
	for range 1023 {
		endless = append(endless, encodedPublish(more, 0)...)
	}
	unmasked := append([]byte{finalBinary, byte(len(connect))}, connect...)
	for _, tc := range []struct {
		name string
		sent []byte
		code uint16
		mqtt packet.Reason // of the DISCONNECT before, where there is one
	}{
		{"2^62 bytes", encodedPublish(finalBinary, 1<<62)[:10], 1009, 0},
		{"2^62 bytes in a session", append(encoded, encodedPublish(finalBinary, 1<<62)[:10]...), 1009, packet.PacketTooLarge},
		{"2^63 bytes", encodedPublish(finalBinary, 1<<63)[:10], 1002, 0},
		{"one byte too many", encodedPublish(finalBinary, 1<<20+1)[:10], 1009, 0},
		{"fragments of together one byte too many", append(append(encodedPublish(firstBinary, 1<<20), connect...), append(pings(1<<20-len(connect)), encodedPublish(more, 1)[:2]...)...), 1009, packet.PacketTooLarge},
		{"fragments without end", endless, 1009, 0},
		{"a ping of 126 bytes", encodedPublish(finalPing, 126)[:2], 1002, 0},
		{"a frame without a mask", unmasked, 1002, 0},
		{"a frame without a mask in a session", append(encoded[:len(encoded):len(encoded)], 0x82, 0x01), 1002, packet.ProtocolError},
	} {
		for _, early := range []bool{false, true} { // with the request, or after its answer
			t.Run(fmt.Sprint(tc.name, "/early ", early), func(t *testing.T) {
				nc, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				if err := nc.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(nc)
				write := func(b []byte) {
					if _, err := nc.Write(b); err != nil {
						t.Fatal(err)
					}
				}
				if early {
					write(append([]byte(upgrade), tc.sent...))
				} else {
					write([]byte(upgrade))
				}
				if a, err := http.ReadResponse(r, nil); err != nil || a.StatusCode != http.StatusSwitchingProtocols {
					t.Fatal(a, err)
				}
				if !early {
					write(tc.sent)
				}
				var last []byte
				for {
					first, payload := readFrame(t, r)
					if first == 0x88 {
						if got := binary.BigEndian.Uint16(payload); got != tc.code {
							t.Errorf("closed with %d %q, want %d", got, payload[2:], tc.code)
						}
						break
					}
					last = append(last, payload...)
				}
				if tc.mqtt != 0 && !strings.Contains(string(last), string(packetStart(tc.mqtt))) {
					t.Errorf("before that came %x", last)
				}
			})
		}
	}
}

// packetStart is the part of a DISCONNECT with that reason after its length.
func packetStart(r packet.Reason) []byte { return []byte{byte(r)} }

func readFrame(t *testing.T, r io.Reader) (first byte, payload []byte) {
	t.Helper()
	var head [4]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		t.Fatal(err)
	}
	n := int(head[1])
	if n == 126 {
		if _, err := io.ReadFull(r, head[2:]); err != nil {
			t.Fatal(err)
		}
		n = int(binary.BigEndian.Uint16(head[2:]))
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	return head[0], payload
}

// What is not refused is taken: the largest frame, many fragments, pings between them,
// and headers in pieces.
func TestFramesOfWebSocketThatAreTaken(t *testing.T) {
	srv := newTestServer(t, mqtt.Options{})
	s := httptest.NewServer(srv.broker)
	defer s.Close()
	connect := packet.Append(nil, hello(packet.V5, "d", srv.token("d", time.Hour)), packet.V5)
	ping := packet.Append(nil, &packet.Ping{}, packet.V5)
	first := append(encodedPublish(firstBinary, uint64(len(connect)))[:6:6], connect...)
	if len(connect) >= 126 {
		first = append(encodedPublish(firstBinary, uint64(len(connect))), connect...)
	}
	for range 1021 {
		first = append(first, encodedPublish(more, 0)...)
	}
	first = append(append(first, append(encodedPublish(finalPing, 125), make([]byte, 125)...)...), append(encodedPublish(0x80, uint64(len(ping))), ping...)...)
	nc, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(nc)
	go func() {
		for _, b := range []byte(upgrade) { // an error shows in what is read
			_, _ = nc.Write([]byte{b})
		}
		for _, b := range first[:min(len(first), 400)] {
			_, _ = nc.Write([]byte{b})
		}
		_, _ = nc.Write(first[min(len(first), 400):])
		_, _ = nc.Write(encodedPublish(finalBinary, 1<<20))
		_, _ = nc.Write(pings(1 << 20))
		_, _ = nc.Write(append(encodedPublish(finalBinary, 2), 0xe0, 0)) // DISCONNECT
	}()
	if a, err := http.ReadResponse(r, nil); err != nil || a.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(a, err)
	}
	answers, pongs := 0, 0
	for {
		first, payload := readFrame(t, r)
		switch first {
		case 0x8a:
			pongs++
			continue
		case finalBinary:
			answers += len(payload)
			continue
		}
		if code := binary.BigEndian.Uint16(payload); first != 0x88 || code != 1000 || answers == 0 || pongs != 1 {
			t.Fatalf("after %d bytes and %d pongs came a frame %x %d %q", answers, pongs, first, code, payload)
		}
		return
	}
}

// pings is n bytes of PINGREQ, and a part of one where n is odd.
func pings(n int) []byte {
	return bytes.Repeat([]byte{0xc0, 0}, (n+1)/2)[:n]
}
