package audit

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Verdict is what was found of a log that is good.
type Verdict struct {
	Origin       string
	Checkpoint   ledger.Checkpoint // the largest that was checked
	Entries      int64
	Bodies       int64 // entries that were seen whole
	Pruned       int64
	Uncovered    int64 // entries after the last checkpoint: nothing signed speaks of them yet
	Checkpoints  int   // that were held against the entries
	Cosignatures []ledger.Cosignature
}

// Check recomputes a log, entry by entry, and holds it against signed checkpoints.
// What it says of the first thing that does not fit is log_invalid. It is for one
// goroutine, and for one log.
type Check struct {
	want  []wanted // by size
	sure  int64    // up to here by checkpoints that were kept elsewhere
	tree  ledger.Tree
	v     Verdict
	fresh []ledger.Hash

	tiles  []bodies
	kept   Pruning // as it would be said of the entries so far
	prunes []Entry // log.prune
}

// wanted is a checkpoint that the log must extend.
type wanted struct {
	ledger.Opened
	elsewhere bool // it was not kept by the log itself
}

// NewCheck returns a check by the log's keys. own and elsewhere are signed checkpoints, kept
// by the log and by others: the log must extend all.
func NewCheck(keys []ledger.Key, own, elsewhere [][]byte) (*Check, error) {
	c := &Check{}
	for i, n := range slices.Concat(own, elsewhere) {
		o, err := ledger.Open(n, keys...)
		if err != nil {
			return nil, err
		}
		if len(c.want) > 0 && o.Origin != c.want[0].Origin {
			return nil, watchword.Refuse(watchword.LogInvalid, "the checkpoints are of two logs, %s and %s", c.want[0].Origin, o.Origin)
		}
		if o.Size > 0 { // that of nothing says nothing
			c.want = append(c.want, wanted{o, i >= len(own)})
		}
	}
	slices.SortStableFunc(c.want, func(a, b wanted) int { return cmp.Compare(a.Size, b.Size) })
	return c, nil
}

// Record takes the next entry. It returns the tiles that it fills, as they must be.
func (c *Check) Record(r Record) ([]ledger.Tile, error) {
	if next := c.v.Entries + 1; r.Seq != next {
		return nil, watchword.Refuse(watchword.LogInvalid, "entry %d is missing, or is not in its place: %d follows %d", next, r.Seq, next-1)
	}
	if !r.Fits() {
		return nil, watchword.Refuse(watchword.LogInvalid, "entry %d was changed: its body is not the one that was logged", r.Seq)
	}
	at := c.v.Entries / ledger.TileWidth
	if c.v.Entries++; int(at) == len(c.tiles) {
		c.tiles = append(c.tiles, bodies{})
	}
	t := &c.tiles[at]
	t.kept = c.kept
	if !r.Pruned() {
		c.v.Bodies++
	} else if c.v.Pruned++; t.missing == 0 {
		t.missing = r.Seq
	}
	return c.leaf(ledger.LeafHash(r.Hash))
}

// Told takes what the entry says that Record took last, where it has a body.
func (c *Check) Told(e Entry) {
	if Lasting(e.Kind) {
		c.kept.Keep(e.Seq)
		c.tiles[len(c.tiles)-1].kept = c.kept
	}
	if e.Kind == LogPrune {
		c.prunes = append(c.prunes, e)
	}
}

// leaf adds a leaf, and compares the tree with the checkpoints of its new size.
func (c *Check) leaf(h ledger.Hash) (full []ledger.Tile, err error) {
	c.fresh = append(c.fresh, h)
	due := len(c.want) > 0 && c.want[0].Size == c.v.Entries
	if !due && len(c.fresh) < ledger.TileWidth && c.v.Entries%ledger.TileWidth != 0 {
		return nil, nil
	}
	c.tree, full = c.tree.Append(c.fresh...)
	c.fresh = c.fresh[:0]
	return full, c.compare()
}

// compare holds the tree against the checkpoints of its size.
func (c *Check) compare() error {
	for len(c.want) > 0 && c.want[0].Size == c.tree.Size() {
		w := c.want[0]
		if root := c.tree.Root(); root != w.Root {
			from := c.v.Checkpoint.Size + 1
			if w.elsewhere { // what the log says of itself in between is nobody's word
				from = c.sure + 1
			}
			return watchword.Refuse(watchword.LogInvalid, "entry %s: the log was rewritten there: its first %d entries are not those that their checkpoint was signed for", span(from, w.Size), w.Size)
		}
		if w.elsewhere {
			c.sure = w.Size
		}
		c.v.Checkpoint, c.v.Origin, c.v.Cosignatures = w.Checkpoint, w.Origin, w.Cosignatures
		c.v.Checkpoints++
		c.want = c.want[1:]
	}
	return nil
}

func span(from, to int64) string {
	if from == to {
		return strconv.FormatInt(from, 10)
	}
	return strconv.FormatInt(from, 10) + " or one up to " + strconv.FormatInt(to, 10)
}

// End says what was found: every entry has been taken.
func (c *Check) End() (Verdict, error) {
	if len(c.fresh) > 0 {
		c.tree, _ = c.tree.Append(c.fresh...)
		c.fresh = nil
		if err := c.compare(); err != nil {
			return c.v, err
		}
	}
	if len(c.want) > 0 {
		last := c.want[len(c.want)-1]
		return c.v, watchword.Refuse(watchword.LogInvalid, "entry %d is missing: the log has %d entries, and a checkpoint was signed for %d", c.v.Entries+1, c.v.Entries, last.Size)
	}
	c.v.Uncovered = c.v.Entries - c.v.Checkpoint.Size
	return c.v, nil
}
