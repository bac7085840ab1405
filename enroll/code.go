package enroll

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Code is a one-time code as the store keeps it: Hash is the SHA-256 of the
// code's 22 characters; the code itself is nowhere.
type Code struct {
	Tenant  watchword.TenantID
	Hash    [32]byte
	Subject watchword.SubjectID
	Expires time.Time
	By      watchword.SubjectID // who made the link
}

// Redemption is a stranger's attempt to become a subject: the hash of the code
// it showed and the keys whose possession it proved.
type Redemption struct {
	Tenant watchword.TenantID
	Hash   [32]byte
	Sign   watchword.Key
	Seal   watchword.Key
}
