package session

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// State is what an MQTT client has on this node: its Session State (MQTT 5.0 §4.1), with
// a connection or without.
type State struct {
	ID       watchword.SessionID // of the live session; of what is held while there is none, "" where nobody says yet what that may
	Client   string              // the client identifier
	Subject  watchword.SubjectID
	Live     bool
	Left     time.Time // when its connection ended
	Ends     time.Time // when it ends without another; zero: with its connection
	Will     time.Time // when its will is due; zero: not before the connection ends
	Filters  []string  // what it subscribes to
	Messages int       // that wait for it, or that it has not acknowledged
	Bytes    int       // of these
	Memory   int       // of the server that it takes, about
	Dropped  int64     // messages that found no room since it last heard
}
