package audit

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Actor is the subject that acts, as the transports authenticated it; the zero subject stands for the server itself and for
// unauthenticated clients.
type Actor struct {
	Tenant  watchword.TenantID
	Subject watchword.SubjectID
	Key     watchword.KeyID
	Trace   string // the request's trace id
	// Versions are the authority versions on which the act was authorized; zero for acts that need no authority.
	Versions watchword.AuthorityVersions
}

// DoneEntry returns the entry of an act that is done.
func (a Actor) DoneEntry(kind, object string, now time.Time, data map[string]string) Entry {
	return Entry{
		Tenant: a.Tenant, At: now, Kind: kind, Actor: a.Subject, Key: a.Key, Object: object,
		Outcome: Done, Trace: a.Trace, Data: data, Versions: a.Versions,
	}
}

// RefusedEntry returns the entry for an act that was refused with err.
func (a Actor) RefusedEntry(kind, object string, now time.Time, err error, data map[string]string) Entry {
	e := a.DoneEntry(kind, object, now, data)
	e.Outcome, e.Code = Refused, watchword.CodeOf(err)
	return e
}
