// Package twin is what is wanted of a device and what the device reports. In
// come JSON objects, out they go again with a version. It refuses what is no
// JSON object or is over 32 KiB.
package twin

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Twin is one device's two documents, each a JSON object or nil if never set.
type Twin struct {
	Tenant     watchword.TenantID
	Device     watchword.SubjectID
	Config     []byte // wanted, sealed at rest with the data key
	ConfigVer  int64  // grows with each change from 1; 0 means never set
	ConfigAt   time.Time
	State      []byte // reported, sealed at rest with the data key
	StateAt    time.Time
	StateCount int64 // how often state was reported; its ETag
	// StateBy is who reported the state, in which incarnation; empty for a state of before this was kept.
	StateBy            watchword.SubjectID
	StateByIncarnation int64 // of StateBy; 0 where that is empty
}

// Function is what a device can be asked to do. Schema is the JSON Schema of
// its arguments, or nil.
type Function struct {
	Name   string
	Schema []byte
}

// MaxFunctions is how many functions a device may announce; MaxSchema is the
// longest schema, in bytes.
const (
	MaxFunctions = 256
	MaxSchema    = 16 << 10
)
