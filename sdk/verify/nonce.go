package verify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// nonceLife is how long a nonce is given out. It is taken for one such time more,
// and one earlier, since the clocks of several instances differ.
const nonceLife = 2 * time.Minute

// nonces makes the DPoP nonces of a resource server (RFC 9449 §9) from a key and the
// time, so that there is nothing to remember.
type nonces struct{ key []byte }

func (n *nonces) at(slot int64) string {
	mac := hmac.New(sha256.New, n.key)
	mac.Write([]byte("watchword dpop nonce\x00"))
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(slot)))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:18])
}

func slotOf(now time.Time) int64 { return now.Unix() / int64(nonceLife/time.Second) }

// current is the nonce to use from now on.
func (n *nonces) current(now time.Time) string { return n.at(slotOf(now)) }

// valid reports whether nonce is ours and not too old.
func (n *nonces) valid(nonce string, now time.Time) bool {
	slot, good := slotOf(now), false
	for _, s := range []int64{slot, slot - 1, slot + 1} {
		good = hmac.Equal([]byte(nonce), []byte(n.at(s))) || good
	}
	return good
}
