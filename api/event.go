package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// Event is an event that a device published: the data of the event "event" of the stream of GET /v1/events. Data is
// there where the body was JSON, DataBase64 (standard base64) where it was not; the body has at most 32 KiB.
type Event struct {
	ID          string              `json:"id"` // what Last-Event-ID takes
	Device      watchword.SubjectID `json:"device"`
	Stream      string              `json:"stream"`
	ContentType string              `json:"content_type,omitempty"`
	At          time.Time           `json:"at"` // when the server got it
	Data        json.RawMessage     `json:"data,omitempty"`
	DataBase64  string              `json:"data_base64,omitempty"`
}

// EventGap is the data of the event "gap" of the stream of GET /v1/events: how many events the reader missed, since they
// came faster than it read, or while it was offline.
type EventGap struct {
	Missed  int64                         `json:"missed"`
	Devices map[watchword.SubjectID]int64 `json:"devices,omitempty" doc:"missed events by device; at most 32 devices"`
	Others  int64                         `json:"others,omitempty" doc:"missed events of further devices"`
	More    bool                          `json:"more,omitempty" doc:"more events may have been missed; the server no longer knows them"`
}

// PublishResponse is the answer of POST /v1/self/events/{stream}.
type PublishResponse struct {
	ID string `json:"id"` // of the [Event]
}
