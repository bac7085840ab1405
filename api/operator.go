package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Subject is an operator or a service: an item of GET /v1/operators and GET /v1/services, and the answer of the other
// addresses under them that are about one as a whole.
type Subject struct {
	ID          watchword.SubjectID `json:"id"`
	Kind        watchword.Kind      `json:"kind"`
	Role        string              `json:"role,omitempty" doc:"of an operator: owner, admin, operator, viewer, auditor, or a role that a policy defines"`
	State       watchword.State     `json:"state"`
	Labels      watchword.Labels    `json:"labels"`
	Version     int64               `json:"version"`     // grows with each change; its ETag, which If-Match takes
	Incarnation int64               `json:"incarnation"` // grows with each enrollment
	Proof       string              `json:"proof,omitempty" doc:"required: the server accepts nothing of the subject without a proof of its key"`
	CreatedAt   time.Time           `json:"created_at"`
	ChangedAt   time.Time           `json:"changed_at"`
	Enrollment  *Enrollment         `json:"enrollment,omitempty"` // in the answer of POST alone
	Keys        []DeviceKey         `json:"keys,omitempty"`       // at most 32 of them; not in lists
	Sessions    []Session           `json:"sessions,omitempty"`   // live ones, of the node that answers; in the answer of GET for one alone
	PendingLink *PendingLink        `json:"pending_link,omitempty"`
}

// OperatorList is the answer of GET /v1/operators, in order of ID.
type OperatorList struct {
	Operators     []Subject `json:"operators"`
	NextPageToken string    `json:"next_page_token,omitempty"`
}

// ServiceList is the answer of GET /v1/services, in order of ID.
type ServiceList struct {
	Services      []Subject `json:"services"`
	NextPageToken string    `json:"next_page_token,omitempty"`
}

// CreateOperatorRequest is the body of POST /v1/operators. Labels and TTL are as in [CreateDeviceRequest]; the link's lifetime
// is 24 hours if TTL is empty.
type CreateOperatorRequest struct {
	ID     string            `json:"id" maxLength:"64"`
	Role   string            `json:"role" maxLength:"64" doc:"owner, admin, operator, viewer, auditor, or a role that a policy defines"`
	Labels map[string]string `json:"labels,omitempty"`
	TTL    string            `json:"ttl,omitempty" doc:"lifetime of the link, for example 24h; at most 30 days"`
	KeyTTL string            `json:"key_ttl,omitempty" doc:"lifetime of the first key from now on, for example 12h; at most 10 years; without it the key has no end"`
}

// CreateServiceRequest is the body of POST /v1/services. Its members are as in [CreateDeviceRequest].
type CreateServiceRequest struct {
	ID     string            `json:"id" maxLength:"64"`
	Labels map[string]string `json:"labels,omitempty"`
	Proof  string            `json:"proof,omitempty" doc:"required: the server accepts nothing of the service without a proof of its key"`
	TTL    string            `json:"ttl,omitempty" doc:"lifetime of the link, for example 24h; at most 30 days"`
	KeyTTL string            `json:"key_ttl,omitempty" doc:"lifetime of the first key from now on, for example 12h; at most 10 years; without it the key has no end"`
}

// KeyLinkRequest is the body of POST /v1/operators/{id}/link, POST /v1/services/{id}/link and POST /v1/self/link, which may be
// absent. TTL and KeyTTL are as in [CreateOperatorRequest].
type KeyLinkRequest struct {
	TTL    string `json:"ttl,omitempty" doc:"lifetime of the link, for example 24h; at most 30 days"`
	KeyTTL string `json:"key_ttl,omitempty" doc:"lifetime of the key from now on, for example 12h; at most 10 years; without it the key has no end"`
}

// KeyList is the answer of GET /v1/operators/{id}/keys, GET /v1/services/{id}/keys and GET /v1/self/keys, oldest first: those that
// are active, and of the others the newest, up to 32 in all.
type KeyList struct {
	Keys []DeviceKey `json:"keys"`
}

// KeyEndRequest is the body of PUT /v1/operators/{id}/keys/{kid}/end, /v1/services/{id}/keys/{kid}/end and /v1/self/keys/{kid}/end.
type KeyEndRequest struct {
	EndsAt time.Time `json:"ends_at" doc:"end of the key, in whole seconds; earlier than the one that it has"`
}

// RoleRequest is the body of PUT /v1/operators/{id}/role.
type RoleRequest struct {
	Role string `json:"role" maxLength:"64"`
}
