// Package twin stores the wanted configuration and the reported state of each device. Both are JSON objects with a version and
// are encrypted at rest. It refuses values that are not a JSON object or exceed 32 KiB.
package twin

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Twin is one device's two documents, each a JSON object or nil if never set.
type Twin struct {
	Tenant        watchword.TenantID
	Device        watchword.SubjectID
	Config        []byte // wanted, sealed at rest with the data key
	ConfigVersion int64  // grows with each change from 1; 0 means never set
	ConfigAt      time.Time
	State         []byte // reported, sealed at rest with the data key
	StateAt       time.Time
	StateVersion  int64 // how often state was reported; its ETag
	// ReportedBy is the subject that reported the state, and its incarnation; empty for a state from before this was
	// recorded.
	ReportedBy            watchword.SubjectID
	ReportedByIncarnation int64 // of StateBy; 0 where that is empty
}

// Function is what a device can be asked to do. Schema is the JSON Schema of
// its arguments, or nil.
type Function struct {
	Name   string
	Schema []byte
}

// MaxSchema limits the schema of a function, in bytes.
const MaxSchema = 16 << 10

// Configure returns the twin with another wanted configuration. ifVersion is -1 for any, 0 for never set, else the version that
// was compared. Code: precondition_failed.
func (t Twin) Configure(config []byte, ifVersion int64, now time.Time) (Twin, error) {
	if ifVersion >= 0 && ifVersion != t.ConfigVersion {
		return t, watchword.Refuse(watchword.PreconditionFailed, "If-Match must be the current version of the configuration, %d", t.ConfigVersion)
	}
	t.Config, t.ConfigVersion, t.ConfigAt = config, t.ConfigVersion+1, now
	return t, nil
}

// Report returns the twin with another reported state. by is its reporter, in its incarnation; both are zero if unknown.
func (t Twin) Report(state []byte, by watchword.SubjectID, incarnation int64, now time.Time) Twin {
	t.State, t.StateAt, t.ReportedBy, t.ReportedByIncarnation = state, now, by, incarnation
	t.StateVersion++
	return t
}
