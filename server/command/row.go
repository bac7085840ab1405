package command

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Row is a command as the store stores it. Args, Receipt and a hand-over's JWS were encrypted with the data key before: no
// content of a command is stored in plaintext.
type Row struct {
	Tenant      watchword.TenantID
	ID          watchword.CommandID
	Device      watchword.SubjectID
	Incarnation int64 // of the device; the command ends with it
	Epoch       int64
	Seq         int64 // the device's next number, taken in AddCommand's transaction
	Function    string
	Args        []byte // sealed
	ArgsHash    string // base64url SHA-256 of the arguments in plaintext
	Order       string // the orderer's signed order (compact JWS), or empty
	By          watchword.SubjectID
	ByKey       watchword.KeyID
	State       watchword.CommandState
	Created     time.Time
	Expires     time.Time
	SentAt      time.Time // zero until then, as the next two
	DeliveredAt time.Time
	SettledAt   time.Time
	Status      watchword.ReceiptStatus // of the last receipt, or empty
	Receipt     []byte                  // the last receipt's JWS, sealed, or nil
	ReceiptKey  watchword.KeyID         // the key that signed it
	Entry       int64                   // number of the log's entry of that receipt; 0: it has none yet
	Reason      *Reason                 // why it is undeliverable; nil in all other states
}

// Reason says why a command could not be delivered.
type Reason struct {
	Code   watchword.Code `json:"code"`   // too_large
	Detail string         `json:"detail"` // for people
	Size   int            `json:"size"`   // bytes of the command as it would be sent
	Max    int            `json:"max"`    // bytes that the device takes
}

// UndeliverableUpdate ends a command because it is too large for its device.
type UndeliverableUpdate struct {
	Tenant watchword.TenantID
	ID     watchword.CommandID
	Reason Reason
	SentAt time.Time // when it was sent before, over a connection that took it; zero for never
	At     time.Time // when it ends
}

// Handover is one signed version of a command, as it was given to the device. Hash is the
// base64url SHA-256 of the inner JWS, which a receipt must repeat as ch.
type Handover struct {
	Hash  string
	Nonce string // the device's nonce that it carries, or empty
	JWS   []byte // sealed at rest with the data key
	At    time.Time
	Entry int64 // number of the log's entry of it; 0: it has none yet
}

// MaxHandovers is how many versions of one command are kept; a device that
// makes the server sign more gets no further one.
const MaxHandovers = 32

// ReceiptUpdate is a receipt whose signature, issuer and audience are good, on its
// way into the row of its command.
type ReceiptUpdate struct {
	Tenant watchword.TenantID
	Device watchword.SubjectID
	ID     watchword.CommandID
	Epoch  int64
	Seq    int64
	Hash   string // ch
	Status watchword.ReceiptStatus
	Key    watchword.KeyID
	JWS    []byte // sealed
	At     time.Time
}

// Filter chooses commands for a list; empty fields choose all.
type Filter struct {
	Device watchword.SubjectID
	By     watchword.SubjectID
	State  watchword.CommandState
}
