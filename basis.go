package watchword

// Basis is the versions of everything that a decision about a subject's act was made on. A
// store compares it in the transaction of the act, before it writes: where one of them has
// moved, nothing is written, and the act is decided again ([ErrBasisMoved]). So no change
// commits after an edit that took its actor's right away, whatever was decided before, and
// whichever node decided it. The zero Basis is that of the server's own acts.
type Basis struct {
	Subject SubjectID // the actor
	// Version is the actor's [Subject.Basis].
	Version int64
	// Policies is the version of the tenant's policies and of the issuer keys that count.
	Policies int64
	// Target is another subject that was decided on by its labels, such as the device that is
	// called; empty for none.
	Target SubjectID
	// TargetVersion is the [Subject.Basis] of Target; 0 where Target is empty.
	TargetVersion int64
	// Local says that the act was ordered by a process with access to the data folder, while no
	// server runs on it: no version is compared.
	Local bool
}

// IsZero reports whether it is the basis of the server's own acts.
func (b Basis) IsZero() bool { return b == Basis{} }

// Versions is what stands of the things that a [Basis] is of.
type Versions struct {
	Subject  int64 // the actor's [Subject.Basis]
	Policies int64
	Target   int64 // the [Subject.Basis] of the target; 0 where there is none
}

// Compared reports whether a store compares b: it is of an act that somebody's authority allows.
func (b Basis) Compared() bool { return !b.IsZero() && !b.Local }

// Check compares b with what stands. Code: busy ([ErrBasisMoved]).
func (b Basis) Check(v Versions) error {
	if b.Compared() && v != (Versions{b.Version, b.Policies, b.TargetVersion}) {
		return ErrBasisMoved
	}
	return nil
}

// ErrBasisMoved is what a store answers to an act whose [Basis] is no longer what stands. It
// is handled by session.Session.Act, which decides again; a client sees it as busy, after many tries.
var ErrBasisMoved = Refuse(Busy, "authority changed while this was being done: try again")
