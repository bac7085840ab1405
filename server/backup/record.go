package backup

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// Record is one step of a journal: the entries of the audit log after From, up to To, that changed authority, and the objects that they
// changed, with all their rows as they are after To. To apply records in their order, each more than once too, leads to the
// last state of each object.
type Record struct {
	From    int64     `json:"from"`
	To      int64     `json:"to"`
	Root    string    `json:"root,omitempty"` // base64 of the root hash of the tree over the entries up to To
	At      time.Time `json:"at"`
	Schema  int64     `json:"schema"` // of the rows
	Entries []Entry   `json:"entries,omitempty"`
	Objects []Object  `json:"objects,omitempty"`
	// Omitted are objects that entries up to To changed and whose rows are too large for a record, which does not have those entries
	// either. A later record may have the rows.
	Omitted []Ref `json:"omitted,omitempty"`
}

// Omit returns the record with the names of its objects alone.
func (r Record) Omit() Record {
	for _, o := range r.Objects {
		r.Omitted = append(r.Omitted, o.Ref)
	}
	r.Objects, r.Entries = nil, nil // what is not applied is not logged as applied
	return r
}

// Entry is an audit entry as the log has it: its body as text, and the salt under which the log committed to it.
type Entry struct {
	Seq  int64  `json:"seq"`
	Salt []byte `json:"salt"`
	Body string `json:"body"`
}

// Ref names an object whose rows are journaled.
type Ref struct {
	Kind   ObjectKind         `json:"kind"`
	Tenant watchword.TenantID `json:"tenant,omitempty"`
	ID     string             `json:"id,omitempty"`
}

// ObjectKind is a kind of objects.
type ObjectKind string

// The kinds of objects. The server's own state (its keys, trust bundles and settings) is one object.
const (
	SubjectObject ObjectKind = "subject" // with its labels, keys and enrollment codes
	PolicyObject  ObjectKind = "policy"
	TokenObject   ObjectKind = "token" // one that was revoked
	ServerObject  ObjectKind = "server"
)

// Object is an object with its rows. A table without rows means that the object has none.
type Object struct {
	Ref
	Tables []Table `json:"tables"`
}

// Table is the rows of one table that belong to an object.
type Table struct {
	Name    string   `json:"table"`
	Columns []string `json:"columns"`
	Rows    []Row    `json:"rows,omitempty"`
}

// Row is the values of a row: int64, string, []byte or nil.
type Row []any

// bytesMember is the member of the JSON object that stands for bytes.
const bytesMember = "base64"

// MarshalJSON writes bytes as {"base64": "…"}.
func (r Row) MarshalJSON() ([]byte, error) {
	out := make([]any, len(r))
	for i, v := range r {
		switch v := v.(type) {
		case []byte:
			out[i] = map[string]string{bytesMember: base64.StdEncoding.EncodeToString(v)}
		case int64, string, nil:
			out[i] = v
		default:
			return nil, fmt.Errorf("a row has a value of type %T", v)
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Row) UnmarshalJSON(b []byte) error {
	var in []any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&in); err != nil {
		return err
	}
	*r = make(Row, len(in))
	for i, v := range in {
		switch v := v.(type) {
		case nil, string:
			(*r)[i] = v
		case json.Number:
			n, err := v.Int64()
			if err != nil {
				return err
			}
			(*r)[i] = n
		case map[string]any:
			text, ok := v[bytesMember].(string)
			raw, err := base64.StdEncoding.DecodeString(text)
			if !ok || err != nil || len(v) != 1 {
				return fmt.Errorf("a value of a row has an unknown form")
			}
			(*r)[i] = raw
		default:
			return fmt.Errorf("a value of a row has an unknown form")
		}
	}
	return nil
}

// changes says of each kind of audit entries which objects it changed, by the entry; none: it changed no authority. A restore loses
// what is not here: messages, twins, commands and sessions.
var changes = map[string]func(audit.Entry) []Ref{
	audit.ServerStart: server, audit.KeyCreate: server, audit.KeyActivate: server, audit.KeyRetire: server, audit.KeyErase: server, audit.KeyRevoke: server,
	audit.KeyMove: server, audit.AddressMove: server, audit.LogRestore: server, audit.ServerSuperseded: server, audit.BundleSign: server,
	audit.DeviceCreate: subject, audit.OperatorRole: subject, audit.DeviceLink: subject, audit.DeviceEnroll: subject, audit.DeviceRekey: subject,
	audit.DeviceKeyRevoke: subject, audit.DeviceKeyEnd: subject, audit.DeviceKeyRetire: subject, audit.DeviceLabel: subject, audit.DeviceName: subject, audit.DeviceForget: subject, audit.DeviceProof: subject, audit.DeviceSuspend: subject,
	audit.DeviceResume: subject, audit.DeviceRevoke: subject, audit.DeviceDelete: subject, audit.OperatorRecover: subject,
	audit.TokenRevoke: revokedToken, audit.PolicyApply: policy, audit.PolicyDelete: policy,

	audit.PairingReject: nil, audit.LoginReject: nil, audit.TokenIssue: nil, audit.CommandOrder: nil, audit.CommandCancel: nil, audit.CommandSettle: nil, audit.CommandExpire: nil,
	audit.CommandConflict: nil, audit.CommandUndeliver: nil, audit.ConfigSet: nil, audit.CommandHandOver: nil, audit.SessionOpen: nil, audit.SessionClose: nil,
	audit.RetainedShow: nil, audit.RetainedDelete: nil, audit.SessionsOverflow: nil, audit.RequestRefuse: nil, audit.RefusalsOverflow: nil, audit.LogRead: nil,
	audit.LogPrune: nil, audit.ClockRefuse: nil, audit.ClockTrust: nil, audit.ClockAccept: nil, audit.BackupCreate: nil, audit.NoticeAcknowledge: nil,
}

func server(audit.Entry) []Ref { return []Ref{{Kind: ServerObject}} }

func subject(e audit.Entry) []Ref {
	return []Ref{{Kind: SubjectObject, Tenant: e.Tenant, ID: e.Object}}
}

func policy(e audit.Entry) []Ref {
	return []Ref{{Kind: PolicyObject, Tenant: e.Tenant, ID: e.Object}}
}

// revokedToken also changes the authority version of its subject.
func revokedToken(e audit.Entry) []Ref {
	out := []Ref{{Kind: TokenObject, Tenant: e.Tenant, ID: e.Object}}
	if of := e.Data["subject"]; of != "" {
		out = append(out, Ref{Kind: SubjectObject, Tenant: e.Tenant, ID: of})
	}
	return out
}

// Changed returns the objects that an act changed; none if it changed no authority. known is false for a kind that this package does
// not know.
func Changed(e audit.Entry) (refs []Ref, known bool) {
	of, known := changes[e.Kind]
	if !known {
		of, known = changes[audit.KindOfDevice(e.Kind)]
	}
	if of == nil || e.Outcome != audit.Done {
		return nil, known
	}
	return of(e), true
}

// CheckTables refuses an object with a table or column that the database does not have. Code: backup_invalid.
func (o Object) CheckTables(columns map[string][]string) error {
	for _, t := range o.Tables {
		have, known := columns[t.Name]
		if !known {
			return watchword.Refuse(watchword.BackupInvalid, "the journal has rows of the table %.100q, which the database does not have", t.Name)
		}
		for _, c := range t.Columns {
			if !slices.Contains(have, c) {
				return watchword.Refuse(watchword.BackupInvalid, "the journal has the column %.100q of the table %s, which the database does not have: restore with the version that wrote the journal", c, t.Name)
			}
		}
		for _, r := range t.Rows {
			if len(r) != len(t.Columns) {
				return watchword.Refuse(watchword.BackupInvalid, "a row of the table %s in the journal has %d values, not %d", t.Name, len(r), len(t.Columns))
			}
		}
	}
	return nil
}
