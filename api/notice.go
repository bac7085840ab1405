package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Notice is what every operator is told with each answer until it expires or is acknowledged (DELETE /v1/notices/{kind}): an item of
// GET /v1/notices. Each answer to an operator has it in a header Watchword-Notice: Kind, Object and At (RFC 3339) with a space
// between.
type Notice struct {
	Kind      watchword.NoticeKind `json:"kind" doc:"operator.recover: a link for an owner was made on the server's machine"`
	Object    watchword.SubjectID  `json:"object"`
	At        time.Time            `json:"at"`
	ExpiresAt time.Time            `json:"expires_at"`
}

// NoticeList is the answer of GET /v1/notices: at most one notice of each kind.
type NoticeList struct {
	Notices []Notice `json:"notices"`
}
