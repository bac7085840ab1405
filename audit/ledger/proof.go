package ledger

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
)

// TileReader returns the first width hashes of a tile. Level, number and width are always those of a tile that a tree of
// the current size has.
type TileReader func(level int, n int64, width int) ([]byte, error)

// tiles adapts a TileReader to the interface of the tlog package.
type tiles struct{ read TileReader }

func (t tiles) Height() int { return TileHeight }

func (t tiles) ReadTiles(ts []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(ts))
	for i, x := range ts {
		var err error
		if out[i], err = t.read(x.L, x.N, x.W); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// InclusionProof returns the proof that the tree of c contains the leaf with that index. Every tile is verified against c's
// root; tiles that do not match are an error. Code: log_invalid, and those of read.
func InclusionProof(c Checkpoint, index int64, read TileReader) ([]Hash, error) {
	if index < 0 || index >= c.Size {
		return nil, watchword.Refuse(watchword.NotFound, "entry %d is not in the log of %d entries", index+1, c.Size)
	}
	p, err := tlog.ProveRecord(c.Size, index, tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tiles{read}))
	return p, proofInvalid(err)
}

// ConsistencyProof returns the proof that the tree of c extends the one of an older size. Codes: as [InclusionProof].
func ConsistencyProof(c Checkpoint, size int64, read TileReader) ([]Hash, error) {
	if size < 0 || size > c.Size {
		return nil, watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and had %d before", c.Size, size)
	}
	if size == 0 || size == c.Size {
		return nil, nil
	}
	p, err := tlog.ProveTree(c.Size, size, tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tiles{read}))
	return p, proofInvalid(err)
}

func proofInvalid(err error) error {
	if err == nil || watchword.CodeOf(err) != watchword.Internal {
		return err
	}
	return watchword.Wrap(err, watchword.LogInvalid, "the log's tiles do not match its checkpoint")
}

// VerifyInclusion verifies a proof that the tree of c contains a leaf. Code: log_invalid.
func VerifyInclusion(c Checkpoint, index int64, leaf Hash, proof []Hash) error {
	if index < 0 || index >= c.Size || tlog.CheckRecord(proof, c.Size, c.Root, index, leaf) != nil {
		return watchword.Refuse(watchword.LogInvalid, "entry %d is not in the log of this checkpoint", index+1)
	}
	return nil
}

// VerifyConsistency verifies a proof that the tree of c extends that of before: no leaf was changed or removed. Code:
// log_invalid.
func VerifyConsistency(c, before Checkpoint, proof []Hash) error {
	good := false
	switch {
	case c.Origin != before.Origin:
		return watchword.Refuse(watchword.LogInvalid, "the checkpoints are of different logs: %s and %s", before.Origin, c.Origin)
	case before.Size > c.Size:
		return watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and had %d before: entries were removed", c.Size, before.Size)
	case before.Size == 0:
		good = len(proof) == 0
	case before.Size == c.Size:
		good = len(proof) == 0 && before.Root == c.Root
	default:
		good = tlog.CheckTree(proof, c.Size, c.Root, before.Size, before.Root) == nil
	}
	if !good {
		return watchword.Refuse(watchword.LogInvalid, "the log of %d entries does not begin with the log of %d entries: it was rewritten, or these are two logs", c.Size, before.Size)
	}
	return nil
}

// Proof proves that a log contains an entry, and can be verified with the log's public key alone: a C2SP tlog-proof, with
// the entry's salt and body as extra data.
type Proof struct {
	Index      int64 // from 0
	Salt       Salt
	Body       []byte
	Hashes     []Hash
	Checkpoint []byte // signed
}

// strictBase64 accepts one form for each content.
var strictBase64 = base64.StdEncoding.Strict()

const proofHead = "c2sp.org/tlog-proof@v1\n"

// Marshal returns the proof as text.
func (p Proof) Marshal() []byte {
	var b bytes.Buffer
	b.WriteString(proofHead)
	b.WriteString("extra " + strictBase64.EncodeToString(append(p.Salt[:], p.Body...)) + "\n")
	b.WriteString("index " + strconv.FormatInt(p.Index, 10) + "\n")
	for _, h := range p.Hashes {
		b.WriteString(strictBase64.EncodeToString(h[:]) + "\n")
	}
	b.WriteString("\n")
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// MaxProof is the maximum size of a proof as text, in bytes.
const MaxProof = 512 << 10

// IsProof reports whether b begins like a proof.
func IsProof(b []byte) bool { return bytes.HasPrefix(b, []byte(proofHead)) }

// ParseProof parses the output of Marshal. Code: log_invalid.
func ParseProof(b []byte) (p Proof, err error) {
	invalid := func(what string) (Proof, error) {
		return Proof{}, watchword.Refuse(watchword.LogInvalid, "the proof is malformed: %s", what)
	}
	head, note, ok := strings.Cut(string(b), "\n\n")
	if !ok || len(b) > MaxProof || !IsProof(b) {
		return invalid("the head line and the checkpoint are required")
	}
	p.Checkpoint = []byte(note)
	lines := strings.Split(head, "\n")[1:]
	if len(lines) < 2 {
		return invalid("the lines extra and index are required")
	}
	text, ok := strings.CutPrefix(lines[0], "extra ")
	extra, err := strictBase64.DecodeString(text)
	if !ok || err != nil || len(extra) < len(p.Salt) {
		return invalid("extra must be the salt and the body of the entry")
	}
	copy(p.Salt[:], extra)
	p.Body = extra[len(p.Salt):]
	text, ok = strings.CutPrefix(lines[1], "index ")
	if p.Index, err = strconv.ParseInt(text, 10, 64); !ok || err != nil || p.Index < 0 || strconv.FormatInt(p.Index, 10) != text {
		return invalid("index must be a number")
	}
	if len(lines) > 2+63 {
		return invalid("it must have at most 63 hashes")
	}
	for _, l := range lines[2:] {
		h, err := strictBase64.DecodeString(l)
		if err != nil || len(h) != tlog.HashSize {
			return invalid("each hash line must be 32 bytes in base64")
		}
		p.Hashes = append(p.Hashes, Hash(h))
	}
	return p, nil
}

// Verify verifies that the log that one of keys has signed contains the entry. Code: log_invalid.
func (p Proof) Verify(keys ...Key) (VerifiedCheckpoint, error) {
	c, err := VerifyCheckpoint(p.Checkpoint, keys...)
	if err != nil {
		return c, err
	}
	return c, VerifyInclusion(c.Checkpoint, p.Index, LeafHash(Commitment(p.Salt, p.Body)), p.Hashes)
}
