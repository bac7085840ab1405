// Package audit is the audit log: the actor, the object and the outcome of each privileged act. A store writes an entry in
// the transaction of the act that it records; refused acts and requests, and sessions, are written by a [Recorder]
// afterwards, within a rate limit. Entries form a Merkle tree with signed checkpoints (package ledger). An entry has ids,
// codes, hashes and labels, and never arguments or private keys.
package audit

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

// Outcome is the result of a privileged act.
type Outcome string

// An act is done or refused. An act that failed because of a server error has no entry, and changed nothing.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
)

// The kinds of entries. A name never gets another meaning. Those of acts on operators and services are made by [KindFor].
const (
	ServerStart      = "server.start"
	KeyCreate        = "key.create"
	KeyActivate      = "key.activate"
	KeyRetire        = "key.retire"
	KeyErase         = "key.erase"
	KeyRevoke        = "key.revoke"
	KeyMove          = "key.move"
	BundleSign       = "bundle.sign"
	DeviceCreate     = "device.create"
	OperatorRole     = "operator.role"
	OperatorRecover  = "operator.recover"
	DeviceLink       = "device.link"
	DeviceEnroll     = "device.enroll"
	DeviceRekey      = "device.rekey"
	DeviceKeyRevoke  = "device.key_revoke"
	DeviceKeyEnd     = "device.key_end"
	DeviceKeyRetire  = "device.key_retire"
	PairingReject    = "pairing.reject"
	LoginReject      = "login.reject"
	DeviceLabel      = "device.label"
	DeviceName       = "device.name"
	DeviceProof      = "device.proof"
	DeviceSuspend    = "device.suspend"
	DeviceResume     = "device.resume"
	DeviceRevoke     = "device.revoke"
	DeviceDelete     = "device.delete"
	DeviceForget     = "device.forget"
	TokenIssue       = "token.issue"
	TokenRevoke      = "token.revoke"
	PolicyApply      = "policy.apply"
	PolicyDelete     = "policy.delete"
	CommandOrder     = "command.order"
	CommandCancel    = "command.cancel"
	CommandSettle    = "command.settle"
	CommandExpire    = "command.expire"
	CommandConflict  = "command.conflict"
	CommandUndeliver = "command.undeliverable"
	ConfigSet        = "config.set"
	CommandHandOver  = "command.handover"
	SessionOpen      = "session.open"
	SessionClose     = "session.close"
	RetainedShow     = "retained.show"
	RetainedDelete   = "retained.delete"
	SessionsOverflow = "sessions.overflow"
	RequestRefuse    = "request.refuse"
	RefusalsOverflow = "refusals.overflow"
	LogRead          = "log.read"
	LogPrune         = "log.prune"
	ClockRefuse      = "clock.refuse"
	ClockTrust       = "clock.trust"
	ClockAccept      = "clock.accept"
	BackupCreate     = "backup.create"
	ServerSuperseded = "server.superseded"
	LogRestore       = "log.restore"
	AddressMove      = "address.move"

	NoticeAcknowledge = "notice.acknowledge"
)

// Kinds is the list of all kinds.
var Kinds = withSubjects([]string{
	ServerStart, KeyCreate, KeyActivate, KeyRetire, KeyErase, KeyRevoke, KeyMove, BundleSign, DeviceCreate,
	OperatorRole, OperatorRecover, DeviceLink, DeviceEnroll, DeviceRekey, DeviceKeyRevoke, DeviceKeyEnd, DeviceKeyRetire, PairingReject, LoginReject, DeviceLabel, DeviceName, DeviceProof, DeviceSuspend,
	DeviceResume, DeviceRevoke, DeviceDelete, DeviceForget, TokenIssue, TokenRevoke, PolicyApply, PolicyDelete, CommandOrder,
	CommandCancel, CommandSettle, CommandExpire, CommandConflict, CommandUndeliver, ConfigSet, CommandHandOver, SessionOpen,
	SessionClose, RetainedShow, RetainedDelete, SessionsOverflow, RequestRefuse, RefusalsOverflow, LogRead, LogPrune,
	ClockRefuse, ClockTrust, ClockAccept, NoticeAcknowledge, BackupCreate, ServerSuperseded, LogRestore, AddressMove,
})

// NeedsAuthority reports whether a subject's act of this kind is authorized by versions that the store compares
// ([watchword.AuthorityVersions]). The other kinds are not authorized by policy: an enrollment code or an assertion that is
// redeemed, which the transaction itself checks, and entries of the server about a session.
func NeedsAuthority(kind string) bool {
	switch KindOfDevice(kind) {
	case DeviceEnroll, TokenIssue, SessionOpen, SessionClose:
		return false
	}
	return true
}

// Compared returns an error if the entry's act was authorized by other versions than those that the transaction compared,
// or if none were compared. Code: internal, since only a programming error causes it.
func (e Entry) Compared(with watchword.AuthorityVersions) error {
	if e.Outcome == Done && e.Actor != "" && (e.Versions != with || e.Versions.IsZero() && NeedsAuthority(e.Kind)) {
		return watchword.Refuse(watchword.Internal, "%s by %q: the transaction did not compare the authority versions", e.Kind, e.Actor)
	}
	return nil
}

// Entry is one entry of the log. The store assigns Seq, from 1, without gaps.
type Entry struct {
	Seq    int64              `json:"-"`
	Tenant watchword.TenantID `json:"tenant"`
	At     time.Time          `json:"at"` // UTC, milliseconds
	Kind   string             `json:"kind"`
	// Actor is the subject that acted; empty for the server itself and for unauthenticated clients.
	Actor watchword.SubjectID `json:"actor,omitempty"`
	// Key is the thumbprint of the key by which the actor authenticated.
	Key watchword.KeyID `json:"key,omitempty"`
	// Object is the ID of what was acted upon: a subject, policy or command.
	Object  string         `json:"object,omitempty"`
	Outcome Outcome        `json:"outcome"`
	Code    watchword.Code `json:"code,omitempty"`
	// Trace is the ID that is also in the response and in the server's log.
	Trace string `json:"trace,omitempty"`
	// Data has the further members of this kind, as strings.
	Data map[string]string `json:"data,omitempty"`
	// Versions are the versions on which the act was authorized. The store compares them before the act is done; they are
	// not logged.
	Versions watchword.AuthorityVersions `json:"-"`
}

// With returns the entry with additional data: names and values, alternately. It adds values that only the store knows,
// such as the previous state.
func (e Entry) With(pairs ...string) Entry {
	data := maps.Clone(e.Data)
	if data == nil {
		data = map[string]string{}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		data[pairs[i]] = pairs[i+1]
	}
	e.Data = data
	return e
}

// Body returns the entry's canonical bytes, which the store stores unchanged and the log commits to: JSON with the member v
// (1: the version of this form), then the members of the struct in their order, those of Data sorted by key. Seq is not
// included.
func (e Entry) Body() ([]byte, error) {
	// Written without an encoder, since every token has an entry; a fuzz test compares it with Parse.
	var err error
	b := append(make([]byte, 0, 384), `{"v":1,"tenant":`...)
	text := func(s string) {
		if err == nil { // text of an unauthenticated client may be anything
			b, err = jsontext.AppendQuote(b, strings.ToValidUTF8(s, "\uFFFD"))
		}
	}
	some := func(name, s string) {
		if s != "" {
			b = append(append(append(b, ',', '"'), name...), '"', ':')
			text(s)
		}
	}
	text(string(e.Tenant))
	b = append(b, `,"at":"`...)
	b = e.At.UTC().Truncate(time.Millisecond).AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","kind":`...)
	text(e.Kind)
	some("actor", string(e.Actor))
	some("key", string(e.Key))
	some("object", e.Object)
	b = append(b, `,"outcome":`...)
	text(string(e.Outcome))
	some("code", string(e.Code))
	some("trace", e.Trace)
	if len(e.Data) > 0 {
		b = append(b, `,"data":{`...)
		for i, k := range slices.Sorted(maps.Keys(e.Data)) {
			if i > 0 {
				b = append(b, ',')
			}
			text(k)
			b = append(b, ':')
			text(e.Data[k])
		}
		b = append(b, '}')
	}
	return append(b, '}'), err
}

// Parse parses the output of Body.
func Parse(seq int64, body []byte) (Entry, error) {
	var e Entry
	err := json.Unmarshal(body, &e)
	e.Seq = seq
	return e, err
}
