package token

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Record is the row of one access token that was issued. The doors open only
// for a jti that has one, so a stolen issuer key alone opens nothing.
type Record struct {
	Tenant      watchword.TenantID
	JTI         string
	Subject     watchword.SubjectID
	Incarnation int64 // of the subject when it was issued
	Key         watchword.KeyID
	// Says is what the token gives, and to whom: [Grant.Says]. Zero where nobody signed
	// one, so that none passes.
	Says    [32]byte
	Issued  time.Time
	Expires time.Time
	Revoked bool
}

// Spent is a client assertion's single use: (tenant, subject, jti), kept until
// Expires plus the skew.
type Spent struct {
	JTI     string
	Expires time.Time
}
