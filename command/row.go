package command

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Row is a command as the store keeps it. Args, Receipt and a hand-over's JWS
// are sealed with the data key before they come here: nothing that a command
// says lies at rest in clear.
type Row struct {
	Tenant      watchword.TenantID
	ID          watchword.CommandID
	Device      watchword.SubjectID
	Incarnation int64 // of the device; a command dies with it
	Epoch       int64
	Seq         int64 // the device's next number, taken in AddCommand's transaction
	Function    string
	Args        []byte // sealed
	ArgsHash    string // base64url SHA-256 of the arguments in clear
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

// Undelivered ends a command because it is too large for its device.
type Undelivered struct {
	Tenant watchword.TenantID
	ID     watchword.CommandID
	Reason Reason
	SentAt time.Time // when it was sent before, over a connection that took it; zero for never
	At     time.Time // when it ends
}

// Acknowledged is what a device says that it holds, all in one epoch.
type Acknowledged struct {
	Epoch int64   // of the commands' numbers
	UpTo  int64   // every command up to this number; 0 for none
	Each  []int64 // and each of these numbers
}

// Idempotency is what a caller sends so that a repeated request acts once.
type Idempotency struct {
	Caller watchword.SubjectID
	Key    string   // at most 128 bytes; empty means none was sent
	Hash   [32]byte // of the request: the same key with another request is a conflict
}

// Handover is one version of a command that left the house. Hash is the
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

// MaxQueued is how many commands may wait for one device.
const MaxQueued = 1000

// Bounds is how many commands may be unfinished (in no final state), beside [MaxQueued] of
// each device. 0 means no bound.
type Bounds struct {
	PerOrderer int64 // of one subject that ordered them, for whatever devices
	Total      int64 // of all subjects together
}

// Refusal says why an orderer that has by unfinished commands, of all that there are, may
// not have one more; nil if it may. Code: busy, with the bound that was met in Detail.
func (b Bounds) Refusal(by, all int64) error {
	if b.PerOrderer > 0 && by >= b.PerOrderer {
		return watchword.Refuse(watchword.Busy, "unfinished commands: 1 more is over the bound of %d for one subject that orders (limits.subject_commands)", b.PerOrderer)
	}
	if b.Total > 0 && all >= b.Total {
		return watchword.Refuse(watchword.Busy, "unfinished commands: 1 more is over the bound of %d for all subjects together (limits.commands)", b.Total)
	}
	return nil
}

// Settlement is a receipt whose signature, issuer and audience are good, on its
// way into the row of its command.
type Settlement struct {
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
