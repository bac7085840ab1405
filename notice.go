package watchword

import "time"

// NoticeKind says what a [Notice] is about.
type NoticeKind string

// NoticeRecovery is a link for a new owner that was made on the server's machine. [Notice.Object] is the owner's id.
const NoticeRecovery NoticeKind = "operator.recover"

// ErrNoNotice is the refusal to acknowledge a notice that there is not.
var ErrNoNotice = Refuse(NotFound, "kind must be that of a notice that was not acknowledged")

// Notice is what every operator of a tenant is told with each answer of the API, until it expires or is acknowledged. There is one
// of each kind in a tenant: the newest.
type Notice struct {
	Tenant  TenantID
	Kind    NoticeKind
	Object  SubjectID
	At      time.Time
	Expires time.Time
}
