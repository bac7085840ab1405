package policy

import (
	"bytes"
	"time"

	"github.com/watchword-iot/watchword"
)

// Stored is a policy document as the store stores it: its text, byte for byte, and a version that grows with each change
// from 1 and is its ETag. The version of a deleted document is kept: a later one of its name has a larger version.
type Stored struct {
	Tenant  watchword.TenantID
	Name    string
	Version int64  // 0: there never was one of that name
	Source  []byte // TOML, at most 64 KiB
	Changed time.Time
	Deleted bool // there is none now
}

// Exists reports whether there is a document.
func (s Stored) Exists() bool { return s.Version > 0 && !s.Deleted }

// Replace returns the document with another text. ifVersion is -1 for any, 0 where there must be none yet, else the version
// that was compared. changed is false for the same text. Code: precondition_failed.
func (s Stored) Replace(source []byte, ifVersion int64, now time.Time) (_ Stored, changed bool, err error) {
	switch {
	case ifVersion == 0 && s.Exists():
		return s, false, watchword.Refuse(watchword.PreconditionFailed, "policy %q exists already, at version %d, and If-None-Match is *", s.Name, s.Version)
	case ifVersion > 0 && !s.Exists():
		return s, false, watchword.Refuse(watchword.PreconditionFailed, "policy %q does not exist, and If-Match names a version", s.Name)
	case ifVersion > 0 && ifVersion != s.Version:
		return s, false, watchword.Refuse(watchword.PreconditionFailed, "If-Match must be the current version of policy %q, %d", s.Name, s.Version)
	case s.Exists() && bytes.Equal(s.Source, source):
		return s, false, nil
	}
	s.Version, s.Source, s.Changed, s.Deleted = s.Version+1, source, now, false
	return s, true, nil
}

// Delete returns what is left of a document that is deleted. ifVersion is -1 for any, else the version that was compared.
// Codes: not_found, precondition_failed.
func (s Stored) Delete(ifVersion int64, now time.Time) (Stored, error) {
	if !s.Exists() {
		return s, watchword.Refuse(watchword.NotFound, "policy %q not found", s.Name)
	}
	if ifVersion >= 0 && ifVersion != s.Version {
		return s, watchword.Refuse(watchword.PreconditionFailed, "If-Match must be the current version of policy %q, %d", s.Name, s.Version)
	}
	s.Source, s.Changed, s.Deleted = []byte{}, now, true
	return s, nil
}
