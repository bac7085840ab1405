package token

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Record is the row of one issued access token. An access token is accepted only if there is a row for its jti, so a stolen
// issuer key alone gives no access.
type Record struct {
	Tenant      watchword.TenantID
	JTI         string
	Subject     watchword.SubjectID
	Incarnation int64 // of the subject when it was issued
	Key         watchword.KeyID
	// ClaimsDigest is [Grant.ClaimsDigest] of the token. It is zero if no token was signed, so that none is accepted.
	ClaimsDigest [32]byte
	Issued       time.Time
	Expires      time.Time
	Revoked      bool
	// AskedIssuer is the issuer that the assertion named, from the first move of the server's address on; empty before. The store notes
	// it for the subject.
	AskedIssuer string
}

// SingleUse is the single use of a client assertion: (tenant, subject, jti), stored until Expires plus the skew.
type SingleUse struct {
	JTI     string
	Issued  time.Time // iat: an assertion of before the server was restored from a backup is refused ([ErrBeforeRestore])
	Expires time.Time
}

// SubjectState is the state of a token's subject in a transaction; the zero value means that there is no subject.
type SubjectState struct {
	Kind        watchword.Kind
	State       watchword.State
	Incarnation int64
	HasKey      bool      // the token's key is one of its active signing keys
	KeyEnds     time.Time // end of that key; zero where it has none
}

// Issue decides whether the token of r may be issued; used states that the assertion was used before. Codes:
// client_invalid, subject_new, subject_suspended, subject_revoked, token_replayed.
func (r Record) Issue(h SubjectState, used bool) error {
	if h.State == "" {
		return watchword.Refuse(watchword.ClientInvalid, "no subject has this id")
	}
	if err := (&watchword.Subject{Kind: h.Kind, ID: r.Subject, State: h.State}).CheckActive(); err != nil {
		return err
	}
	if !h.HasKey || h.Incarnation != r.Incarnation || !h.KeyEnds.IsZero() && r.Expires.After(h.KeyEnds) { // no token outlives its key
		return watchword.Refuse(watchword.ClientInvalid, "the key is not an active key of the subject")
	}
	if used {
		return watchword.Refuse(watchword.TokenReplayed, "jti was used before: sign a new assertion for each request; see docs/errors.md")
	}
	return nil
}

// WithSubjectState returns the record in the current state of its subject: the token of a subject that is revoked, deleted or in
// another incarnation is revoked with it.
func (r Record) WithSubjectState(h SubjectState) Record {
	if h.State == "" || h.State == watchword.Revoked || h.Incarnation != r.Incarnation {
		r.Revoked = true
	}
	return r
}

// CheckNotRevoked returns an error for a token that was revoked, or whose issuer key was. Codes: token_revoked, issuer_revoked.
func CheckNotRevoked(revoked, issuerRevoked bool) error {
	if revoked {
		return watchword.Refuse(watchword.TokenRevoked, "this token was revoked")
	}
	if issuerRevoked {
		return watchword.Refuse(watchword.IssuerRevoked, "the server's key that signed this token was revoked")
	}
	return nil
}

// ErrNotRecorded is the error for a token that is not on record.
var ErrNotRecorded = watchword.Refuse(watchword.NotFound, "no token has this id")

// ErrBeforeRestore is the error for an assertion, or a proof of a key change, that was signed before the server was restored
// from a backup: whether it was used since the backup is not known.
var ErrBeforeRestore = watchword.Refuse(watchword.TokenExpired, "iat is before the server was restored from a backup: sign a new one")

// CheckIssued returns an error if the credential was issued before a restore at that time; zero: there was none. Code:
// token_expired.
func (s SingleUse) CheckIssued(restored time.Time) error {
	if !restored.IsZero() && s.Issued.Before(restored) {
		return ErrBeforeRestore
	}
	return nil
}

// ErrJTIUsed is the error for an assertion, or a proof of a key change, that was used before.
var ErrJTIUsed = watchword.Refuse(watchword.TokenReplayed, "jti was used before: sign a new one for each request; see docs/errors.md")
