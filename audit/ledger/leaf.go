package ledger

import (
	"crypto/rand"
	"crypto/sha256"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
)

// Hash is a SHA-256 hash.
type Hash = tlog.Hash

// Salt is what keeps the hash of a body that can be guessed from telling it.
type Salt [16]byte

// NewSalt makes one.
func NewSalt() (s Salt) {
	_, _ = rand.Read(s[:]) // never fails (crypto/rand)
	return s
}

// Commitment is what the log keeps of a body for ever: SHA-256 over its salt, then
// its bytes.
func Commitment(salt Salt, body []byte) (h Hash) {
	var stack [1024]byte // an entry of most kinds is smaller, and then nothing is allocated
	return sha256.Sum256(append(append(stack[:0], salt[:]...), body...))
}

// What a leaf's data begins with, and how long it is: a version, and the commitment.
const (
	leafVersion = 1
	leafSize    = 1 + tlog.HashSize
)

// EntrySize is how many bytes one entry has in a bundle.
const EntrySize = 2 + leafSize

// Leaf is the data of the leaf that commits to a body: an item of an entry bundle.
func Leaf(commit Hash) [leafSize]byte {
	var b [leafSize]byte
	b[0] = leafVersion
	copy(b[1:], commit[:])
	return b
}

// LeafHash is the hash of that leaf in the tree (RFC 6962 §2.1).
func LeafHash(commit Hash) Hash {
	var b [1 + leafSize]byte // the first zero is RFC 6962's prefix of a leaf
	b[1] = leafVersion
	copy(b[2:], commit[:])
	return sha256.Sum256(b[:])
}

// AppendBundle appends the leaf of commit to an entry bundle (tlog-tiles, Log entries).
func AppendBundle(bundle []byte, commit Hash) []byte {
	leaf := Leaf(commit)
	return append(append(bundle, 0, leafSize), leaf[:]...)
}

// ParseBundle reads a bundle of width entries. Code: log_invalid.
func ParseBundle(b []byte, width int) ([]Hash, error) {
	if len(b) != width*(2+leafSize) {
		return nil, watchword.Refuse(watchword.LogInvalid, "the bundle has %d bytes, and %d entries have %d", len(b), width, width*(2+leafSize))
	}
	out := make([]Hash, width)
	for i := range out {
		e := b[i*(2+leafSize):]
		if e[0] != 0 || e[1] != leafSize || e[2] != leafVersion {
			return nil, watchword.Refuse(watchword.LogInvalid, "entry %d of the bundle is no leaf of ours", i)
		}
		copy(out[i][:], e[3:])
	}
	return out, nil
}
