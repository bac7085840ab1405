package mqtt

import (
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
)

// stats counts what the engine does.
type stats struct {
	connections, subscriptions                                             atomic.Int64
	connects, refusedConnects, received, sent                              atomic.Int64
	tooLarge, slowClosed, delayedPublishes, commands, takeovers, refreshes atomic.Int64
	dropped, expired, floodClosed                                          atomic.Int64

	mu       lockrank.Mutex[statsLock]
	refusals map[watchword.Code]int64 // never holds more than there are codes
}

func (s *stats) countRefusal(err error) {
	if err == nil || err == errTakenOver {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusals == nil {
		s.refusals = map[watchword.Code]int64{}
	}
	s.refusals[codeOf(err)]++
}

// Stats is what the engine has done since its start, and what it holds now.
type Stats struct {
	Connections        int64                    // now, with those that have not come to CONNECT yet
	Clients            int64                    // now, connected
	Subscriptions      int64                    // now
	SubscriptionBytes  int64                    // of memory that these take
	QueuedBytes        int64                    // now, for connected clients, of what is beyond 16 KiB of each
	ConnectionBytes    int64                    // of topic aliases and packet identifiers, of what is beyond 4 KiB of each connection or session
	Connects           int64                    // accepted
	RefusedConnects    int64                    // CONNECTs refused
	FloodClosed        int64                    // connections of a flood, closed before anything was spent on them
	Received           int64                    // publishes from clients
	Sent               int64                    // publishes to clients
	Commands           int64                    // handed over
	TooLarge           int64                    // messages that a client would not take
	SlowClosed         int64                    // connections cut since they were not read
	DelayedPublishes   int64                    // publishes that had to wait for their rate
	Takeovers          int64                    // connections whose client connected again
	Refreshes          int64                    // sessions that go on with a newer token
	Dropped            int64                    // messages that found no room where they were to wait
	Expired            int64                    // messages whose life ended before they were sent
	PersistentSessions int64                    // sessions now that outlive their connection, with one or without
	OfflineMessages    int64                    // messages now that are kept for them
	OfflineBytes       int64                    // that these take
	Retained           int64                    // retained messages now
	RetainedBytes      int64                    // that these take
	Wills              int64                    // that stand now: of connections, and of those that ended and whose will is not due yet
	WillBytes          int64                    // that these count
	Refusals           map[watchword.Code]int64 // since the start, by code
}

// Stats returns the numbers of this moment.
func (b *Broker) Stats() Stats {
	s := &b.stats
	out := Stats{
		Connections: s.connections.Load(), Subscriptions: s.subscriptions.Load(), Connects: s.connects.Load(), RefusedConnects: s.refusedConnects.Load(),
		Received: s.received.Load(), Sent: s.sent.Load(), Commands: s.commands.Load(), TooLarge: s.tooLarge.Load(), SlowClosed: s.slowClosed.Load(),
		DelayedPublishes: s.delayedPublishes.Load(), Takeovers: s.takeovers.Load(), Refreshes: s.refreshes.Load(),
		FloodClosed: s.floodClosed.Load(), Dropped: s.dropped.Load(), Expired: s.expired.Load(), PersistentSessions: b.persistentCount.Load(), OfflineMessages: b.journal.storedMessages.Load(), OfflineBytes: b.journal.storedBytes.Load(), Refusals: map[watchword.Code]int64{},
	}
	out.Retained, out.RetainedBytes = b.deps.Bus.Retained()
	out.SubscriptionBytes, out.QueuedBytes, out.ConnectionBytes = b.deps.Bus.SubscriptionBytes(), b.queueQuota.Total(), b.connectionQuota.Total()
	s.mu.Lock()
	for k, v := range s.refusals {
		out.Refusals[k] = v
	}
	s.mu.Unlock()
	out.Wills, out.WillBytes = b.wills.count()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, tn := range b.tenants {
		tn.mu.Lock()
		for _, st := range tn.clients {
			if st.load.Load() != offlineLoad {
				out.Clients++
			}
		}
		tn.mu.Unlock()
	}
	return out
}

// Accounts returns how many subjects the rates remember at that moment: those that have a
// connection, and those that did more than is forgotten by then.
func (b *Broker) Accounts(now time.Time) int {
	return b.publishRates.Len(now) + b.controlRates.Len(now)
}
