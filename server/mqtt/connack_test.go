package mqtt

import (
	"fmt"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// CONNACK names what was lost only where it fits into what the client takes: what mayName lets through always does.
func TestConnackListsLostSubscriptionsWithinLimit(t *testing.T) {
	for _, names := range []int{1, 2, maxReportedLost, maxReportedLost + 1} {
		lost := make([]string, names)
		for i := range lost {
			lost[i] = fmt.Sprintf("%02d/%s", i, strings.Repeat("x", 97))
		}
		encoded := 512 + names*(9+100) // the rest of CONNACK may have 512; a pair takes 5 bytes beside its two strings
		for _, tc := range []struct {
			largest int
			want    bool
		}{
			{0, names <= maxReportedLost}, {encoded, names <= maxReportedLost}, {encoded - 1, false}, {encoded + 1, names <= maxReportedLost},
		} {
			c := &conn{version: packet.V5}
			c.out.maxPacket = tc.largest
			if got := c.connackHasRoomFor(lost); got != tc.want {
				t.Errorf("%d names, a client that takes %d bytes: %v", names, tc.largest, got)
			}
		}
		ack := &packet.Connack{}
		for _, f := range lost {
			ack.Properties.User = append(ack.Properties.User, packet.UserProp{Name: "lost", Value: f})
		}
		if got := len(packet.Append(nil, ack, packet.V5)); got > encoded-512+16 {
			t.Errorf("%d names take %d bytes, counted are %d", names, got, encoded-512)
		}
	}
}
