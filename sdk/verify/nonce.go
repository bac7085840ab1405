package verify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// nonceLife is the time for which a nonce is issued. It is accepted for one such time longer, and one earlier, since the
// clocks of several instances differ.
const nonceLife = 2 * time.Minute

// nonces computes the DPoP nonces of a resource server (RFC 9449 §9) from a key and the time, so that no nonce is stored.
type nonces struct{ key []byte }

func (n *nonces) at(slot int64) string {
	mac := hmac.New(sha256.New, n.key)
	mac.Write([]byte("watchword dpop nonce\x00"))
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(slot)))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:18])
}

func slotOf(now time.Time) int64 { return now.Unix() / int64(nonceLife/time.Second) }

// current returns the nonce that clients should use now.
func (n *nonces) current(now time.Time) string { return n.at(slotOf(now)) }

// valid reports whether nonce was issued with this key and is not too old.
func (n *nonces) valid(nonce string, now time.Time) bool {
	slot, good := slotOf(now), false
	for _, s := range []int64{slot, slot - 1, slot + 1} {
		good = hmac.Equal([]byte(nonce), []byte(n.at(s))) || good
	}
	return good
}
