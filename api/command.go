package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// Command is a command to one device: an item of GET /v1/commands, and the answer of POST /v1/commands,
// GET /v1/commands/{id} and POST /v1/commands/{id}/cancel. Lists have neither Args nor Receipt.
type Command struct {
	ID          watchword.CommandID    `json:"id"`
	Device      watchword.SubjectID    `json:"device"`
	Function    string                 `json:"function"`
	State       watchword.CommandState `json:"state"`
	Epoch       int64                  `json:"epoch"` // of the server's numbering
	Seq         int64                  `json:"seq"`   // in the epoch and device, from 1
	By          watchword.SubjectID    `json:"by"`
	ByKey       watchword.KeyID        `json:"by_key"`
	CreatedAt   time.Time              `json:"created_at"`
	ExpiresAt   time.Time              `json:"expires_at"` // the device does not begin it later
	SentAt      *time.Time             `json:"sent_at,omitempty"`
	DeliveredAt *time.Time             `json:"delivered_at,omitempty"`
	SettledAt   *time.Time             `json:"settled_at,omitempty"` // when State became final
	ArgsHash    string                 `json:"args_hash"`            // base64url SHA-256 over salt and arguments
	LogEntry    int64                  `json:"log_entry,omitempty" doc:"number of the log entry that records the receipt"`
	Args        json.RawMessage        `json:"args,omitempty"`
	Receipt     *Receipt               `json:"receipt,omitempty"`
	Reason      *Reason                `json:"reason,omitempty" doc:"why the command is undeliverable"`
}

// Reason says why a command could not be delivered.
type Reason struct {
	Code   watchword.Code `json:"code"`   // too_large; bad_request where no device would take it
	Detail string         `json:"detail"` // for people
	Size   int            `json:"size"`   // bytes of the command as it would be sent
	Max    int            `json:"max"`    // bytes that the device takes
}

// Receipt is the device's signed answer to a command, which the server has verified.
type Receipt struct {
	Status watchword.ReceiptStatus `json:"status"`
	Key    watchword.KeyID         `json:"key"` // that signed
	Result json.RawMessage         `json:"result,omitempty"`
	JWS    string                  `json:"jws"` // compact (RFC 7515 §7.1); at most 32 KiB
}

// CommandList is the answer of GET /v1/commands, newest first.
type CommandList struct {
	Commands      []Command `json:"commands"`
	NextPageToken string    `json:"next_page_token,omitempty"`
}

// SendCommandRequest is the body of POST /v1/commands, of at most 32 KiB. Args is one JSON object; nil means {}. TTL empty
// means 120 s. Order is a JWS that contains the hash of Args, over exactly its bytes in the body.
type SendCommandRequest struct {
	Device   watchword.SubjectID `json:"device" maxLength:"64"`
	Function string              `json:"function" maxLength:"64"`
	Args     json.RawMessage     `json:"args,omitempty"`
	TTL      string              `json:"ttl,omitempty" doc:"whole seconds, for example 120s; at most 24h"`
	Order    string              `json:"order,omitempty" doc:"a JWS of the order, signed by the caller's own key"`
}

// SealedCommand is a command on its way to its device: an item of [SealedCommands], and the data of the event "command" of
// the stream of GET /v1/self/commands.
type SealedCommand struct {
	ID        watchword.CommandID `json:"id"`
	Epoch     int64               `json:"epoch"`
	Seq       int64               `json:"seq"`
	ExpiresAt time.Time           `json:"expires_at"`
	JWE       string              `json:"jwe"` // compact (RFC 7516 §7.1), to the device's sealing key; at most 32 KiB
}

// SealedCommands is the answer of GET /v1/self/commands as a long poll: at most 64, in order of Seq.
type SealedCommands struct {
	Session  watchword.SessionID `json:"session"` // of this poll
	Commands []SealedCommand     `json:"commands"`
}

// ReceiptRequest is the body of POST /v1/self/receipts. Receipt is a compact JWS of at most 32 KiB.
type ReceiptRequest struct {
	Receipt string `json:"receipt"`
}

// ReceiptResponse is the answer of POST /v1/self/receipts: what the command's state is now.
type ReceiptResponse struct {
	Command watchword.CommandID    `json:"command"`
	State   watchword.CommandState `json:"state"`
}
