package watchword

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kind says what a subject is.
type Kind string

// The kinds of subjects.
const (
	Device   Kind = "device"
	Operator Kind = "operator"
	Service  Kind = "service"
)

// State is the state of a subject.
type State string

// The states of a subject. A suspended subject gets all its keys and permissions back when it is resumed. A revoked one
// does not: its keys are invalid, and only a new enrollment makes the id usable again.
const (
	New       State = "new"
	Active    State = "active"
	Suspended State = "suspended"
	Revoked   State = "revoked"
)

// Labels are a subject's key=value pairs, by which policies and selectors find
// it. Keys and values are names ([ValidName]). nil and empty are the same.
type Labels map[string]string

// MaxLabels is how many labels a subject may have.
const MaxLabels = 32

// CheckLabels refuses labels with bad names, or too many. Code: bad_request.
func CheckLabels(l Labels) error {
	if len(l) > MaxLabels {
		return RefuseField("labels", "must have at most %d labels", MaxLabels)
	}
	for k, v := range l {
		if !ValidName(k) {
			return RefuseField("labels", "a label key must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
		}
		if err := CheckName("labels."+k, v); err != nil {
			return err
		}
	}
	return nil
}

// Has reports whether l carries every pair of sel. An empty sel fits all.
func (l Labels) Has(sel Labels) bool {
	for k, v := range sel {
		if w, ok := l[k]; !ok || w != v {
			return false
		}
	}
	return true
}

// String prints the pairs in order of their keys, as "kind=lamp,site=plant-1".
func (l Labels) String() string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(l)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + l[k])
	}
	return b.String()
}

// Subject is a device, an operator or a service. Version grows with each change and is its
// ETag. Incarnation grows each time a revoked id enrolls again, so that nothing
// of an earlier life counts in a later one.
type Subject struct {
	Tenant           TenantID
	ID               SubjectID
	Kind             Kind
	Role             string // of an operator: a built-in role or a custom one (package policy); empty for none and for other kinds
	State            State
	Labels           Labels
	Name             string // what people call it; nothing is decided by it (see [CheckSubjectName])
	Version          int64
	AuthorityVersion int64 // grows with whatever may change what it may do: state, labels, keys, proof, a revoked token
	Incarnation      int64
	Proof            string // RequireProof, or empty
	Created          time.Time
	Changed          time.Time
	LastSeen         time.Time // when it last began or ended a session or a request, to ten minutes; zero: never. Nothing is decided by it
	// Keys holds the keys the subject has or had, oldest first: those that are
	// active, and of the others the newest, up to [MaxKeysReturned] in all. Lists of many
	// subjects leave it nil.
	Keys []Key
}

// MaxKeysReturned is the maximum number of inactive keys that are returned with a subject. The store remembers every key
// that was used, whatever their number.
const MaxKeysReturned = 64

// RequireProof is the [Subject.Proof] of a subject that gets nothing which works
// without a proof of its key.
const RequireProof = "required"

// CheckProof refuses what is neither RequireProof nor empty. Code: bad_request.
func CheckProof(proof string) error {
	if proof != "" && proof != RequireProof {
		return RefuseField("proof", `must be "required" or ""`)
	}
	return nil
}

// MaxSubjectName is the maximum length of [Subject.Name] in bytes.
const MaxSubjectName = 128

// CheckSubjectName refuses a name that is longer than [MaxSubjectName], is not UTF-8, or has control characters or separators of lines.
// An empty one is accepted. Code: bad_request.
func CheckSubjectName(name string) error {
	bad := func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
	}
	if len(name) > MaxSubjectName || !utf8.ValidString(name) || strings.ContainsFunc(name, bad) {
		return RefuseField("name", "must be at most %d bytes of UTF-8 without control characters", MaxSubjectName)
	}
	return nil
}

// CheckActive returns nil if the subject is active, and a refusal that says why not
// otherwise. Codes: subject_new, subject_suspended, subject_revoked.
func (s *Subject) CheckActive() error {
	switch s.State {
	case Active:
		return nil
	case New:
		return Refuse(SubjectNew, "%s %q has no key yet: it must enroll first", s.Kind, s.ID)
	case Suspended:
		return Refuse(SubjectSuspended, "%s %q is suspended: an operator must resume it", s.Kind, s.ID)
	default:
		return Refuse(SubjectRevoked, "%s %q is revoked: it must enroll again with a new link", s.Kind, s.ID)
	}
}

// SignKey returns the signing key with that id, if it is valid now.
func (s *Subject) SignKey(id KeyID, now time.Time) (Key, bool) {
	for _, k := range s.Keys {
		if k.ID == id && k.Purpose == Sign && k.ValidAt(now) {
			return k, true
		}
	}
	return Key{}, false
}

// SealKey returns the sealing key that is valid now: the newest, if there are two.
func (s *Subject) SealKey(now time.Time) (Key, bool) {
	for _, k := range slices.Backward(s.Keys) {
		if k.Purpose == Seal && k.ValidAt(now) {
			return k, true
		}
	}
	return Key{}, false
}

// AccessEnds returns when the last of its valid signing keys ends. It is zero where one has no end, and where none is valid.
func (s *Subject) AccessEnds(now time.Time) (end time.Time) {
	for _, k := range s.Keys {
		switch {
		case k.Purpose != Sign || !k.ValidAt(now):
		case k.Ends.IsZero():
			return time.Time{}
		case k.Ends.After(end):
			end = k.Ends
		}
	}
	return end
}

// SignKeys returns how many signing keys are valid now.
func (s *Subject) SignKeys(now time.Time) (n int) {
	for _, k := range s.Keys {
		if k.Purpose == Sign && k.ValidAt(now) {
			n++
		}
	}
	return n
}

// Purpose says what a subject's key does.
type Purpose string

// Sign keys sign assertions and receipts; Seal keys unseal commands.
const (
	Sign Purpose = "sign"
	Seal Purpose = "seal"
)

// KeyState says whether a subject's key is valid.
type KeyState string

// The states of a subject's key. A retired key was replaced, or its end has passed; a revoked one is not trusted for anything.
const (
	KeyActive  KeyState = "active"
	KeyRetired KeyState = "retired"
	KeyRevoked KeyState = "revoked"
)

// Key is a subject's public key. JWK is its canonical form: the members of
// RFC 7638 §3.2 in that order, whose SHA-256 is ID.
type Key struct {
	ID      KeyID
	Purpose Purpose
	JWK     []byte
	State   KeyState
	Added   time.Time
	// Retired is when another key took its place, or its end; zero while it is active.
	Retired time.Time
	// Name is what the holder calls the machine that keeps the key; empty for none. See [CheckKeyName].
	Name string
	// Ends is when the key stops to be valid, in whole seconds; zero means never.
	Ends time.Time
}

// ValidAt reports whether what the key signs now is accepted, and whether it may be sealed to. Nothing else decides this.
func (k *Key) ValidAt(now time.Time) bool { return k.State == KeyActive && !k.EndedAt(now) }

// EndedAt reports whether the end of the key has come, whatever its state is.
func (k *Key) EndedAt(now time.Time) bool { return !k.Ends.IsZero() && !now.Before(k.Ends) }

// MaxKeyName is the maximum length of [Key.Name] in bytes.
const MaxKeyName = 64

// CheckKeyName refuses a name of a key that is longer than [MaxKeyName] or has other than printable ASCII characters and
// spaces. An empty one is accepted. Code: bad_request.
func CheckKeyName(name string) error {
	if len(name) > MaxKeyName || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) {
		return RefuseField("keys.name", "must be at most %d printable ASCII characters", MaxKeyName)
	}
	return nil
}
