package watchword

// ChangeKind says what has changed.
type ChangeKind string

// The kinds of changes, with the object that [Change.ID] names and the source of [Change.Version]. Each version only grows.
const (
	// SubjectChanged is a subject whose state, labels, keys, required proof or life is another. ID is the subject's;
	// Version is its [Subject.AuthorityVersion] in the store.
	SubjectChanged ChangeKind = "subject"
	// SubjectDeleted is a subject that was deleted, which is final. ID is the subject's; Version is 1.
	SubjectDeleted ChangeKind = "subject_deleted"
	// PoliciesChanged is a policy that was put in force, replaced or deleted. ID is empty: a tenant's policies have one
	// version, that of [AuthorityVersions.Policies].
	PoliciesChanged ChangeKind = "policies"
	// AccessTokenRevoked is an access token that was revoked, which is final. ID is its jti; Version is 1.
	AccessTokenRevoked ChangeKind = "token_revoked"
	// ServerKeysChanged is a server key that took a step of its life (next, active, retiring, gone, revoked), or another
	// trust bundle. It is of all tenants: Tenant and ID are empty. Version counts the steps that all keys have taken, so a
	// bundle alone does not raise it.
	ServerKeysChanged ChangeKind = "server_keys"
)

// Change states that something in the store has changed on which authority depends. It contains only plain values, so that
// it can be sent to another node; a receiver reads the current state from the store.
type Change struct {
	Tenant  TenantID   `json:"tenant,omitempty"`
	Kind    ChangeKind `json:"kind"`
	ID      string     `json:"id,omitempty"`
	Version int64      `json:"version"`
}

// SubjectChange returns the change of a subject as the store returned it.
func SubjectChange(s *Subject) Change {
	return Change{Tenant: s.Tenant, Kind: SubjectChanged, ID: string(s.ID), Version: s.AuthorityVersion}
}
