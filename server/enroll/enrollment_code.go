package enroll

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// Code is a one-time code as the store keeps it: Hash is the SHA-256 of the
// code's 22 characters; the code itself is nowhere.
type Code struct {
	Tenant  watchword.TenantID
	Hash    [32]byte
	Subject watchword.SubjectID
	Expires time.Time
	// CreatedBy made the code, with the key CreatedByKey. Both are empty for a code of the server's machine.
	CreatedBy    watchword.SubjectID
	CreatedByKey watchword.KeyID
	KeyEnds      time.Time // end of the key that is enrolled with it, in whole seconds; zero for none
	// Sign and Seal are the keys with which the code was redeemed; empty until then.
	Sign, Seal watchword.KeyID
}

// ErrCode is the refusal of a code that is unknown, used, expired or void. It does not say which.
var ErrCode = watchword.Refuse(watchword.CodeInvalid, "the code is unknown, used, expired or void")

// VoidsCodesFor reports whether a change of a subject makes the unused codes for it void: it has another role, other labels or
// another required proof, so a code would give what its maker did not decide on; or it is revoked, or has enrolled otherwise. A
// subject that is suspended cannot use its code until it is resumed.
func VoidsCodesFor(before, after watchword.Subject) bool {
	enrolled := after.State == watchword.Active && (before.State == watchword.New || before.State == watchword.Revoked)
	return enrolled || after.State == watchword.Revoked || before.Proof != after.Proof || before.Role != after.Role || !maps.Equal(before.Labels, after.Labels)
}

// VoidsCodesOfKey reports whether a change of a key makes the unused codes void that were made with it, and those for its subject: it
// is revoked, and a thief of the key may have made them; or it ends earlier, and a code that the subject made for itself would give
// a key that ends later.
func VoidsCodesOfKey(before, after watchword.Key) bool {
	return after.State == watchword.KeyRevoked || !before.Ends.Equal(after.Ends)
}

// VoidsCodesBy reports whether a change of a subject makes the unused codes void that it has made: it is suspended or revoked, or has
// another role or other labels. A change of policy is compared when a code is redeemed (see [Service.Enroll]).
func VoidsCodesBy(before, after watchword.Subject) bool {
	return after.State == watchword.Suspended || after.State == watchword.Revoked || before.Role != after.Role || !maps.Equal(before.Labels, after.Labels)
}

// ErrCodeExists says that the tenant has a code of this hash.
var ErrCodeExists = watchword.Refuse(watchword.Conflict, "this code exists")

// checkMakerKey refuses a code that its maker made with a key which has ended, or whose maker has no valid key left. A key that was
// replaced counts: the one in its place has the same end. A key that does not come with the maker any more does not count. A code of
// a version that did not store the key has none. Code: code_invalid.
func (c *Code) checkMakerKey(maker *watchword.Subject, now time.Time) error {
	i := slices.IndexFunc(maker.Keys, func(k watchword.Key) bool { return k.ID == c.CreatedByKey && k.Purpose == watchword.Sign })
	switch {
	case maker.SignKeys(now) == 0:
		return ErrCode
	case c.CreatedByKey == "":
		return nil
	case i < 0 || maker.Keys[i].State == watchword.KeyRevoked || maker.Keys[i].EndedAt(now):
		return ErrCode
	}
	return nil
}

// checkMayMake refuses a code for s that policy does not let its maker make now, by any operation that makes one for it. Code: denied.
func (c *Code) checkMayMake(maker *policy.Grant, s *watchword.Subject) error {
	list := "/v1/" + string(s.Kind) + "s"
	paths := []string{list + "/" + string(s.ID) + "/link"}
	if c.giver() == watchword.ByItself {
		paths = append(paths, "/v1/self/link")
	}
	if s.State == watchword.New { // it may have come with its link
		paths = append(paths, list)
	}
	var refusal error
	for _, p := range paths {
		err := maker.Request(http.MethodPost, p).Err()
		if err == nil {
			return nil
		}
		refusal = cmp.Or(refusal, err)
	}
	return refusal
}

// Redemption is a device's attempt to become a subject: the hash of the code
// it presented and the keys whose possession it proved.
type Redemption struct {
	Tenant watchword.TenantID
	Hash   [32]byte
	Sign   watchword.Key
	Seal   watchword.Key
}

// giver returns who gives the key that is enrolled with the code.
func (c *Code) giver() watchword.KeyGiver { return watchword.KeyGiver(c.CreatedBy == c.Subject) }

// MayHaveLink refuses the code c for a subject that may neither enroll nor get a further key. Codes: conflict, rate_limited.
func MayHaveLink(s *watchword.Subject, c Code, now time.Time) error {
	if s.Kind != watchword.Device && s.State == watchword.Active {
		return s.MayAddKey(c.giver(), now)
	}
	if err := s.MayEnroll(); err != nil {
		return err
	}
	return s.CheckNewKeys(watchword.ByAnother, now)
}

// Redeem decides whether the code c brings its subject in with the keys of r: a new or revoked subject enrolls, an active operator
// or service gets a further signing key. The same keys again, until the code ends and while they are the subject's: the subject as
// it is, and replay is true. Codes: code_invalid ([ErrCode]); conflict where the subject has as many keys as it may have; rate_limited;
// bad_request for a device without a sealing key, and for a further key with one.
func (r Redemption) Redeem(c Code, s watchword.Subject, now time.Time) (_ watchword.Subject, replay bool, err error) {
	if !c.Expires.After(now) {
		return s, false, ErrCode
	}
	if c.Sign != "" {
		_, signs := s.SignKey(r.Sign.ID, now)
		seal, _ := s.SealKey(now)
		if s.State == watchword.Active && signs && c.Sign == r.Sign.ID && c.Seal == r.Seal.ID && (seal.ID == r.Seal.ID || s.Kind != watchword.Device) {
			return s, true, nil
		}
		return s, false, ErrCode
	}
	r.Sign.Ends = c.KeyEnds
	switch {
	case r.Sign.EndedAt(now):
		return s, false, ErrCode
	case s.MayEnroll() == nil:
		s, err = s.Enroll(r.Sign, r.Seal, now)
	case s.Kind == watchword.Device || s.State != watchword.Active:
		err = ErrCode
	case r.Seal.ID != "":
		err = watchword.RefuseField("keys.seal", "must be absent: a further key of an operator or a service only signs")
	default:
		s, err = s.AddSigningKey(r.Sign, c.giver(), now)
	}
	return s, false, err
}
