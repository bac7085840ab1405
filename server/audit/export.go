package audit

import (
	"encoding/base64"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// ExportLine is one line of an exported log: an entry (its body and salt, or its hash only, if it was not selected or is
// pruned), or, as the last line, the signed checkpoint of all the entries before it.
type ExportLine struct {
	Seq        int64  `json:"seq,omitempty"`
	Hash       string `json:"hash,omitempty"` // base64
	Salt       string `json:"salt,omitempty"` // base64
	Body       string `json:"body,omitempty"`
	Checkpoint string `json:"checkpoint,omitempty"`
}

// NewExportLine returns the line of a record, with its body if q selects it.
func NewExportLine(r Record, q Query) ExportLine {
	l := ExportLine{Seq: r.Seq}
	e, err := r.Entry()
	if err != nil || !q.Matches(e) {
		l.Hash = base64.StdEncoding.EncodeToString(r.Hash[:])
		return l
	}
	l.Salt, l.Body = base64.StdEncoding.EncodeToString(r.Salt[:]), string(r.Body)
	return l
}

// Record returns the record of a line that is an entry. Code: log_invalid.
func (l ExportLine) Record() (r Record, err error) {
	bad := watchword.Refuse(watchword.LogInvalid, "entry %d of the export is damaged", l.Seq)
	r.Seq = l.Seq
	b64 := base64.StdEncoding.Strict()
	if l.Body == "" {
		h, err := b64.DecodeString(l.Hash)
		if err != nil || len(h) != len(r.Hash) || l.Salt != "" {
			return r, bad
		}
		r.Hash = ledger.Hash(h)
		return r, nil
	}
	salt, err := b64.DecodeString(l.Salt)
	if err != nil || len(salt) != len(r.Salt) || l.Hash != "" {
		return r, bad
	}
	r.Salt, r.Body = ledger.Salt(salt), []byte(l.Body)
	r.Hash = ledger.Commitment(r.Salt, r.Body)
	return r, nil
}
