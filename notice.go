package watchword

import (
	"cmp"
	"slices"
	"time"
)

// NoticeKind says what a [Notice] is about.
type NoticeKind string

// NoticeRecovery is a link for a new owner that was made on the server's machine. [Notice.Object] is the owner's id.
const NoticeRecovery NoticeKind = "operator.recover"

// ErrNoNotice is the refusal to acknowledge a notice that there is not.
var ErrNoNotice = Refuse(NotFound, "kind and object must be those of a notice that was not acknowledged")

// ErrOtherNotice is the refusal to acknowledge a notice that is not the one of its kind and object any more.
var ErrOtherNotice = Refuse(Conflict, "at must be that of the notice: there is a newer one of this kind and object; read it first")

// MaxNotices is how many notices of one kind a tenant has at most: the newest.
const MaxNotices = 16

// Notice is what every operator of a tenant is told with each answer of the API, until it expires or is acknowledged. There is one
// of each kind and object in a tenant, the newest, and at most MaxNotices of each kind.
type Notice struct {
	Tenant  TenantID
	Kind    NoticeKind
	Object  SubjectID
	At      time.Time
	Expires time.Time
}

// MayAcknowledge refuses to end a notice unless it is the one that the subject by has read: of object, at at, to the second. Neither the
// subject that it is about may end it, nor a key that the subject got at the time of the notice or later: its holder may be
// the one whom others are to be told of. Codes: conflict ([ErrOtherNotice]); denied.
func (n *Notice) MayAcknowledge(by *Subject, key KeyID, object SubjectID, at, now time.Time) error {
	k, valid := by.SignKey(key, now)
	switch {
	case n.Object != object || !n.At.Truncate(time.Second).Equal(at.Truncate(time.Second)):
		return ErrOtherNotice
	case by.ID == n.Object:
		return Refuse(Denied, "the notice is about %q: another operator acknowledges it, or it ends at %s", n.Object, n.Expires.UTC().Format(time.RFC3339))
	case !valid || !k.Added.Before(n.At):
		return Refuse(Denied, "your key is not older than the notice: an operator with an older key acknowledges it, or it ends at %s", n.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// SurplusNotices returns the notices of one kind and tenant beyond the [MaxNotices] newest. It changes the order of all.
func SurplusNotices(all []Notice) []Notice {
	slices.SortFunc(all, func(a, b Notice) int { return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.Object, a.Object)) })
	return all[min(len(all), MaxNotices):]
}
