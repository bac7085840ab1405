package mqtt

import (
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/bus"
)

// stats counts events of the engine.
type stats struct {
	connections, subscriptions                                             atomic.Int64
	connects, refusedConnects, received, sent                              atomic.Int64
	tooLarge, slowClosed, delayedPublishes, commands, takeovers, refreshes atomic.Int64
	dropped, expired, floodClosed                                          atomic.Int64

	mu       lockrank.Mutex[statsLock]
	refusals map[watchword.Code]int64 // at most one entry per code
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
	s.refusals[errorCodeOf(err)]++
}

// Stats holds counters since the start, and current values.
type Stats struct {
	Connections        int64                    // current, including those before CONNECT
	Clients            int64                    // current, connected
	Subscriptions      int64                    // current
	SubscriptionBytes  int64                    // bytes of memory
	QueuedBytes        int64                    // current, of connected clients, beyond 16 KiB of each
	ConnectionBytes    int64                    // topic aliases and packet identifiers, beyond 4 KiB of each connection or session
	Connects           int64                    // accepted CONNECTs
	RefusedConnects    int64                    // refused CONNECTs
	FloodClosed        int64                    // connections closed before anything else because of their rate
	Received           int64                    // publishes from clients
	Sent               int64                    // publishes to clients
	Commands           int64                    // delivered
	TooLarge           int64                    // messages above a client's Maximum Packet Size
	SlowClosed         int64                    // connections closed because the client did not read
	DelayedPublishes   int64                    // publishes delayed by their rate limit
	Takeovers          int64                    // connections taken over
	Refreshes          int64                    // refreshed sessions
	Dropped            int64                    // messages dropped because a queue or quota was full
	Expired            int64                    // messages that expired before they were sent
	PersistentSessions int64                    // current persistent sessions, connected or not
	OfflineMessages    int64                    // current messages stored for them
	OfflineBytes       int64                    // bytes of wills
	Retained           int64                    // current retained messages
	RetainedBytes      int64                    // bytes of wills
	Wills              int64                    // current wills, including delayed ones
	WillBytes          int64                    // bytes of wills
	Refusals           map[watchword.Code]int64 // since the start, by code
}

// Stats returns the current values.
func (b *Broker) Stats() Stats {
	s := &b.stats
	out := Stats{
		Connections: s.connections.Load(), Subscriptions: s.subscriptions.Load(), Connects: s.connects.Load(), RefusedConnects: s.refusedConnects.Load(),
		Received: s.received.Load(), Sent: s.sent.Load(), Commands: s.commands.Load(), TooLarge: s.tooLarge.Load(), SlowClosed: s.slowClosed.Load(),
		DelayedPublishes: s.delayedPublishes.Load(), Takeovers: s.takeovers.Load(), Refreshes: s.refreshes.Load(),
		FloodClosed: s.floodClosed.Load(), Dropped: s.dropped.Load(), Expired: s.expired.Load(), PersistentSessions: b.persistentCount.Load(), OfflineMessages: b.committer.storedMessages.Load(), OfflineBytes: b.committer.storedBytes.Load(), Refusals: map[watchword.Code]int64{},
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
			if st.load.Load() != bus.OfflineLoad {
				out.Clients++
			}
		}
		tn.mu.Unlock()
	}
	return out
}
