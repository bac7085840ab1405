package session

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
)

// Actor performs an act on other subjects: what it does is logged under Actor, and compared with what Policy gives it. Every
// function that changes what another subject may do takes one. It is a value.
type Actor struct {
	audit.Actor
	// Policy is what policy gives the actor, at Versions; nil for the server itself and for a process with access to the data
	// folder, which may do everything.
	Policy *policy.Grant
}

// unlimited reports whether the actor may give everything: it is not a subject. An act of a subject without its policy is a
// programming error, and refused.
func (a Actor) unlimited() (bool, error) {
	if a.Policy != nil {
		return false, nil
	}
	if a.Versions.Compared() {
		return false, watchword.Refuse(watchword.Internal, "an act of %q came without what it may give", a.Subject)
	}
	return true, nil
}

// MayGive refuses an act after which a subject has after, where it has before now (nil: nothing), if that gives it a permission
// that the actor may not give. Code: exceeds_own, naming the permission.
func (a Actor) MayGive(before, after *policy.Grant) error {
	if ok, err := a.unlimited(); ok || err != nil {
		return err
	}
	if p, over := a.Policy.MayNotGive(before, after); over {
		return exceeds("this gives %s, which you may not give", p)
	}
	return nil
}

// MayEdit refuses the edit of a policy that may give a subject a permission that the actor may not give. before is nil for
// a new document, after for a deleted one. Code: exceeds_own, naming the permission.
func (a Actor) MayEdit(before, after *policy.Document) error {
	if ok, err := a.unlimited(); ok || err != nil {
		return err
	}
	if p, over := a.Policy.DocumentMayNotGive(before, after); over {
		return exceeds("this policy gives %s, which you may not give", p)
	}
	return nil
}

// MayActOn refuses to narrow, suspend, revoke, relabel, re-link or close a subject that has a permission which the actor neither
// has nor may give. target is what policy gives it, whatever its state is. Code: exceeds_own, naming the permission.
func (a Actor) MayActOn(id watchword.SubjectID, target *policy.Grant) error {
	if id == a.Subject {
		return nil
	}
	if ok, err := a.unlimited(); ok || err != nil {
		return err
	}
	if p, lacks := a.Policy.Lacks(target); lacks {
		return exceeds("the subject has %s, which you neither have nor may give", p)
	}
	return nil
}

func exceeds(format string, p watchword.Permission) error {
	text, err := p.MarshalJSON()
	if err != nil {
		return watchword.Wrap(err, watchword.Internal, "a permission")
	}
	return watchword.Refuse(watchword.ExceedsOwn, format, text)
}

// On returns the actor with the subject that the act was decided on: the store compares its version too.
func (a Actor) On(s *watchword.Subject) Actor {
	if a.Versions.Compared() {
		a.Versions.Target, a.Versions.TargetVersion = s.ID, s.AuthorityVersion
	}
	return a
}
