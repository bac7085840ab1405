package audit

import "github.com/watchword-iot/watchword/audit/ledger"

// Edge is the right edge of the log: the tree over its entries, and the search terms of the entries that are not in a full
// tile yet.
type Edge struct {
	Tree  ledger.Tree
	Terms TileFilter
}

// Leaf is an entry that is appended to the log, and its hash in the tree.
type Leaf struct {
	Hash  ledger.Hash
	Entry Entry
}

// Growth is what a store writes besides the entries when entries are appended: the tiles that become full, and the search
// terms of those of the lowest level.
type Growth struct {
	Tiles []ledger.Tile
	Terms []TileTerms
}

// TileTerms is the search filter of tile N of the lowest level.
type TileTerms struct {
	N int64
	TileFilter
}

// Append returns the edge after leaves were appended. The receiver is not changed.
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

// NewRecord returns an entry as it is stored, with a new salt, and its hash in the tree.
func NewRecord(seq int64, body []byte) (Record, ledger.Hash) {
	r := Record{Seq: seq, Salt: ledger.NewSalt(), Body: body}
	r.Hash = ledger.Commitment(r.Salt, body)
	return r, ledger.LeafHash(r.Hash)
}
