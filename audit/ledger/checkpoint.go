package ledger

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/watchword-iot/watchword"
)

// MaxNote is the bound of a checkpoint with its signatures.
const MaxNote = 16 << 10

// Checkpoint is what a log says of itself at one moment (tlog-checkpoint).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   Hash
}

// text is the note's text: three lines.
func (c Checkpoint) text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + strictBase64.EncodeToString(c.Root[:]) + "\n"
}

// Sign signs a checkpoint: a signed note.
func (c Checkpoint) Sign(s Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.text()}, s)
}

// Cosignature is what a witness said of a checkpoint, and when.
type Cosignature struct {
	Witness Key
	At      time.Time
}

// VerifiedCheckpoint is a checkpoint whose log's signature is good.
type VerifiedCheckpoint struct {
	Checkpoint
	Cosignatures      []Cosignature // of witnesses among the keys, one each
	UnknownSignatures int           // signatures by others, who may be anybody
}

// VerifyCheckpoint checks a signed checkpoint: one of keys must be the log's, its name the
// origin, and have signed; the others, if they are witnesses that signed, stand in
// what is returned. Signatures by keys that are not among keys say nothing. Code:
// log_invalid.
func VerifyCheckpoint(raw []byte, keys ...Key) (VerifiedCheckpoint, error) {
	if len(raw) > MaxNote {
		return VerifiedCheckpoint{}, watchword.Refuse(watchword.LogInvalid, "the checkpoint is larger than 16 KiB")
	}
	var vs []note.Verifier
	byID := map[string]Key{}
	for _, k := range keys {
		if known, twice := byID[k.id()]; twice && known.String() == k.String() {
			continue // several bundles name it
		}
		vs = append(vs, k)
		byID[k.id()] = k
	}
	n, err := note.Open(raw, note.VerifierList(vs...))
	if err != nil {
		return VerifiedCheckpoint{}, watchword.Wrap(err, watchword.LogInvalid, "the checkpoint is not signed by the log's key")
	}
	c, err := parseText(n.Text)
	if err != nil {
		return VerifiedCheckpoint{}, err
	}
	out, signed := VerifiedCheckpoint{Checkpoint: c, UnknownSignatures: len(n.UnverifiedSigs)}, false
	for _, s := range n.Sigs {
		b, err := strictBase64.DecodeString(s.Base64)
		if err != nil {
			out.UnknownSignatures++ // a second form of a signature is none
			continue
		}
		k := byID[Key{name: s.Name}.idOf(s.Hash)]
		if !k.Witness() {
			signed = signed || k.name == c.Origin
			continue
		}
		out.Cosignatures = append(out.Cosignatures, Cosignature{k, time.Unix(int64(binary.BigEndian.Uint64(b[4:])), 0).UTC()}) // it verified, so it has its length
	}
	if !signed {
		return VerifiedCheckpoint{}, watchword.Refuse(watchword.LogInvalid, "the checkpoint is not signed by the log's key")
	}
	return out, nil
}

func (k Key) id() string              { return k.idOf(k.KeyHash()) }
func (k Key) idOf(hash uint32) string { return k.name + "+" + strconv.FormatUint(uint64(hash), 16) }

// ReadCheckpoint reads a checkpoint before anybody checked its signature. Code:
// log_invalid.
func ReadCheckpoint(raw []byte) (Checkpoint, error) {
	text, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok || len(raw) > MaxNote {
		return Checkpoint{}, watchword.Refuse(watchword.LogInvalid, "this is no signed checkpoint")
	}
	return parseText(string(text) + "\n")
}

func parseText(text string) (c Checkpoint, err error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	invalid := watchword.Refuse(watchword.LogInvalid, "the checkpoint is not three lines: origin, size, root")
	if len(lines) < 3 || lines[0] == "" {
		return c, invalid
	}
	c.Origin = lines[0]
	size, err := strconv.ParseInt(lines[1], 10, 64)
	root, err2 := strictBase64.DecodeString(lines[2])
	if err != nil || err2 != nil || size < 0 || size > 1<<53 || len(root) != len(c.Root) {
		return c, invalid
	}
	c.Size = size
	copy(c.Root[:], root)
	if !strings.HasPrefix(text, c.text()) { // one encoding alone
		return c, invalid
	}
	return c, nil
}

// Cosign adds to a checkpoint the signature lines of a witness's answer that are
// that witness's, and returns it with them; unchanged if there is none. Code:
// log_invalid for an answer that holds none that is good.
func Cosign(raw, answer []byte, witness Key) ([]byte, error) {
	text, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok || len(answer) > MaxNote {
		return nil, watchword.Refuse(watchword.LogInvalid, "the witness's answer is no signature")
	}
	n, err := note.Open(append(append(bytes.Clone(text), "\n\n"...), answer...), note.VerifierList(witness))
	if err != nil {
		return nil, watchword.Wrap(err, watchword.LogInvalid, "the witness's answer is no signature of %s", witness.Name())
	}
	if _, err := strictBase64.DecodeString(n.Sigs[0].Base64); err != nil { // a second form would be nobody's to a strict reader
		return nil, watchword.Wrap(err, watchword.LogInvalid, "the witness's answer is no signature of %s", witness.Name())
	}
	line := "— " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n"
	if bytes.Contains(raw, []byte(line)) {
		return raw, nil
	}
	return append(bytes.Clone(raw), line...), nil
}
