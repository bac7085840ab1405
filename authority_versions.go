package watchword

// AuthorityVersions is the versions of everything that a decision about a subject's act was made on. A
// store compares it in the transaction of the act, before it writes: where one of them has
// moved, nothing is written, and the act is decided again ([ErrAuthorityChanged]). So no change
// commits after an edit that took its actor's right away, whatever was decided before, and
// whichever node decided it. The zero value is that of the server's own acts.
type AuthorityVersions struct {
	Subject SubjectID // the actor
	// SubjectVersion is the actor's [Subject.AuthorityVersion].
	SubjectVersion int64
	// Policies is the version of the tenant's policies and of the valid issuer keys.
	Policies int64
	// Target is another subject that was decided on by its labels, such as the device that is
	// called; empty for none.
	Target SubjectID
	// TargetVersion is the [Subject.AuthorityVersion] of Target; 0 where Target is empty.
	TargetVersion int64
	// Local says that the act was ordered by a process with access to the data folder, while no
	// server runs on it: no version is compared.
	Local bool
}

// IsZero reports whether b is of the server's own acts.
func (b AuthorityVersions) IsZero() bool { return b == AuthorityVersions{} }

// Versions is the current versions of the things that an [AuthorityVersions] names.
type Versions struct {
	Subject  int64 // the actor's [Subject.AuthorityVersion]
	Policies int64
	Target   int64 // the [Subject.AuthorityVersion] of the target; 0 where there is none
}

// Compared reports whether a store compares b: it is of an act that a subject's authority allows.
func (b AuthorityVersions) Compared() bool { return !b.IsZero() && !b.Local }

// Check compares b with the current versions. Code: busy ([ErrAuthorityChanged]).
func (b AuthorityVersions) Check(v Versions) error {
	if b.Compared() && v != (Versions{b.SubjectVersion, b.Policies, b.TargetVersion}) {
		return ErrAuthorityChanged
	}
	return nil
}

// ErrAuthorityChanged is what a store answers to an act whose [AuthorityVersions] is no longer the current versions. It
// is handled by session.Session.Act, which decides again; a client sees it as busy, after many tries.
var ErrAuthorityChanged = Refuse(Busy, "permissions or keys changed while the request ran: try again")
