package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// Self is what a subject sees of itself: the answer of GET /v1/self.
type Self struct {
	ID          watchword.SubjectID `json:"id"`
	Kind        watchword.Kind      `json:"kind"`
	Role        string              `json:"role,omitempty" doc:"of an operator"`
	State       watchword.State     `json:"state"`
	Labels      watchword.Labels    `json:"labels"`
	Incarnation int64               `json:"incarnation"`
	Issuer      string              `json:"issuer"`
	Token       SelfToken           `json:"token"`
	Permissions SelfPermissions     `json:"permissions"`
}

// SelfToken is the token of the request.
type SelfToken struct {
	JTI       string          `json:"jti"`
	ExpiresAt time.Time       `json:"expires_at"`
	Key       watchword.KeyID `json:"key"` // that it was issued to
	KeyEndsAt *time.Time      `json:"key_ends_at,omitempty" doc:"end of the key"`
}

// SelfPermissions is what policy gives today; the token may give less. Each line is [resource, [action…]].
type SelfPermissions struct {
	Perm []json.RawMessage `json:"perm"`
	Deny []json.RawMessage `json:"deny"`
}
