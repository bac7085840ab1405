package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Retained is the retained message of one topic (MQTT 5.0 §3.3.1.3) without its payload: an item of GET /v1/retained.
type Retained struct {
	Topic       string              `json:"topic"`
	Owner       watchword.SubjectID `json:"owner,omitempty" doc:"the subject that published the message; absent for messages that were stored before owners were recorded"`
	Incarnation int64               `json:"incarnation,omitempty" doc:"incarnation of the owner when it published"`
	Deliverable bool                `json:"deliverable" doc:"new subscribers receive the message: policy still allows its owner to publish it"`
	QoS         byte                `json:"qos"`
	Bytes       int                 `json:"bytes" doc:"bytes of the payload"`
	MemoryBytes int                 `json:"memory" doc:"bytes of server memory that the message takes"`
	ExpiresAt   *time.Time          `json:"expires_at,omitempty"`
	ContentType string              `json:"content_type,omitempty"`
}

// RetainedList is the answer of GET /v1/retained, in order of the topics' levels.
type RetainedList struct {
	Retained      []Retained `json:"retained"`
	NextPageToken string     `json:"next_page_token,omitempty" doc:"a short or empty page may have one too"`
}

// RetainedDetail is a retained message with its payload: the answer of GET /v1/retained/{topic}.
type RetainedDetail struct {
	Retained
	Payload Base64 `json:"payload" doc:"base64"`
}
