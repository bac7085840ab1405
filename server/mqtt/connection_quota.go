package mqtt

import (
	"github.com/watchword-iot/watchword/internal/quota"
)

// Memory of connections and sessions is charged to their subject in steps, beyond the first
// connectionFreeBytes, so that few packets need the ledger.
const (
	connectionFreeBytes  = 4 << 10
	connectionChargeStep = 4 << 10

	// receivedEntryBytes is the memory of one QoS 2 packet identifier in the map, which does not
	// shrink.
	receivedEntryBytes = 36
	// smallReceivedMap is the size up to which an empty map is kept.
	smallReceivedMap = 8
	// inboundAliasBytes is the memory of a client's topic alias beside the topic;
	// outboundAliasBytes that of a server's.
	inboundAliasBytes  = 16
	outboundAliasBytes = 48
)

// chargedBytes is what one connection or session is charged now.
type chargedBytes int64

// resize changes the charge to n bytes. Code: busy if it grows beyond the limit, only where
// bounded.
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

// allocatedSize returns the memory of a string, rounded up as the allocator does.
func allocatedSize(s string) int { return (len(s) + 15) &^ 15 }
