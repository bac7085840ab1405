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

// MaxNote is the maximum size of a checkpoint with its signatures, in bytes.
const MaxNote = 16 << 10

// Checkpoint is the size and root of a log at one moment (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   Hash
}

// text returns the note's text: three lines.
func (c Checkpoint) text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + strictBase64.EncodeToString(c.Root[:]) + "\n"
}

// Sign returns the checkpoint as a signed note.
func (c Checkpoint) Sign(s Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.text()}, s)
}

// Cosignature is the signature of a witness under a checkpoint, and its time.
type Cosignature struct {
	Witness Key
	At      time.Time
}

// VerifiedCheckpoint is a checkpoint whose log signature was verified.
type VerifiedCheckpoint struct {
	Checkpoint
	Cosignatures      []Cosignature // of witnesses among the keys, at most one each
	UnknownSignatures int           // number of signatures by other keys, which are not verified
}

// VerifyCheckpoint verifies a signed checkpoint: one of keys must be the log's, its name the origin, and have signed. The
// cosignatures of witnesses among keys are in the result. Signatures by other keys are ignored. Code: log_invalid.
func VerifyCheckpoint(raw []byte, keys ...Key) (VerifiedCheckpoint, error) {
	if len(raw) > MaxNote {
		return VerifiedCheckpoint{}, watchword.Refuse(watchword.LogInvalid, "the checkpoint must have at most 16384 bytes")
	}
	var vs []note.Verifier
	byID := map[string]Key{}
	for _, k := range keys {
		if known, twice := byID[k.id()]; twice && known.String() == k.String() {
			continue // several bundles name the key
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
			out.UnknownSignatures++ // a second signature of one key is not counted
			continue
		}
		k := byID[Key{name: s.Name}.idOf(s.Hash)]
		if !k.Witness() {
			signed = signed || k.name == c.Origin
			continue
		}
		out.Cosignatures = append(out.Cosignatures, Cosignature{k, time.Unix(int64(binary.BigEndian.Uint64(b[4:])), 0).UTC()}) // it was verified, so it has the right length
	}
	if !signed {
		return VerifiedCheckpoint{}, watchword.Refuse(watchword.LogInvalid, "the checkpoint is not signed by the log's key")
	}
	return out, nil
}

func (k Key) id() string              { return k.idOf(k.KeyHash()) }
func (k Key) idOf(hash uint32) string { return k.name + "+" + strconv.FormatUint(uint64(hash), 16) }

// ReadCheckpoint parses a checkpoint without verifying its signature. Code: log_invalid.
func ReadCheckpoint(raw []byte) (Checkpoint, error) {
	text, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok || len(raw) > MaxNote {
		return Checkpoint{}, watchword.Refuse(watchword.LogInvalid, "the text must be a signed checkpoint (C2SP tlog-checkpoint)")
	}
	return parseText(string(text) + "\n")
}

func parseText(text string) (c Checkpoint, err error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	invalid := watchword.Refuse(watchword.LogInvalid, "the checkpoint must be three lines: origin, size, root")
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
	if !strings.HasPrefix(text, c.text()) { // only one encoding is valid
		return c, invalid
	}
	return c, nil
}

// Cosign adds the signature lines of witness that are in its answer to a checkpoint, and returns the result. Code:
// log_invalid for an answer without a valid one.
func Cosign(raw, answer []byte, witness Key) ([]byte, error) {
	text, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok || len(answer) > MaxNote {
		return nil, watchword.Refuse(watchword.LogInvalid, "the witness's answer must be signature lines")
	}
	n, err := note.Open(append(append(bytes.Clone(text), "\n\n"...), answer...), note.VerifierList(witness))
	if err != nil {
		return nil, watchword.Wrap(err, watchword.LogInvalid, "the witness's answer has no valid signature of %s", witness.Name())
	}
	if _, err := strictBase64.DecodeString(n.Sigs[0].Base64); err != nil { // a strict reader would refuse another encoding
		return nil, watchword.Wrap(err, watchword.LogInvalid, "the witness's answer has no valid signature of %s", witness.Name())
	}
	line := "— " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n"
	if bytes.Contains(raw, []byte(line)) {
		return raw, nil
	}
	return append(bytes.Clone(raw), line...), nil
}
