package ledger

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// The kinds of signatures under a checkpoint: the log's own (signed-note), and a witness's, which includes the time
// (tlog-cosignature).
const (
	algLog         = 1
	algCosignature = 4
)

// Key is a public key that signs checkpoints. It is a [note.Verifier].
type Key struct {
	name string
	alg  byte
	pub  ed25519.PublicKey
}

// LogKey returns the log's own key: name is the log's origin.
func LogKey(name string, pub ed25519.PublicKey) Key { return Key{name, algLog, pub} }

// LogKeys returns the keys of the log with this origin; keys that are not Ed25519 are left out.
func LogKeys(origin string, keys ...*jose.PublicKey) (out []Key) {
	for _, k := range keys {
		if pub, ok := k.Crypto().(ed25519.PublicKey); ok {
			out = append(out, LogKey(origin, pub))
		}
	}
	return out
}

// VerifierKeys returns all keys whose signatures under the log with this origin are accepted: the log's keys, and its
// witnesses by their verifier keys. Code: bad_request for an invalid verifier key.
func VerifierKeys(origin string, logs []*jose.PublicKey, witnesses []string) ([]Key, error) {
	keys := LogKeys(origin, logs...)
	for _, w := range witnesses {
		k, err := ParseKey(w)
		if err == nil && !k.Witness() {
			err = watchword.Refuse(watchword.BadRequest, "%s must be a witness key (cosignature/v1, Ed25519)", k.Name())
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// ParseKey parses a verifier key (signed-note, Verifier keys): name+hash+material. Code: bad_request.
func ParseKey(vkey string) (Key, error) {
	invalid := watchword.Refuse(watchword.BadRequest, "the key of a log or witness must have the form name+hash+base64, of Ed25519")
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return Key{}, invalid
	}
	hash, err := strconv.ParseUint(parts[1], 16, 32)
	if err != nil || len(parts[1]) != 8 {
		return Key{}, invalid
	}
	raw, err := strictBase64.DecodeString(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize || raw[0] != algLog && raw[0] != algCosignature {
		return Key{}, invalid
	}
	k := Key{parts[0], raw[0], raw[1:]}
	if !validName(k.name) || k.KeyHash() != uint32(hash) {
		return Key{}, invalid
	}
	return k, nil
}

func validName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '+' || r >= 0x7f })
}

// String returns the verifier key.
func (k Key) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.KeyHash(), strictBase64.EncodeToString(append([]byte{k.alg}, k.pub...)))
}

// Name returns the log's origin, or the witness's name.
func (k Key) Name() string { return k.name }

// Witness reports whether it is the key of a witness.
func (k Key) Witness() bool { return k.alg == algCosignature }

// KeyHash returns the number by which a signature names the key.
func (k Key) KeyHash() uint32 {
	sum := sha256.Sum256(append([]byte(k.name+"\n"+string(k.alg)), k.pub...))
	return binary.BigEndian.Uint32(sum[:])
}

// Verify verifies a signature over a note's text.
func (k Key) Verify(msg, sig []byte) bool {
	if k.alg == algLog {
		return ed25519.Verify(k.pub, msg, sig)
	}
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at < 1<<63 && ed25519.Verify(k.pub, cosignedMessage(at, msg), sig[8:])
}

// cosignedMessage returns the message that a witness signs (tlog-cosignature, Ed25519 signed message).
func cosignedMessage(at uint64, msg []byte) []byte {
	return append([]byte("cosignature/v1\ntime "+strconv.FormatUint(at, 10)+"\n"), msg...)
}

// Signer signs checkpoints as the log. It is a [note.Signer].
type Signer struct {
	Key
	SignFunc func(msg []byte) ([]byte, error) // Ed25519 over msg
}

// Sign signs a note's text.
func (s Signer) Sign(msg []byte) ([]byte, error) { return s.SignFunc(msg) }

var (
	_ note.Verifier = Key{}
	_ note.Signer   = Signer{}
)
