package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// Device is a device: an item of GET /v1/devices, and the answer of the other addresses under /v1/devices that are about
// a device as a whole, and of POST /v1/enrollments/{user_code}/approve.
type Device struct {
	ID          watchword.SubjectID `json:"id"`
	Kind        watchword.Kind      `json:"kind"`
	State       watchword.State     `json:"state"`
	Labels      watchword.Labels    `json:"labels"`
	Name        string              `json:"name,omitempty" doc:"what people call it; nothing is decided by it"`
	Version     int64               `json:"version"`     // grows with each change; its ETag, which If-Match takes
	Incarnation int64               `json:"incarnation"` // grows with each enrollment
	Proof       string              `json:"proof,omitempty" doc:"required: the server accepts nothing of the device without a proof of its key"`
	Online      bool                `json:"online,omitempty" doc:"in lists: it has a live connection to the node that answers"`
	LastSeenAt  *time.Time          `json:"last_seen_at,omitempty" doc:"when it last began or ended a session or a request, to ten minutes"`
	CreatedAt   time.Time           `json:"created_at"`
	ChangedAt   time.Time           `json:"changed_at"`
	Enrollment  *Enrollment         `json:"enrollment,omitempty"` // in the answer of POST /v1/devices alone
	Keys        []DeviceKey         `json:"keys,omitempty"`       // at most 32 of them; not in lists
	Functions   []Function          `json:"functions,omitempty"`  // in the answer of GET /v1/devices/{id} alone
	Sessions    []Session           `json:"sessions,omitempty"`   // live ones, of the node that answers; as Functions
	PendingLink *PendingLink        `json:"pending_link,omitempty"`
}

// PendingLink is the one-time link of a subject that was not used yet: part of the answer of GET /v1/devices/{id},
// /v1/operators/{id} and /v1/services/{id}. The link itself is not shown again.
type PendingLink struct {
	CreatedBy watchword.SubjectID `json:"created_by,omitempty" doc:"who made it; absent for a link that was made on the server's machine"`
	ExpiresAt time.Time           `json:"expires_at"`
	KeyEndsAt *time.Time          `json:"key_ends_at,omitempty" doc:"end of the key that enrolls with the link"`
}

// Enrollment is a one-time enrollment link: part of the answer of POST /v1/devices, POST /v1/operators and POST /v1/services, and
// the answer of POST /v1/devices/{id}/link, of the same of operators and services, and of POST /v1/self/link. The server does not show it again.
type Enrollment struct {
	Link      string    `json:"link"` // the URL; code and pin are in its fragment
	Code      string    `json:"code"`
	Pin       string    `json:"pin"` // SHA-256 of the root's SPKI, in base64url: 43 characters
	ExpiresAt time.Time `json:"expires_at"`
	// KeyEndsAt is the end of the key that enrolls with the link; nil for none.
	KeyEndsAt *time.Time `json:"key_ends_at,omitempty" doc:"end of the key that enrolls with the link"`
}

// DeviceKey is one of a subject's public keys, in a [Device].
type DeviceKey struct {
	ID      watchword.KeyID    `json:"id"` // thumbprint (RFC 7638)
	Purpose watchword.Purpose  `json:"purpose"`
	State   watchword.KeyState `json:"state"`
	Name    string             `json:"name,omitempty" doc:"what its holder calls the machine that keeps it"`
	AddedAt time.Time          `json:"added_at"`
	EndsAt  *time.Time         `json:"ends_at,omitempty" doc:"end of the key, in whole seconds: what it signs from then on is refused"`
	Retired *time.Time         `json:"retired_at,omitempty" doc:"when another key replaced it, or its end"`
	JWK     json.RawMessage    `json:"jwk"` // public (RFC 7517)
}

// DeviceList is the answer of GET /v1/devices. A page may be short, or empty, and have a next one.
type DeviceList struct {
	Devices       []Device `json:"devices"`
	NextPageToken string   `json:"next_page_token,omitempty"`
}

// CreateDeviceRequest is the body of POST /v1/devices. ID and the labels' keys and values are names
// ([watchword.ValidName]); there are at most [watchword.MaxLabels] labels. TTL is a duration of package time; empty means
// 24 hours.
type CreateDeviceRequest struct {
	ID     string            `json:"id" maxLength:"64"`
	Labels map[string]string `json:"labels,omitempty"`
	Name   string            `json:"name,omitempty" doc:"what people call it: at most 128 bytes of UTF-8 without control characters"`
	Proof  string            `json:"proof,omitempty" doc:"required: the server accepts nothing of the device without a proof of its key"`
	TTL    string            `json:"ttl,omitempty" doc:"lifetime of the link, for example 24h; at most 30 days"`
}

// LinkRequest is the body of POST /v1/devices/{id}/link, which may be absent. TTL is as in [CreateDeviceRequest].
type LinkRequest struct {
	TTL string `json:"ttl,omitempty"`
}

// LabelsRequest is the body of PUT /v1/devices/{id}/labels: all labels that the device has from then on.
type LabelsRequest struct {
	Labels map[string]string `json:"labels"`
}

// NameRequest is the body of PUT /v1/devices/{id}/name.
type NameRequest struct {
	Name string `json:"name" doc:"at most 128 bytes of UTF-8 without control characters; empty for none"`
}

// ProofRequest is the body of PUT /v1/devices/{id}/proof: [watchword.RequireProof] or empty.
type ProofRequest struct {
	Proof string `json:"proof" doc:"required or empty"`
}

// ReasonRequest is the body of POST /v1/devices/{id}/suspend, resume and revoke, and of POST /v1/keys/{id}/revoke. It
// may be absent.
type ReasonRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"200"`
}

// Function is a function that a device can be asked to run. Schema is the JSON Schema of its arguments; nil takes any object.
type Function struct {
	Name   string          `json:"name"`
	Schema json.RawMessage `json:"schema,omitempty"`
}

// FunctionList is the body of PUT /v1/self/functions, of at most 96 KiB, and the answer of GET /v1/self/functions. All
// schemas together have at most 4096 objects.
type FunctionList struct {
	Functions []Function `json:"functions" maxItems:"256"`
}
