package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Pairing is the pairing of a device (RFC 8628) and the decision on it: an item of GET /v1/enrollments, and the answer of
// GET /v1/enrollments/{user_code} and POST /v1/enrollments/{user_code}/reject.
type Pairing struct {
	UserCode    string              `json:"user_code"` // XXXX-XXXX
	State       string              `json:"state" enum:"pending,approved,rejected"`
	RequestedID watchword.SubjectID `json:"requested_id,omitempty" doc:"the id that the device requested"`
	Sign        watchword.KeyID     `json:"sign" doc:"thumbprint of the signing key; compare it with the one that the device shows"`
	Seal        watchword.KeyID     `json:"seal"`
	Remote      string              `json:"remote" doc:"the address of the device"`
	CreatedAt   time.Time           `json:"created_at"`
	ExpiresAt   time.Time           `json:"expires_at"`
	Device      watchword.SubjectID `json:"device,omitempty" doc:"the id that the device got"`
	By          watchword.SubjectID `json:"by,omitempty" doc:"the operator who decided"`
	DecidedAt   *time.Time          `json:"decided_at,omitempty"`
}

// PairingList is the answer of GET /v1/enrollments, newest first.
type PairingList struct {
	Pairings      []Pairing `json:"enrollments"`
	Pin           string    `json:"pin" doc:"SHA-256 of the SPKI of the root key, which a device compares"`
	NextPageToken string    `json:"next_page_token,omitempty"`
}

// ApprovePairingRequest is the body of POST /v1/enrollments/{user_code}/approve.
type ApprovePairingRequest struct {
	Sign   string            `json:"sign" minLength:"43" maxLength:"43" doc:"the complete thumbprint of the device's signing key, as the device shows it"`
	ID     string            `json:"id,omitempty" maxLength:"64" doc:"the id of the device; the requested id where absent"`
	Labels map[string]string `json:"labels,omitempty"`
}
