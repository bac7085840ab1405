package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// Entry is an entry of the audit log: an item of GET /v1/audit, and the data of the event "entry" of its stream. Of an
// entry whose body was pruned there are Seq and Pruned alone.
type Entry struct {
	Seq     int64               `json:"seq"` // from 1
	At      *time.Time          `json:"at,omitempty"`
	Kind    string              `json:"kind,omitempty"` // as device.create
	Actor   watchword.SubjectID `json:"actor,omitempty"`
	Key     watchword.KeyID     `json:"key,omitempty"`
	Object  string              `json:"object,omitempty"`
	Outcome string              `json:"outcome,omitempty"` // done or refused
	Code    watchword.Code      `json:"code,omitempty"`    // of a refusal
	Trace   string              `json:"trace,omitempty"`
	Data    map[string]string   `json:"data,omitempty"`
	Pruned  bool                `json:"pruned,omitempty"`
}

// EntryList is the answer of GET /v1/audit: oldest first, or newest first with order=newest. There may be no more entries
// behind NextPageToken.
type EntryList struct {
	Entries       []Entry `json:"entries"`
	NextPageToken string  `json:"next_page_token,omitempty"`
}

// EntryDetail is an entry with what the log commits to: the answer of GET /v1/audit/{seq}. Hash is the SHA-256 over Salt
// and Body.
type EntryDetail struct {
	Entry
	Hash Base64 `json:"hash" doc:"base64 SHA-256 over salt and body, which is the leaf of the log"`
	Salt Base64 `json:"salt,omitempty" doc:"base64"`
	Body string `json:"body,omitempty" doc:"the bytes of the entry that are hashed"`
	// Args and ArgsSalt are the preimage of the args_hash of a command's order, for callers that
	// may read arguments.
	Args     json.RawMessage `json:"args,omitempty" doc:"arguments of an ordered command, where the caller is allowed to read them"`
	ArgsSalt Base64          `json:"args_salt,omitempty" doc:"base64; args_hash is the base64url SHA-256 over args_salt and args"`
}
