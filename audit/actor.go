package audit

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Actor is who does something, as the endpoints know it: a subject that proved
// itself with a key, or the zero subject for the server itself and for strangers.
type Actor struct {
	Tenant  watchword.TenantID
	Subject watchword.SubjectID
	Key     watchword.KeyID
	Trace   string // the request's trace id
	// Versions is what the actor's act was decided on; zero for acts that no authority is asked for.
	Versions watchword.AuthorityVersions
}

// DoneEntry returns the entry for an act that is being done.
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
