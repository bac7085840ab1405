package audit

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// VerifyResult is the result for a valid log.
type VerifyResult struct {
	Origin       string
	Checkpoint   ledger.Checkpoint // the largest one that was verified
	Entries      int64
	Bodies       int64 // entries with their bodies
	Pruned       int64
	Uncovered    int64 // entries after the last checkpoint, which no signature covers yet
	Checkpoints  int   // compared with the entries
	Cosignatures []ledger.Cosignature
}

// LogVerifier recomputes a log, entry by entry, and compares it with signed checkpoints. It reports the first mismatch as
// log_invalid. It is not safe for concurrent use, and verifies one log.
type LogVerifier struct {
	expected     []expectedCheckpoint // by size
	externalSize int64                // size up to which checkpoints that were stored elsewhere cover the log
	tree         ledger.Tree
	result       VerifyResult
	leaves       []ledger.Hash

	tiles   []tileBodies
	pruning Pruning // the pruning of the entries so far
	prunes  []Entry // log.prune
}

// expectedCheckpoint is a checkpoint that the log must extend.
type expectedCheckpoint struct {
	ledger.VerifiedCheckpoint
	external bool // stored elsewhere, not by the log itself
}

// NewLogVerifier returns a verifier that uses the log's keys. own and external are signed checkpoints, stored by the log
// and by others: the log must extend all of them.
func NewLogVerifier(keys []ledger.Key, own, external [][]byte) (*LogVerifier, error) {
	c := &LogVerifier{}
	for i, n := range slices.Concat(own, external) {
		o, err := ledger.VerifyCheckpoint(n, keys...)
		if err != nil {
			return nil, err
		}
		if len(c.expected) > 0 && !sameLog(o.Origin, c.expected[0].Origin) {
			return nil, watchword.Refuse(watchword.LogInvalid, "the checkpoints are of different logs: %s and %s", c.expected[0].Origin, o.Origin)
		}
		if o.Size > 0 { // a checkpoint of the empty log proves nothing
			c.expected = append(c.expected, expectedCheckpoint{o, i >= len(own)})
		}
	}
	slices.SortStableFunc(c.expected, func(a, b expectedCheckpoint) int { return cmp.Compare(a.Size, b.Size) })
	return c, nil
}

// sameLog reports whether two origins are of one server's log: of before and after a restore ([watchword.RestoredLogOrigin]).
// The restored log begins with the entries that the backup had.
func sameLog(a, b string) bool { return baseOrigin(a) == baseOrigin(b) }

// baseOrigin returns an origin without the epoch and the random part of a restore.
func baseOrigin(origin string) string {
	i := strings.LastIndexByte(origin, '/')
	epoch, _, _ := strings.Cut(origin[i+1:], "-")
	if _, err := strconv.ParseUint(epoch, 10, 63); i >= 0 && err == nil && strings.HasSuffix(origin[:i], "/log") {
		return origin[:i]
	}
	return origin
}

// Record verifies the next entry. It returns the expected tiles that become full with it.
func (v *LogVerifier) Record(r Record) ([]ledger.Tile, error) {
	if next := v.result.Entries + 1; r.Seq != next {
		return nil, watchword.Refuse(watchword.LogInvalid, "entry %d is missing or out of order: entry %d follows entry %d", next, r.Seq, next-1)
	}
	if !r.MatchesHash() {
		return nil, watchword.Refuse(watchword.LogInvalid, "entry %d was changed: its body does not match its hash", r.Seq)
	}
	at := v.result.Entries / ledger.TileWidth
	if v.result.Entries++; int(at) == len(v.tiles) {
		v.tiles = append(v.tiles, tileBodies{})
	}
	t := &v.tiles[at]
	t.retained = v.pruning
	if !r.Pruned() {
		v.result.Bodies++
	} else if v.result.Pruned++; t.missing == 0 {
		t.missing = r.Seq
	}
	return v.addLeaf(ledger.LeafHash(r.Hash))
}

// CheckEntry examines the content of the entry that Record got last, if it has a body.
func (v *LogVerifier) CheckEntry(e Entry) {
	if Permanent(e.Kind) {
		v.pruning.AddRetained(e.Seq)
		v.tiles[len(v.tiles)-1].retained = v.pruning
	}
	if e.Kind == LogPrune {
		v.prunes = append(v.prunes, e)
	}
}

// addLeaf adds a leaf, and compares the tree with the checkpoints of its new size.
func (v *LogVerifier) addLeaf(h ledger.Hash) (full []ledger.Tile, err error) {
	v.leaves = append(v.leaves, h)
	due := len(v.expected) > 0 && v.expected[0].Size == v.result.Entries
	if !due && len(v.leaves) < ledger.TileWidth && v.result.Entries%ledger.TileWidth != 0 {
		return nil, nil
	}
	v.tree, full = v.tree.Append(v.leaves...)
	v.leaves = v.leaves[:0]
	return full, v.compare()
}

// compare compares the tree with the checkpoints of its size.
func (v *LogVerifier) compare() error {
	for len(v.expected) > 0 && v.expected[0].Size == v.tree.Size() {
		w := v.expected[0]
		if root := v.tree.Root(); root != w.Root {
			if last := v.expected[len(v.expected)-1]; last.Origin != w.Origin {
				return watchword.Refuse(watchword.LogInvalid, "the checkpoint of %d entries is of %s, and the log of %s does not begin with those entries: it was restored from a backup that has fewer of them, or it was rewritten", w.Size, w.Origin, last.Origin)
			}
			from := v.result.Checkpoint.Size + 1
			if w.external { // only external checkpoints prove anything about the log between them
				from = v.externalSize + 1
			}
			return watchword.Refuse(watchword.LogInvalid, "entry %s: the log was rewritten there: its first %d entries are not those that their checkpoint was signed for", span(from, w.Size), w.Size)
		}
		if w.external {
			v.externalSize = w.Size
		}
		v.result.Checkpoint, v.result.Origin, v.result.Cosignatures = w.Checkpoint, w.Origin, w.Cosignatures
		v.result.Checkpoints++
		v.expected = v.expected[1:]
	}
	return nil
}

func span(from, to int64) string {
	if from == to {
		return strconv.FormatInt(from, 10)
	}
	return strconv.FormatInt(from, 10) + " or one up to " + strconv.FormatInt(to, 10)
}

// Finish returns the result, after every entry was passed to Record.
func (v *LogVerifier) Finish() (VerifyResult, error) {
	if len(v.leaves) > 0 {
		v.tree, _ = v.tree.Append(v.leaves...)
		v.leaves = nil
		if err := v.compare(); err != nil {
			return v.result, err
		}
	}
	if len(v.expected) > 0 {
		last := v.expected[len(v.expected)-1]
		if v.result.Origin != "" && last.Origin != v.result.Origin {
			return v.result, watchword.Refuse(watchword.LogInvalid, "the checkpoint of %d entries is of %s, and the log of %s has %d: it was restored from a backup that has fewer of them, or entries were removed", last.Size, last.Origin, v.result.Origin, v.result.Entries)
		}
		return v.result, watchword.Refuse(watchword.LogInvalid, "entry %d is missing: the log has %d entries, and a checkpoint was signed for %d", v.result.Entries+1, v.result.Entries, last.Size)
	}
	v.result.Uncovered = v.result.Entries - v.result.Checkpoint.Size
	return v.result, nil
}
