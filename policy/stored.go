package policy

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Stored is a policy document as the store keeps it: its text, byte for byte,
// and a version that grows with each change from 1 and is its ETag.
type Stored struct {
	Tenant  watchword.TenantID
	Name    string
	Version int64
	Source  []byte // TOML, at most 64 KiB
	Changed time.Time
}
