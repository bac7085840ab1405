package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// ServerKey is one of the server's own keys: an item of GET /v1/keys, and the answer of POST /v1/keys/{role}/rotate and
// POST /v1/keys/{id}/revoke.
type ServerKey struct {
	ID        watchword.KeyID `json:"id"`
	Role      string          `json:"role"`  // keyring.Role
	State     string          `json:"state"` // keyring.State
	Alg       string          `json:"alg"`
	CreatedAt time.Time       `json:"created_at"`
	StartsAt  *time.Time      `json:"starts_at,omitempty" doc:"when the key begins to sign, or began"`
	EndsAt    *time.Time      `json:"ends_at,omitempty" doc:"when a retiring key is deleted"`
	Offline   bool            `json:"offline,omitempty" doc:"the private key is not on the server"`
}

// ServerKeyList is the answer of GET /v1/keys, oldest first.
type ServerKeyList struct {
	Keys          []ServerKey `json:"keys"`
	NextPageToken string      `json:"next_page_token,omitempty"`
	Pin           string      `json:"pin" doc:"SHA-256 of the active root's SPKI"` // base64url, 43 characters
	Bundle        TrustBundle `json:"bundle"`
}

// TrustBundle says of the trust bundle in force how long it lasts.
type TrustBundle struct {
	Epoch     int64     `json:"epoch" doc:"counts before ver: a bundle of a higher epoch is newer"`
	Version   int64     `json:"ver"`
	ExpiresAt time.Time `json:"expires_at"`
	Ahead     int       `json:"ahead" doc:"number of bundles that are signed in advance"`
	Stale     string    `json:"stale,omitempty" doc:"why an offline root has to sign another bundle"`
}

// RotateKeyRequest is the body of POST /v1/keys/{role}/rotate, which may be absent.
type RotateKeyRequest struct {
	Now bool `json:"now,omitempty" doc:"the next key signs at once, before all readers have fetched it"`
}

// PlanBundlesRequest is the body of POST /v1/keys/bundles/plan.
type PlanBundlesRequest struct {
	Count int `json:"count" minimum:"1" maximum:"24"`
}

// PlannedBundle is a trust bundle that an offline root has to sign.
type PlannedBundle struct {
	Epoch     int64             `json:"epoch"`
	Version   int64             `json:"ver"`
	StartsAt  time.Time         `json:"starts_at"`
	ExpiresAt time.Time         `json:"expires_at"`
	Roots     []watchword.KeyID `json:"roots" doc:"thumbprints of the root keys that have to sign the bundle"`
	Payload   string            `json:"payload" doc:"the bytes that each root key signs"`
}

// PlannedBundles is the answer of POST /v1/keys/bundles/plan, in order of Version.
type PlannedBundles struct {
	Bundles []PlannedBundle `json:"bundles"`
}

// ImportBundlesRequest is the body of POST /v1/keys/bundles: trust bundles that an offline root signed, each a JWS of at most 64 KiB.
type ImportBundlesRequest struct {
	Bundles []string `json:"bundles" minItems:"1" maxItems:"24"`
}
