package api

import (
	"encoding/json"
	"time"
)

// Twin is a device's two documents, each one JSON object of at most 32 KiB: the answer of GET /v1/devices/{id}/twin and
// PUT /v1/devices/{id}/config.
type Twin struct {
	Config        json.RawMessage `json:"config" doc:"wanted configuration; null if it was never set"`
	ConfigVersion int64           `json:"config_version"` // from 1, 0 if never set; the ETag, which If-Match takes
	ConfigAt      *time.Time      `json:"config_at,omitempty"`
	State         json.RawMessage `json:"state" doc:"reported state; null if it was never reported"`
	StateAt       *time.Time      `json:"state_at,omitempty"`
}
