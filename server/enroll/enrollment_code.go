package enroll

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Code is a one-time code as the store keeps it: Hash is the SHA-256 of the
// code's 22 characters; the code itself is nowhere.
type Code struct {
	Tenant    watchword.TenantID
	Hash      [32]byte
	Subject   watchword.SubjectID
	Expires   time.Time
	CreatedBy watchword.SubjectID // creator of the link
	// Sign and Seal are the keys with which the code was redeemed; empty until then.
	Sign, Seal watchword.KeyID
}

// ErrCode is the refusal of a code that is unknown, used or expired. It does not say which.
var ErrCode = watchword.Refuse(watchword.CodeInvalid, "the code is unknown, used or expired")

// ErrCodeExists says that the tenant has a code of this hash.
var ErrCodeExists = watchword.Refuse(watchword.Conflict, "this code exists")

// Redemption is a device's attempt to become a subject: the hash of the code
// it presented and the keys whose possession it proved.
type Redemption struct {
	Tenant watchword.TenantID
	Hash   [32]byte
	Sign   watchword.Key
	Seal   watchword.Key
}

// Redeem decides whether the code c brings its subject in with the keys of r. The same keys again, until the code ends and
// while they are the subject's: the subject as it is, and replay is true. Code: code_invalid ([ErrCode]).
func (r Redemption) Redeem(c Code, s watchword.Subject, now time.Time) (_ watchword.Subject, replay bool, err error) {
	if !c.Expires.After(now) {
		return s, false, ErrCode
	}
	if c.Sign != "" {
		_, signs := s.SignKey(r.Sign.ID)
		seal, _ := s.SealKey()
		if s.State == watchword.Active && signs && c.Sign == r.Sign.ID && c.Seal == r.Seal.ID && seal.ID == r.Seal.ID {
			return s, true, nil
		}
		return s, false, ErrCode
	}
	if s.MayEnroll() != nil {
		return s, false, ErrCode
	}
	s, err = s.Enroll(r.Sign, r.Seal, now)
	return s, false, err
}
