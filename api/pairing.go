package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Pairing is a device that asked to be paired (RFC 8628), and what was decided: an item of GET /v1/enrollments, and the
// answer of GET /v1/enrollments/{user_code} and POST /v1/enrollments/{user_code}/reject.
type Pairing struct {
	UserCode    string              `json:"user_code"` // XXXX-XXXX
	State       string              `json:"state" enum:"pending,approved,rejected"`
	RequestedID watchword.SubjectID `json:"requested_id,omitempty" doc:"the id that the device would like"`
	Sign        watchword.KeyID     `json:"sign" doc:"thumbprint of the signing key: compare it with what the device shows"`
	Seal        watchword.KeyID     `json:"seal"`
	Remote      string              `json:"remote" doc:"the address that asked"`
	CreatedAt   time.Time           `json:"created_at"`
	ExpiresAt   time.Time           `json:"expires_at"`
	Device      watchword.SubjectID `json:"device,omitempty" doc:"who it became"`
	By          watchword.SubjectID `json:"by,omitempty" doc:"who decided"`
	DecidedAt   *time.Time          `json:"decided_at,omitempty"`
}

// PairingList is the answer of GET /v1/enrollments, newest first.
type PairingList struct {
	Pairings      []Pairing `json:"enrollments"`
	Pin           string    `json:"pin" doc:"what a device checks this server's root by"`
	NextPageToken string    `json:"next_page_token,omitempty"`
}

// ApprovePairingRequest is the body of POST /v1/enrollments/{user_code}/approve.
type ApprovePairingRequest struct {
	Sign   string            `json:"sign" minLength:"43" maxLength:"43" doc:"the whole thumbprint of the device's signing key, as the device shows it"`
	ID     string            `json:"id,omitempty" maxLength:"64" doc:"who it shall be; its own wish, if absent"`
	Labels map[string]string `json:"labels,omitempty"`
}
