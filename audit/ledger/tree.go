package ledger

import (
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
)

// The shape of a tile (tlog-tiles, Merkle Tree).
const (
	TileHeight = 8
	TileWidth  = 1 << TileHeight
)

// Tile is a full tile: TileWidth hashes, and the one that they add up to.
type Tile struct {
	Level  int
	N      int64
	Hashes []Hash
	Root   Hash
}

// Tree is the right edge of a tree: as much as is needed to go on and to know the
// root. It is a value; what Append returns may share memory with what it was called
// on, so that of two trees appended to the same one only the last counts. The zero
// value is the empty tree.
type Tree struct {
	size  int64
	edges [][]Hash // by level: the hashes of the tile that is not full yet
}

// Size is how many leaves there are.
func (t Tree) Size() int64 { return t.size }

// Append adds leaves, and returns the tiles that they fill.
func (t Tree) Append(leaves ...Hash) (Tree, []Tile) {
	next := Tree{t.size + int64(len(leaves)), slices.Clone(t.edges)}
	var full []Tile
	for i, h := range leaves {
		full = next.put(0, t.size+int64(i), h, full)
	}
	return next, full
}

// put adds the n-th hash of a level.
func (t *Tree) put(level int, n int64, h Hash, full []Tile) []Tile {
	if level == len(t.edges) {
		t.edges = append(t.edges, nil)
	}
	edge := t.edges[level]
	if cap(edge) == 0 {
		edge = make([]Hash, 0, TileWidth)
	}
	edge = append(edge, h)
	if len(edge) < TileWidth {
		t.edges[level] = edge
		return full
	}
	t.edges[level] = nil // the full one is given away
	tile := Tile{Level: level, N: n / TileWidth, Hashes: edge, Root: Root(edge)}
	return t.put(level+1, tile.N, tile.Root, append(full, tile))
}

// Root is the tree's hash (RFC 6962 §2.1).
func (t Tree) Root() Hash {
	if t.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // that of nothing needs no reader, and cannot fail
		return h
	}
	var stack []Hash // perfect subtrees, the largest first
	for _, edge := range slices.Backward(t.edges) {
		stack = appendPerfect(stack, edge)
	}
	return foldRight(stack)
}

// Edge is the tile of a level that is not full yet: the n-th. It is read only.
func (t Tree) Edge(level int) (n int64, hashes []Hash) {
	n = t.size >> (TileHeight * (level + 1))
	if level < len(t.edges) {
		hashes = t.edges[level]
	}
	return n, hashes
}

// TreeFromEdges is the tree whose tiles that are not full yet hold edges, by level.
func TreeFromEdges(edges [][]Hash) Tree {
	t := Tree{edges: make([][]Hash, len(edges))}
	for i, e := range edges {
		t.edges[i] = append(make([]Hash, 0, TileWidth), e...)
		t.size += int64(len(e)) << (TileHeight * i)
	}
	return t
}

// PartialWidths is how wide the unfinished tile of each level is in a tree of that size.
func PartialWidths(size int64) (out []int) {
	for ; size > 0; size >>= TileHeight {
		out = append(out, int(size%TileWidth))
	}
	return out
}

// Root is the hash of at least one leaf or subtree, all of the same height.
func Root(hashes []Hash) Hash { return foldRight(appendPerfect(nil, hashes)) }

// appendPerfect appends the roots of the perfect trees that hashes are made of.
func appendPerfect(stack, hashes []Hash) []Hash {
	for len(hashes) > 0 {
		n := 1
		for n*2 <= len(hashes) {
			n *= 2
		}
		stack, hashes = append(stack, hashPair(hashes[:n])), hashes[n:]
	}
	return stack
}

func hashPair(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return tlog.NodeHash(hashPair(hashes[:half]), hashPair(hashes[half:]))
}

func foldRight(stack []Hash) Hash {
	h := stack[len(stack)-1]
	for _, left := range slices.Backward(stack[:len(stack)-1]) {
		h = tlog.NodeHash(left, h)
	}
	return h
}

// TreeAt is the tree of a size, from the tiles at its right edge, which are believed.
func TreeAt(size int64, read TileReader) (Tree, error) {
	var edges [][]Hash
	for level, w := range PartialWidths(size) {
		var edge []Hash
		if w > 0 {
			b, err := read(level, size>>(TileHeight*(level+1)), w)
			if err != nil {
				return Tree{}, err
			}
			if edge, err = ParseTile(b, w); err != nil {
				return Tree{}, err
			}
		}
		edges = append(edges, edge)
	}
	return TreeFromEdges(edges), nil
}

// AppendTile appends hashes as a tile has them.
func AppendTile(b []byte, hashes ...Hash) []byte {
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

// ParseTile reads a tile of width hashes. Code: log_invalid.
func ParseTile(b []byte, width int) ([]Hash, error) {
	if len(b) != width*tlog.HashSize {
		return nil, watchword.Refuse(watchword.LogInvalid, "the tile has %d bytes, and %d hashes have %d", len(b), width, width*tlog.HashSize)
	}
	out := make([]Hash, width)
	for i := range out {
		copy(out[i][:], b[i*tlog.HashSize:])
	}
	return out, nil
}
