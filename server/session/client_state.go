package session

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// State is the Session State of an MQTT client on this node (MQTT 5.0 §4.1), connected or not.
type State struct {
	ID             watchword.SessionID // id of the live or offline session; "" while the authority of an offline session is not known yet
	Client         string              // client identifier
	Subject        watchword.SubjectID
	Connected      bool
	DisconnectedAt time.Time // when its connection ended
	ExpiresAt      time.Time // when it expires if the client does not reconnect; zero: with its connection
	WillDue        time.Time // when its will is due; zero: not before the connection ends
	Filters        []string  // filters of its subscriptions
	Messages       int       // messages that are stored for it or not acknowledged
	Bytes          int       // bytes of wills
	MemoryBytes    int       // memory of the server that it takes, estimated
	Dropped        int64     // messages dropped because its queue was full, since the last report to the client
}

// OfflinePlace is a place in the list of offline sessions, which is in order of subject and of client identifier. With an empty
// Client it is before all sessions of the subject.
type OfflinePlace struct {
	Subject watchword.SubjectID
	Client  string
}

// Retained is the retained message of one topic (MQTT 5.0 §3.3.1.3) on this node.
type Retained struct {
	Topic       string
	Owner       watchword.SubjectID // its publisher; "" for the server, and for messages that were stored before owners were recorded
	Incarnation int64               // incarnation of the owner
	Deliverable bool                // sent to new subscribers: the owner may publish it now
	QoS         byte
	MemoryBytes int       // memory of the server that it takes
	Expires     time.Time // zero: never
	ContentType string
	Payload     []byte // must not be changed
}
