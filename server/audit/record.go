package audit

import (
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Record is an entry as it is stored: Hash is the value to which the log's leaf commits, Salt and Body are what it was
// computed from. A pruned entry has only the hash, and Body is nil.
type Record struct {
	Seq  int64 // from 1; the leaf's index is one less
	Hash ledger.Hash
	Salt ledger.Salt
	Body []byte
}

// Pruned reports whether the body was deleted.
func (r Record) Pruned() bool { return r.Body == nil }

// MatchesHash reports whether the body matches the hash to which the log commits.
func (r Record) MatchesHash() bool { return r.Pruned() || ledger.Commitment(r.Salt, r.Body) == r.Hash }

// Entry parses the body. Codes: not_found for a pruned one; log_invalid.
func (r Record) Entry() (Entry, error) {
	if r.Pruned() {
		return Entry{}, watchword.Refuse(watchword.NotFound, "entry %d was pruned: the log has only its hash", r.Seq)
	}
	e, err := Parse(r.Seq, r.Body)
	if err != nil {
		return Entry{}, watchword.Wrap(err, watchword.LogInvalid, "entry %d is damaged", r.Seq)
	}
	return e, nil
}

// SignedCheckpoint is a signed checkpoint as it is stored.
type SignedCheckpoint struct {
	Size int64
	Note []byte // with its cosignatures
	At   time.Time
}

// Page selects a part of the entries of a [Query].
type Page struct {
	After  int64 // only larger numbers
	Before int64 // only smaller numbers; 0: all
	Newest bool  // newest first
	Limit  int
}

// MaxSeq returns the largest number that a page of a log with size entries can have.
func (p Page) MaxSeq(size int64) int64 {
	if p.Before > 0 && p.Before <= size {
		return p.Before - 1
	}
	return size
}

// Filter returns those of rs, which are sorted, that q and p select, at most limit. The content of pruned entries is
// unknown: only a query without conditions gets them.
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
