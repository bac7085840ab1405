package ledger

import (
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
)

// Size of a tile (tlog-tiles, Merkle Tree).
const (
	TileHeight = 8
	TileWidth  = 1 << TileHeight
)

// Tile is a full tile: TileWidth hashes, and their root.
type Tile struct {
	Level  int
	N      int64
	Hashes []Hash
	Root   Hash
}

// Tree is the right edge of a tree: the part that is needed to append leaves and to compute the root. It is a value. The
// result of Append may share memory with its receiver: if Append is called twice on one tree, only the last result may be
// used. The zero value is the empty tree.
type Tree struct {
	size  int64
	edges [][]Hash // by level: the hashes of the tile that is not full yet
}

// Size returns the number of leaves.
func (t Tree) Size() int64 { return t.size }

// Append appends leaves, and returns the tiles that become full.
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
	t.edges[level] = nil // the full tile belongs to the caller
	tile := Tile{Level: level, N: n / TileWidth, Hashes: edge, Root: Root(edge)}
	return t.put(level+1, tile.N, tile.Root, append(full, tile))
}

// Root returns the tree's hash (RFC 6962 §2.1).
func (t Tree) Root() Hash {
	if t.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // the empty tree needs no reader, and cannot fail
		return h
	}
	var stack []Hash // roots of perfect subtrees, the largest first
	for _, edge := range slices.Backward(t.edges) {
		stack = appendPerfect(stack, edge)
	}
	return foldRight(stack)
}

// Edge returns the tile of a level that is not full yet, and its number n. The result must not be modified.
func (t Tree) Edge(level int) (n int64, hashes []Hash) {
	n = t.size >> (TileHeight * (level + 1))
	if level < len(t.edges) {
		hashes = t.edges[level]
	}
	return n, hashes
}

// TreeFromEdges returns the tree whose incomplete tiles have these hashes, by level.
func TreeFromEdges(edges [][]Hash) Tree {
	t := Tree{edges: make([][]Hash, len(edges))}
	for i, e := range edges {
		t.edges[i] = append(make([]Hash, 0, TileWidth), e...)
		t.size += int64(len(e)) << (TileHeight * i)
	}
	return t
}

// PartialWidths returns the width of the incomplete tile of each level in a tree of that size.
func PartialWidths(size int64) (out []int) {
	for ; size > 0; size >>= TileHeight {
		out = append(out, int(size%TileWidth))
	}
	return out
}

// Root returns the root over at least one leaf or subtree, all of the same height.
func Root(hashes []Hash) Hash { return foldRight(appendPerfect(nil, hashes)) }

// appendPerfect appends the roots of the perfect subtrees over hashes.
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

// TreeAt returns the tree of a size, from the tiles at its right edge, which are not verified.
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

// AppendTile appends hashes in the encoding of a tile.
func AppendTile(b []byte, hashes ...Hash) []byte {
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

// ParseTile parses a tile of width hashes. Code: log_invalid.
func ParseTile(b []byte, width int) ([]Hash, error) {
	if len(b) != width*tlog.HashSize {
		return nil, watchword.Refuse(watchword.LogInvalid, "the tile has %d bytes; %d hashes need %d", len(b), width, width*tlog.HashSize)
	}
	out := make([]Hash, width)
	for i := range out {
		copy(out[i][:], b[i*tlog.HashSize:])
	}
	return out, nil
}
