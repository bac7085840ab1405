package audit

import "github.com/watchword-iot/watchword/audit/ledger"

// Edge is the right edge of the log: the tree over its entries, and the terms of those entries that fill no tile yet.
type Edge struct {
	Tree  ledger.Tree
	Terms TileFilter
}

// Leaf is an entry that joins the log, and its hash in the tree.
type Leaf struct {
	Hash  ledger.Hash
	Entry Entry
}

// Growth is what a store writes when entries join the log, beside the entries: the tiles that they fill, and the terms of
// those of the lowest level.
type Growth struct {
	Tiles []ledger.Tile
	Terms []TileTerms
}

// TileTerms are the terms of tile N of the lowest level.
type TileTerms struct {
	N int64
	TileFilter
}

// Append returns the edge with leaves behind it. The edge that it got does not change.
func (e Edge) Append(leaves []Leaf) (Edge, Growth) {
	if len(leaves) == 0 {
		return e, Growth{}
	}
	var g Growth
	hashes := make([]ledger.Hash, len(leaves))
	at := e.Tree.Size()
	for i, l := range leaves {
		hashes[i] = l.Hash
		e.Terms.Add(l.Entry)
		if at++; at%ledger.TileWidth == 0 {
			g.Terms = append(g.Terms, TileTerms{at/ledger.TileWidth - 1, e.Terms})
			e.Terms = TileFilter{}
		}
	}
	e.Tree, g.Tiles = e.Tree.Append(hashes...)
	return e, g
}

// NewRecord returns an entry as it is stored, under a salt of its own, and its hash in the tree.
func NewRecord(seq int64, body []byte) (Record, ledger.Hash) {
	r := Record{Seq: seq, Salt: ledger.NewSalt(), Body: body}
	r.Hash = ledger.Commitment(r.Salt, body)
	return r, ledger.LeafHash(r.Hash)
}
