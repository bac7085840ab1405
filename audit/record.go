package audit

import (
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Record is an entry as it is kept: Hash is what the log's leaf commits to, Salt and
// Body what it was made of. Of a pruned entry there is the hash alone, and Body is nil.
type Record struct {
	Seq  int64 // from 1; the leaf's index is one less
	Hash ledger.Hash
	Salt ledger.Salt
	Body []byte
}

// Pruned reports whether the entry is not kept any more.
func (r Record) Pruned() bool { return r.Body == nil }

// MatchesHash reports whether the body is the one that the log commits to.
func (r Record) MatchesHash() bool { return r.Pruned() || ledger.Commitment(r.Salt, r.Body) == r.Hash }

// Entry reads the body. Codes: not_found for a pruned one; log_invalid.
func (r Record) Entry() (Entry, error) {
	if r.Pruned() {
		return Entry{}, watchword.Refuse(watchword.NotFound, "entry %d is not kept any more: the log has its hash alone", r.Seq)
	}
	e, err := Parse(r.Seq, r.Body)
	if err != nil {
		return Entry{}, watchword.Wrap(err, watchword.LogInvalid, "entry %d is damaged", r.Seq)
	}
	return e, nil
}

// SignedCheckpoint is a signed checkpoint as it is kept.
type SignedCheckpoint struct {
	Size int64
	Note []byte // with its cosignatures
	At   time.Time
}

// Page says which of the entries that a [Query] chooses are wanted.
type Page struct {
	After  int64 // numbers above it
	Before int64 // and below it; 0: all
	Newest bool  // newest first
	Limit  int
}

// MaxSeq is the largest number that may be wanted of a log of so many entries.
func (p Page) MaxSeq(size int64) int64 {
	if p.Before > 0 && p.Before <= size {
		return p.Before - 1
	}
	return size
}

// Filter returns those of rs, which are in order, that q and p choose, at most limit.
// Of entries that are pruned nobody knows what they were: only who asks for all
// gets them.
func (p Page) Filter(q Query, rs []Record, limit int) (out []Record) {
	for i := range rs {
		r := rs[i]
		if p.Newest {
			r = rs[len(rs)-1-i]
		}
		if len(out) == limit || r.Seq <= p.After || p.Before > 0 && r.Seq >= p.Before {
			continue
		}
		if r.Pruned() && q.IsEmpty() {
			out = append(out, r)
			continue
		}
		if q != (Query{}) {
			e, err := r.Entry()
			if err != nil || !q.Matches(e) {
				continue
			}
		}
		out = append(out, r)
	}
	return out
}
