package ledger

import (
	"encoding/json"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
)

// LoggedType is the content type (cty, RFC 7516 §4.1.12) of a [LoggedJWS].
const LoggedType = "vnd.watchword.logged+json"

// LoggedJWS is a signed JWS with the proof that the log contains its entry, for devices that execute only logged commands:
// the entry, its inclusion proof and a signed checkpoint, and the proof that the log extends the one that the device saw
// last.
type LoggedJWS struct {
	JWS              string   `json:"jws"`
	Proof            string   `json:"proof"`             // C2SP tlog-proof, as [Proof] writes it
	FromSize         int64    `json:"from"`              // size of the log that the reader saw last; 0: none
	ConsistencyProof [][]byte `json:"extends,omitempty"` // base64 hashes: consistency proof from that log to the checkpoint
}

// NewLoggedJWS returns a JWS with its proofs.
func NewLoggedJWS(jws string, p Proof, from int64, extends []Hash) LoggedJWS {
	l := LoggedJWS{JWS: jws, Proof: string(p.Marshal()), FromSize: from}
	for _, h := range extends {
		l.ConsistencyProof = append(l.ConsistencyProof, h[:])
	}
	return l
}

// Marshal returns its JSON encoding.
func (l LoggedJWS) Marshal() ([]byte, error) { return json.Marshal(l) }

// ParseLoggedJWS parses the output of Marshal. Code: command_unlogged.
func ParseLoggedJWS(b []byte) (l LoggedJWS, err error) {
	err = jsonv2.Unmarshal(b, &l, jsonv2.RejectUnknownMembers(true))
	if err != nil || l.JWS == "" || l.Proof == "" || l.FromSize < 0 || len(l.ConsistencyProof) > 63 {
		return l, watchword.Wrap(err, watchword.CommandUnlogged, "the sealed content must be a command with its log proof")
	}
	return l, nil
}

// Verify verifies that the log contains the entry, that its checkpoint is signed by one of keys and by a quorum of the
// witnesses among them, and that it extends the last one that the reader saw (zero: none). It returns the proof, and the
// checkpoint to store. Code: log_invalid.
func (l LoggedJWS) Verify(seen Checkpoint, quorum int, keys ...Key) (Proof, VerifiedCheckpoint, error) {
	p, err := ParseProof([]byte(l.Proof))
	if err != nil {
		return p, VerifiedCheckpoint{}, err
	}
	o, err := p.Verify(keys...)
	if err != nil {
		return p, o, err
	}
	if n := len(o.Cosignatures); n < quorum {
		return p, o, watchword.Refuse(watchword.LogInvalid, "the checkpoint has the signatures of %d witnesses, and %d are required", n, quorum)
	}
	if seen.Size == 0 {
		return p, o, nil
	}
	if l.FromSize != seen.Size {
		return p, o, watchword.Refuse(watchword.LogInvalid, "the proof is for a log of %d entries, and the last known log had %d", l.FromSize, seen.Size)
	}
	var hs []Hash
	for _, b := range l.ConsistencyProof {
		if len(b) != len(Hash{}) {
			return p, o, watchword.Refuse(watchword.LogInvalid, "the proof has no hashes")
		}
		hs = append(hs, Hash(b))
	}
	return p, o, VerifyConsistency(o.Checkpoint, seen, hs)
}
