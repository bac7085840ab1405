package mqtt

import "github.com/watchword-iot/watchword/internal/lockrank"

// The locks of this package, in the order in which a goroutine may take them. With one of them held it
// takes only locks further down, and never two of one kind. Test runs under the race detector check
// that; see [lockrank].
//
// Locks of other packages have their place among them. [session.Session] calls back (conn.authorityChanged
// and the like) with its own lock held: after receivingLock, before brokerLock. [bus.Bus] holds the locks of
// a topic's publications and of the retained messages while it delivers: after tenantLock, before
// sessionLock; its other locks come after sessionLock. The locks of [command.Service], of [quota.Ledger] and
// of rates come last: of this package they call only commandPump.wake, which takes pumpLock.
//
// The first two are held while packets are handled, and so while a store is read or written: the packets
// of a connection keep their order, and a PUBLISH with QoS 2 is received once. None of the others is held
// while something is written to a connection or a store.
type (
	processingLock struct{} // conn.processing: one goroutine at a time handles the packets of a connection
	receivingLock  struct{} // sessionState.receiving: one PUBLISH with QoS 2 of a session at a time
	brokerLock     struct{} // Broker.mu: the tenants, and connections before CONNECT
	tenantLock     struct{} // tenant.mu: the sessions by client identifier
	sessionLock    struct{} // sessionState.mu: the Session State, and the outgoing side of its connection
	offlineLock    struct{} // offlineList.mu: the sessions without a connection, in order
	willsLock      struct{} // willStore.mu
	committerLock  struct{} // committer.mu: what is collected for the next write
	pumpLock       struct{} // commandPump.mu: delivery of a device's commands
	purgeLock      struct{} // retainedPurge.mu: owners of retained messages that are to be checked
	statsLock      struct{} // stats.mu
)

// LockInfo is [lockrank.Kind]'s, as for all others here.
func (processingLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt conn.processing", Rank: 110, Blocking: true}
}

// LockInfo is [lockrank.Kind]'s.
func (receivingLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt sessionState.receiving", Rank: 120, Blocking: true}
}

// LockInfo is [lockrank.Kind]'s.
func (brokerLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "mqtt Broker.mu", Rank: 130} }

// LockInfo is [lockrank.Kind]'s.
func (tenantLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "mqtt tenant.mu", Rank: 140} }

// LockInfo is [lockrank.Kind]'s.
func (sessionLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt sessionState.mu", Rank: 160}
}

// LockInfo is [lockrank.Kind]'s.
func (offlineLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt offlineList.mu", Rank: 165}
}

// LockInfo is [lockrank.Kind]'s.
func (willsLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "mqtt willStore.mu", Rank: 190} }

// LockInfo is [lockrank.Kind]'s.
func (committerLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt committer.mu", Rank: 200}
}

// LockInfo is [lockrank.Kind]'s.
func (pumpLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt commandPump.mu", Rank: 210}
}

// LockInfo is [lockrank.Kind]'s.
func (purgeLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "mqtt retainedPurge.mu", Rank: 220}
}

// LockInfo is [lockrank.Kind]'s.
func (statsLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "mqtt stats.mu", Rank: 230} }
