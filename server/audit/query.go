package audit

import (
	"hash/fnv"
	"math"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
)

// Query selects entries; empty fields select all.
type Query struct {
	Tenant watchword.TenantID // tenant of the entries; empty: all, for verification of the log
	// Subject is the actor, the object, or the subject to which the device or token belongs.
	Subject watchword.SubjectID
	Object  string // a subject, policy, command, key, … id
	Kind    string // one kind, or a group of them as "device.*"
	Cause   string // the code of a refusal, or the cause of a session's end
	From    time.Time
	To      time.Time // exclusive
}

// IsEmpty reports whether q selects all entries of its tenant.
func (q Query) IsEmpty() bool {
	q.Tenant = ""
	return q == Query{}
}

// Check refuses a kind that does not exist, so that a mistyped kind is an error instead of an empty result. Code:
// bad_request.
func (q Query) Check() error {
	group, grouped := strings.CutSuffix(q.Kind, ".*")
	for _, k := range Kinds {
		if g, _, _ := strings.Cut(k, "."); k == q.Kind || grouped && g == group {
			return nil
		}
	}
	if q.Kind == "" {
		return nil
	}
	return watchword.RefuseField("kind", "must be a kind of entry, such as device.create, or a group, such as device.*")
}

// Matches reports whether q selects e.
func (q Query) Matches(e Entry) bool {
	if q.Tenant != "" && e.Tenant != q.Tenant {
		return false
	}
	if q.Subject != "" && e.Actor != q.Subject && e.Object != string(q.Subject) && e.Data["device"] != string(q.Subject) && e.Data["subject"] != string(q.Subject) {
		return false
	}
	if group, ok := strings.CutSuffix(q.Kind, ".*"); ok {
		if g, _, _ := strings.Cut(e.Kind, "."); g != group {
			return false
		}
	} else if q.Kind != "" && e.Kind != q.Kind {
		return false
	}
	return (q.Object == "" || e.Object == q.Object) &&
		(q.Cause == "" || string(e.Code) == q.Cause || e.Data["cause"] == q.Cause) &&
		(q.From.IsZero() || !e.At.Before(q.From)) && (q.To.IsZero() || e.At.Before(q.To))
}

// TileFilter describes the entries of one full tile of the log, so that a search can skip tiles: a Bloom filter over the
// members that a [Query] can select, and the earliest and latest time. It is not part of the log, and verification of the
// log computes it again. An index of each entry on the disk would cost as much as the entry. The zero value is that of no
// entries.
type TileFilter struct {
	Bits        [filterBytes]byte
	First, Last int64 // milliseconds; both 0 if there are no entries
}

// With 256 entries of five terms each, about one query in 200 is a false positive.
const (
	filterBytes  = 2048
	filterHashes = 6
)

// filterTerm returns the hash of a term: its type and its value.
func filterTerm(what byte, value string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte{what}) // hashing does not fail
	_, _ = h.Write([]byte(value))
	return h.Sum64()
}

// Types of terms.
const (
	ofSubject = 's'
	ofObject  = 'o'
	ofKind    = 'k'
	ofGroup   = 'g'
	ofCause   = 'c'
)

// Add adds an entry.
func (t *TileFilter) Add(e Entry) {
	add := func(what byte, value string) {
		if value != "" {
			t.eachBit(filterTerm(what, value), func(at int, bit byte) bool { t.Bits[at] |= bit; return true })
		}
	}
	add(ofSubject, string(e.Actor))
	add(ofSubject, e.Data["device"])
	add(ofSubject, e.Data["subject"])
	add(ofObject, e.Object)
	add(ofKind, e.Kind)
	group, _, _ := strings.Cut(e.Kind, ".")
	add(ofGroup, group)
	add(ofCause, string(e.Code))
	add(ofCause, e.Data["cause"])
	at := e.At.UnixMilli()
	if t.First == 0 {
		t.First, t.Last = math.MaxInt64, math.MinInt64
	}
	t.First, t.Last = min(t.First, at), max(t.Last, at)
}

// MayMatch reports whether the tile may contain an entry that q selects; false is certain.
func (t *TileFilter) MayMatch(q Query) bool {
	has := func(what byte, value string) bool {
		return t.eachBit(filterTerm(what, value), func(at int, bit byte) bool { return t.Bits[at]&bit != 0 })
	}
	group, grouped := strings.CutSuffix(q.Kind, ".*")
	switch {
	case q.Subject != "" && !has(ofSubject, string(q.Subject)) && !has(ofObject, string(q.Subject)),
		q.Object != "" && !has(ofObject, q.Object),
		grouped && !has(ofGroup, group),
		!grouped && q.Kind != "" && !has(ofKind, q.Kind),
		q.Cause != "" && !has(ofCause, q.Cause),
		!q.From.IsZero() && t.Last < q.From.UnixMilli(),
		!q.To.IsZero() && t.First >= q.To.UnixMilli():
		return false
	}
	return true
}

// eachBit calls f for the bits of a term until it returns false.
func (t *TileFilter) eachBit(h uint64, f func(at int, bit byte) bool) bool {
	a, b := uint32(h), uint32(h>>32)|1
	for range filterHashes {
		if i := a % (filterBytes * 8); !f(int(i/8), 1<<(i%8)) {
			return false
		}
		a += b
	}
	return true
}
