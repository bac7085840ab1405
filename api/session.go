package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Session is a live session: an MQTT connection, a stream, a long poll, or a request that is being answered for longer
// than a second. It is an item of [SessionList] and of [Device].
type Session struct {
	ID        watchword.SessionID `json:"id"`
	Subject   watchword.SubjectID `json:"subject"`
	Transport string              `json:"transport"`
	Remote    string              `json:"remote"` // address and port of the peer
	OpenedAt  time.Time           `json:"opened_at"`
	ExpiresAt time.Time           `json:"expires_at"` // of the session's token
	MQTT      *ClientState        `json:"mqtt,omitempty"`
}

// ClientState is the Session State of an MQTT client (MQTT 5.0 §4.1).
type ClientState struct {
	Client        string   `json:"client_id"`
	Subscriptions []string `json:"subscriptions"` // topic filters
	Messages      int      `json:"messages" doc:"messages that are queued or inflight"`
	Bytes         int      `json:"bytes" doc:"bytes of these messages"`
	Memory        int      `json:"memory" doc:"approximate bytes of server memory"`
	Dropped       int64    `json:"dropped" doc:"messages dropped from the full queue since the client last received one"`
}

// OfflineSession is a persistent MQTT session whose client has no connection.
type OfflineSession struct {
	ID             watchword.SessionID `json:"id"`
	Subject        watchword.SubjectID `json:"subject"`
	DisconnectedAt time.Time           `json:"disconnected_at"`   // when the connection ended
	ExpiresAt      time.Time           `json:"expires_at"`        // when the session does (Session Expiry Interval)
	WillAt         *time.Time          `json:"will_at,omitempty"` // when its will is due (Will Delay Interval)
	MQTT           ClientState         `json:"mqtt"`
}

// SessionList is the answer of GET /v1/sessions and GET /v1/self/sessions: live sessions in order of id, then offline
// sessions in order of subject and of client identifier. The live sessions are those of the node that answers.
type SessionList struct {
	Sessions      []Session        `json:"sessions"`
	Offline       []OfflineSession `json:"offline"`
	NextPageToken string           `json:"next_page_token,omitempty" doc:"a session whose subscriptions do not fit on one page is repeated on the next page with the rest of them"`
}

// SessionRefresh is the answer of PUT /v1/self/sessions/{id}: when the session ends with the token of this request.
type SessionRefresh struct {
	ID        watchword.SessionID `json:"id"`
	ExpiresAt time.Time           `json:"expires_at"`
}

// SessionEvent is the data of the event "session", the first one of each stream of server-sent events:
// of GET /v1/events, GET /v1/audit and GET /v1/self/commands.
type SessionEvent struct {
	Session   watchword.SessionID `json:"session"` // what PUT /v1/self/sessions/{id} refreshes
	ExpiresAt time.Time           `json:"expires_at"`
}
