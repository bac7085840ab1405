package registry

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
)

// Replayable reports whether an entry of the log is a change of authority that [ReplaySubject] or [ReplayPolicy] can apply to
// a store that was restored from a backup of before it.
func Replayable(e audit.Entry) bool {
	if e.Outcome != audit.Done {
		return false
	}
	if e.Kind == audit.PolicyApply || e.Kind == audit.PolicyDelete {
		return true
	}
	_, act, ok := audit.SubjectAct(e.Kind)
	return ok && act != audit.DeviceLink && act != audit.OperatorRecover // a link is void after a restore
}

// Replayed is an entry that was to be applied again, and why it could not be; nil where it was, or changed nothing.
type Replayed struct {
	Entry audit.Entry
	Err   error
}

// CheckReplayed returns an error that names the changes that could not be applied. Code: conflict.
func CheckReplayed(all []Replayed) error {
	var lost []string
	for _, r := range all {
		if r.Err != nil {
			lost = append(lost, fmt.Sprintf("%s %s (entry %d): %v", r.Entry.Kind, r.Entry.Object, r.Entry.Seq, r.Err))
		}
	}
	n := len(lost)
	if n == 0 {
		return nil
	}
	const most = 20
	if n > most {
		lost = append(lost[:most], "and others")
	}
	return watchword.Refuse(watchword.Conflict, "%d changes of authority after the backup cannot be applied again; accept the loss with --accept-loss: %s", n, strings.Join(lost, "; "))
}

// ReplayedData returns the data, as names and values, that an entry gets when its act was applied again: where it came from. The actor
// is the one who did it first, also after several restores.
func ReplayedData(e audit.Entry) []string {
	actor := string(e.Actor)
	if actor == "" {
		actor = e.Data["replayed_actor"]
	}
	return []string{"replayed_entry", strconv.FormatInt(e.Seq, 10), "replayed_actor", actor}
}

// Effect is what a store has to write of an act that is applied again.
type Effect int

// The effects of acts.
const (
	NoEffect  Effect = iota // it is as the act left it
	Added                   // the subject is new
	Changed                 // its row and keys
	AccessEnd               // and all that it could act with
	Deleted                 // and it is a tombstone
	Forgotten               // the tombstone's id is free
)

// ReplaySubject returns a subject as the act of an entry left it. exists says that before is in the store; a subject that is
// not is created by an entry of that act alone. Code: conflict or not_found where the act does not fit the subject.
func ReplaySubject(before watchword.Subject, exists bool, e audit.Entry) (after watchword.Subject, _ Effect, err error) {
	kind, act, _ := audit.SubjectAct(e.Kind)
	if act == audit.DeviceCreate {
		return replayCreate(before, exists, kind, e)
	}
	if act == audit.DeviceForget {
		if exists {
			return before, NoEffect, watchword.Refuse(watchword.Conflict, "%q is not deleted", e.Object)
		}
		return before, Forgotten, nil
	}
	if !exists {
		return before, NoEffect, watchword.Refuse(watchword.NotFound, "%q is not in the backup", e.Object)
	}
	changed, effect := false, Changed
	switch act {
	case audit.DeviceEnroll, audit.DeviceRekey:
		after, err = replayKeys(before, act, e)
		changed = err == nil
	case audit.DeviceKeyRevoke:
		after, changed, err = before.RevokeKey(watchword.KeyID(e.Data["sign"]), e.At)
	case audit.DeviceKeyEnd:
		var end time.Time
		if end, err = time.Parse(time.RFC3339, e.Data["key_ends"]); err != nil {
			err = watchword.Wrap(err, watchword.Conflict, "key_ends must be a time")
		} else {
			after, changed, err = before.SetKeyEnd(watchword.KeyID(e.Data["sign"]), end, e.At)
		}
	case audit.DeviceKeyRetire:
		after, changed = before.RetireEndedKeys(e.At)
	case audit.DeviceLabel:
		var l watchword.Labels
		if l, err = parseLabels(e.Data["after"]); err == nil {
			after, changed, err = before.Relabel(l, 0, e.At)
		}
	case audit.DeviceName:
		if err = watchword.CheckSubjectName(e.Data["after"]); err == nil {
			after, changed = before.Rename(e.Data["after"], e.At)
		}
	case audit.DeviceProof:
		after, changed = before.SetProof(e.Data["after"], e.At)
	case audit.OperatorRole:
		after, changed, err = before.SetRole(e.Data["after"], e.At)
	case audit.DeviceSuspend:
		after, changed, err = before.Suspend(e.At)
	case audit.DeviceResume:
		after, changed, err = before.Resume(e.At)
	case audit.DeviceRevoke:
		after, changed = before.Revoke(e.At)
		effect = AccessEnd
	case audit.DeviceDelete:
		after, changed, effect = before.Delete(e.At), true, Deleted
	default:
		err = watchword.Refuse(watchword.Conflict, "entries of kind %s cannot be applied again", e.Kind)
	}
	if err != nil || !changed {
		return before, NoEffect, err
	}
	return after, effect, nil
}

func replayCreate(before watchword.Subject, exists bool, kind watchword.Kind, e audit.Entry) (watchword.Subject, Effect, error) {
	if exists {
		return before, NoEffect, watchword.IDTaken(before.ID)
	}
	l, err := parseLabels(e.Data["labels"])
	if err != nil {
		return before, NoEffect, err
	}
	if err := watchword.CheckSubjectName(e.Data["name"]); err != nil {
		return before, NoEffect, err
	}
	s := watchword.Subject{
		Tenant: e.Tenant, ID: watchword.SubjectID(e.Object), Kind: kind, Role: e.Data["role"], State: watchword.New, Labels: l, Name: e.Data["name"], Proof: e.Data["proof"], Created: e.At, Changed: e.At,
	}
	return s.Added(), Added, nil
}

// replayKeys gives a subject the keys of an entry: its first ones, a further one, or others in their place.
func replayKeys(s watchword.Subject, act string, e audit.Entry) (watchword.Subject, error) {
	sign, err := replayKey(e, "sign", watchword.Sign, jose.ForSigning)
	if err != nil {
		return s, err
	}
	seal, err := replayKey(e, "seal", watchword.Seal, jose.ForEncryption)
	if err != nil {
		return s, err
	}
	switch {
	case act == audit.DeviceRekey:
		return s.ReplaceKeys(sign, seal, e.At)
	case s.State == watchword.Active:
		return s.AddSigningKey(sign, watchword.ByAnother, e.At) // the entry does not say who gave it; it was within the bound
	}
	return s.Enroll(sign, seal, e.At)
}

// replayKey returns the key of an entry; the zero Key where the entry has no such key. Code: conflict.
func replayKey(e audit.Entry, name string, purpose watchword.Purpose, use jose.Use) (k watchword.Key, err error) {
	if e.Data[name] == "" {
		return k, nil
	}
	pub, err := jose.ParseJWK([]byte(e.Data[name+"_jwk"]), use)
	if err != nil || string(pub.ID()) != e.Data[name] {
		return k, watchword.Wrap(err, watchword.Conflict, "the entry does not have the %s key", name)
	}
	k = watchword.Key{ID: pub.ID(), Purpose: purpose, JWK: pub.JWK(), State: watchword.KeyActive, Added: e.At}
	if purpose == watchword.Sign {
		k.Name = e.Data["name"]
		if ends := e.Data["key_ends"]; ends != "" {
			if k.Ends, err = time.Parse(time.RFC3339, ends); err != nil {
				return k, watchword.Wrap(err, watchword.Conflict, "key_ends of the entry must be a time")
			}
		}
	}
	return k, nil
}

// parseLabels parses the output of [watchword.Labels.String]: neither keys nor values can contain a comma or an equals sign.
func parseLabels(text string) (watchword.Labels, error) {
	l := watchword.Labels{}
	for pair := range strings.SplitSeq(text, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if ok {
			l[k] = v
		}
	}
	if l.String() != text {
		return nil, watchword.Refuse(watchword.Conflict, "the entry does not have the labels")
	}
	return l, watchword.CheckLabels(l)
}

// ReplayPolicy returns a policy as the act of an entry left it. changed is false where it is that already.
func ReplayPolicy(before policy.Stored, e audit.Entry) (after policy.Stored, changed bool, err error) {
	if e.Kind == audit.PolicyDelete {
		if !before.Exists() {
			return before, false, nil
		}
		after, err = before.Delete(-1, e.At)
		return after, err == nil, err
	}
	source, ok := e.Data["source"]
	if !ok {
		return before, false, watchword.Refuse(watchword.Conflict, "the entry does not have the text of the policy")
	}
	return before.Replace([]byte(source), -1, e.At)
}
