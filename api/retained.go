package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Retained is the retained message of one topic (MQTT 5.0 §3.3.1.3) without its payload: an item of GET /v1/retained.
type Retained struct {
	Topic       string              `json:"topic"`
	Owner       watchword.SubjectID `json:"owner,omitempty" doc:"who published it; none of what was stored before owners were kept"`
	Incarnation int64               `json:"incarnation,omitempty" doc:"of the owner"`
	Deliverable bool                `json:"deliverable" doc:"new subscribers are given it: its owner may publish it today"`
	QoS         byte                `json:"qos"`
	Bytes       int                 `json:"bytes" doc:"of the payload"`
	MemoryBytes int                 `json:"memory" doc:"bytes of the server's memory that it takes"`
	ExpiresAt   *time.Time          `json:"expires_at,omitempty"`
	ContentType string              `json:"content_type,omitempty"`
}

// RetainedList is the answer of GET /v1/retained, in order of the topics' levels.
type RetainedList struct {
	Retained      []Retained `json:"retained"`
	NextPageToken string     `json:"next_page_token,omitempty" doc:"a page may be short, or empty, and have one"`
}

// RetainedDetail is a retained message with its payload: the answer of GET /v1/retained/{topic}.
type RetainedDetail struct {
	Retained
	Payload Base64 `json:"payload" doc:"base64"`
}
