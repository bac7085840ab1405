package session

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// State is what an MQTT client has on this node: its Session State (MQTT 5.0 §4.1), with
// a connection or without.
type State struct {
	ID             watchword.SessionID // of the live session; of what is held while there is none, "" where nobody says yet what that may
	Client         string              // the client identifier
	Subject        watchword.SubjectID
	Connected      bool
	DisconnectedAt time.Time // when its connection ended
	ExpiresAt      time.Time // when it ends without another; zero: with its connection
	WillDue        time.Time // when its will is due; zero: not before the connection ends
	Filters        []string  // what it subscribes to
	Messages       int       // that wait for it, or that it has not acknowledged
	Bytes          int       // of these
	MemoryBytes    int       // of the server that it takes, about
	Dropped        int64     // messages that found no room since it last heard
}

// Retained is the retained message of one topic (MQTT 5.0 §3.3.1.3) on this node.
type Retained struct {
	Topic       string
	Owner       watchword.SubjectID // who published it; "" for the server, and for what was stored before owners were kept
	Incarnation int64               // of the owner
	Deliverable bool                // new subscribers are given it: its owner may publish it today
	QoS         byte
	MemoryBytes int       // of the server that it takes
	Expires     time.Time // zero: never
	ContentType string
	Payload     []byte // not to be changed
}
