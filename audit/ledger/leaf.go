package ledger

import (
	"crypto/rand"
	"crypto/sha256"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
)

// Hash is a SHA-256 hash.
type Hash = tlog.Hash

// Salt prevents guessing a body from its hash.
type Salt [16]byte

// NewSalt returns a random salt.
func NewSalt() (s Salt) {
	_, _ = rand.Read(s[:]) // never fails (crypto/rand)
	return s
}

// Commitment returns the hash of a body that the log stores permanently: SHA-256 over its salt, then its bytes.
func Commitment(salt Salt, body []byte) (h Hash) {
	var stack [1024]byte // most entries are smaller, and then nothing is allocated
	return sha256.Sum256(append(append(stack[:0], salt[:]...), body...))
}

// Version and length of a leaf's data: the version, then the commitment.
const (
	leafVersion = 1
	leafSize    = 1 + tlog.HashSize
)

// EntrySize is the size of one entry in a bundle, in bytes.
const EntrySize = 2 + leafSize

// Leaf returns the data of the leaf for a commitment: an item of an entry bundle.
func Leaf(commit Hash) [leafSize]byte {
	var b [leafSize]byte
	b[0] = leafVersion
	copy(b[1:], commit[:])
	return b
}

// LeafHash returns the hash of that leaf in the tree (RFC 6962 §2.1).
func LeafHash(commit Hash) Hash {
	var b [1 + leafSize]byte // the first zero is the leaf prefix of RFC 6962
	b[1] = leafVersion
	copy(b[2:], commit[:])
	return sha256.Sum256(b[:])
}

// AppendBundle appends the leaf of commit to an entry bundle (tlog-tiles, Log entries).
func AppendBundle(bundle []byte, commit Hash) []byte {
	leaf := Leaf(commit)
	return append(append(bundle, 0, leafSize), leaf[:]...)
}

// ParseBundle parses a bundle of width entries. Code: log_invalid.
func ParseBundle(b []byte, width int) ([]Hash, error) {
	if len(b) != width*(2+leafSize) {
		return nil, watchword.Refuse(watchword.LogInvalid, "the bundle has %d bytes; %d entries need %d", len(b), width, width*(2+leafSize))
	}
	out := make([]Hash, width)
	for i := range out {
		e := b[i*(2+leafSize):]
		if e[0] != 0 || e[1] != leafSize || e[2] != leafVersion {
			return nil, watchword.Refuse(watchword.LogInvalid, "entry %d of the bundle is not a salted entry", i)
		}
		copy(out[i][:], e[3:])
	}
	return out, nil
}
