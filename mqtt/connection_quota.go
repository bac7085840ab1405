package mqtt

import (
	"github.com/watchword-iot/watchword/internal/quota"
)

// What a connection or a session remembers between packets is counted against its subject:
// its first rememberFree bytes are not, and the rest is in steps, so that hardly a packet
// asks the account.
const (
	connectionFreeBytes  = 4 << 10
	connectionChargeStep = 4 << 10

	// receivedEntryBytes is what an identifier of QoS 2 takes in the map, which does not shrink.
	receivedEntryBytes = 36
	// smallReceivedMap is how many identifiers fit a map that is kept when it is empty.
	smallReceivedMap = 8
	// inboundAliasBytes is what a topic alias of the client takes beside the topic, and sentBytes
	// one of the server.
	inboundAliasBytes  = 16
	outboundAliasBytes = 48
)

// chargedBytes is what of that one connection or session is counted now.
type chargedBytes int64

// resize has n bytes remembered from now on. Code: busy, where that is more than before and
// its account has no room, only where it is bounded.
func (c *chargedBytes) resize(q *quota.Ledger[quota.Key], k quota.Key, n int, bounded bool) error {
	want := roundUpToStep(int64(n)-connectionFreeBytes, connectionChargeStep)
	switch more := want - int64(*c); {
	case more > 0 && bounded:
		if err := q.Reserve(k, more); err != nil {
			return err
		}
	case more > 0:
		q.Add(k, more)
	case more < 0:
		q.Release(k, -more)
	}
	*c = chargedBytes(want)
	return nil
}

// allocatedSize is what the bytes of a text take, which memory rounds up.
func allocatedSize(s string) int { return (len(s) + 15) &^ 15 }
