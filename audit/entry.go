// Package audit is the audit log: who did what, to what, and with which outcome. A store writes an entry in the transaction of
// the act that it records; refused acts and requests, and sessions, are written by a [Recorder] afterwards, within a rate limit.
// Entries form a Merkle tree with signed checkpoints (package ledger). An entry has ids, codes, hashes and labels, and never
// arguments or private keys.
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

// Outcome says how a privileged act ended.
type Outcome string

// An act is done or refused. What failed for a fault of ours is neither, and
// changed nothing.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
)

// The stable names of what is recorded. A name is never used for anything else.
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
	OperatorCreate   = "operator.create"
	DeviceLink       = "device.link"
	DeviceEnroll     = "device.enroll"
	DeviceRekey      = "device.rekey"
	PairingReject    = "pairing.reject"
	DeviceLabel      = "device.label"
	DeviceProof      = "device.proof"
	DeviceSuspend    = "device.suspend"
	DeviceResume     = "device.resume"
	DeviceRevoke     = "device.revoke"
	DeviceDelete     = "device.delete"
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
)

// Kinds lists them all.
var Kinds = []string{
	ServerStart, KeyCreate, KeyActivate, KeyRetire, KeyErase, KeyRevoke, KeyMove, BundleSign, DeviceCreate,
	OperatorCreate, DeviceLink, DeviceEnroll, DeviceRekey, PairingReject, DeviceLabel, DeviceProof, DeviceSuspend,
	DeviceResume, DeviceRevoke, DeviceDelete, TokenIssue, TokenRevoke, PolicyApply, PolicyDelete, CommandOrder,
	CommandCancel, CommandSettle, CommandExpire, CommandConflict, CommandUndeliver, ConfigSet, CommandHandOver, SessionOpen,
	SessionClose, RetainedShow, RetainedDelete, SessionsOverflow, RequestRefuse, RefusalsOverflow, LogRead, LogPrune,
}

// NeedsAuthority reports whether an act of this kind, done by a subject, is done under an authority
// that the store compares ([watchword.AuthorityVersions]). The others are no acts that policy allows: a code or
// an assertion that is redeemed, which the step itself checks, and what the server says of a session.
func NeedsAuthority(kind string) bool {
	switch kind {
	case DeviceEnroll, TokenIssue, SessionOpen, SessionClose:
		return false
	}
	return true
}

// Compared refuses an entry that says that its act was allowed, where the transaction compared other versions, or none. Code:
// internal, since only a mistake of the program leads here.
func (e Entry) Compared(with watchword.AuthorityVersions) error {
	if e.Outcome == Done && e.Actor != "" && (e.Versions != with || e.Versions.IsZero() && NeedsAuthority(e.Kind)) {
		return watchword.Refuse(watchword.Internal, "%s by %q: nothing compared what the act was decided on", e.Kind, e.Actor)
	}
	return nil
}

// Entry is one line of the log. Seq is given by the store, from 1, without gaps.
type Entry struct {
	Seq    int64              `json:"-"`
	Tenant watchword.TenantID `json:"tenant"`
	At     time.Time          `json:"at"` // UTC, milliseconds
	Kind   string             `json:"kind"`
	// Actor is who acted; empty for the server itself and for strangers.
	Actor watchword.SubjectID `json:"actor,omitempty"`
	// Key is the thumbprint with which the actor proved itself.
	Key watchword.KeyID `json:"key,omitempty"`
	// Object is what was acted upon: a subject, policy or command id.
	Object  string         `json:"object,omitempty"`
	Outcome Outcome        `json:"outcome"`
	Code    watchword.Code `json:"code,omitempty"`
	// Trace is the id that the refusal's answer and the server's log carry too.
	Trace string `json:"trace,omitempty"`
	// Data holds what else belongs to this kind, in flat text.
	Data map[string]string `json:"data,omitempty"`
	// Versions is what the act was decided on. The store compares it before the act is done; it is not logged.
	Versions watchword.AuthorityVersions `json:"-"`
}

// With returns the entry with more data: names and values, in turn. What a store knows
// first, such as what was there before, comes in so.
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

// Body returns the entry's canonical bytes, which the store keeps as they are and the
// log commits to: JSON with the member v (1: the version of this form), then those of
// the struct in their order, Data's in that of their keys. Seq is not among them.
func (e Entry) Body() ([]byte, error) {
	// Written by hand, since one stands behind every token: a fuzz test holds it to Parse.
	var err error
	b := append(make([]byte, 0, 384), `{"v":1,"tenant":`...)
	text := func(s string) {
		if err == nil { // what a stranger wrote may be anything
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

// Parse reads what Body wrote.
func Parse(seq int64, body []byte) (Entry, error) {
	var e Entry
	err := json.Unmarshal(body, &e)
	e.Seq = seq
	return e, err
}
