package api

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Notice is what every operator is told with each answer until it expires or is acknowledged (DELETE /v1/notices/{kind}?object=O&at=T): an item of
// GET /v1/notices. Each answer to an operator has it in a header Watchword-Notice: Kind, Object and At (RFC 3339) with a space
// between.
type Notice struct {
	Kind      watchword.NoticeKind `json:"kind" doc:"operator.recover: a link for an owner was made on the server's machine"`
	Object    watchword.SubjectID  `json:"object"`
	At        time.Time            `json:"at"`
	ExpiresAt time.Time            `json:"expires_at"`
}

// Ending is something that a person relies on and that ends within a week: an item of GET /v1/notices.
type Ending struct {
	Kind   EndingKind `json:"kind" doc:"operator_key, service_key: the last valid key of the subject; tls_certificate: the file of server.tls_cert; trust_bundle: the root is offline and must sign another one"`
	Name   string     `json:"name" doc:"subject, file or version"`
	EndsAt time.Time  `json:"ends_at"`
	Action string     `json:"action" doc:"what to do, for people"`
}

// EndingKind is a kind of things that end.
type EndingKind string

// The kinds of an [Ending].
const (
	EndingOperatorKey    EndingKind = "operator_key"
	EndingServiceKey     EndingKind = "service_key"
	EndingTLSCertificate EndingKind = "tls_certificate"
	EndingTrustBundle    EndingKind = "trust_bundle"
)

// NoticeList is the answer of GET /v1/notices: at most one notice of each kind and object, at most 16 of each kind, and what ends within a week, the first first: at
// most 102.
type NoticeList struct {
	Notices []Notice `json:"notices"`
	Endings []Ending `json:"endings"`
}
