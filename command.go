package watchword

// CommandState says how far a command has come.
type CommandState string

// The states of a command: docs/protocol.md, §5. Only a receipt with a good signature
// leads to Done, Refused, Failed or Interrupted. Unknown means that the device
// took it and its end passed without a receipt; a late receipt still settles it.
// Undeliverable means that the device cannot take it, and that it was not given to
// the connection that said so.
const (
	Queued      CommandState = "queued"
	Sent        CommandState = "sent"
	Delivered   CommandState = "delivered"
	Accepted    CommandState = "accepted"
	Done        CommandState = "done"
	Refused     CommandState = "refused"
	Failed      CommandState = "failed"
	Interrupted CommandState = "interrupted"
	Expired     CommandState = "expired"
	Cancelled   CommandState = "cancelled"
	Unknown     CommandState = "unknown"

	Undeliverable CommandState = "undeliverable"
)

// Final reports whether nothing but a late receipt can change s any more. The empty
// state, of a command that nothing is known of, is not final.
func (s CommandState) Final() bool {
	switch s {
	case "", Queued, Sent, Delivered, Accepted:
		return false
	default:
		return true
	}
}

// ReceiptStatus is the st claim of a receipt.
type ReceiptStatus string

// What a device may report about a command. Conflict means that the number was seen before with another command id:
// commands are forged, or the server lost its counters.
const (
	StatusAccepted    ReceiptStatus = "accepted"
	StatusDone        ReceiptStatus = "done"
	StatusRefused     ReceiptStatus = "refused"
	StatusFailed      ReceiptStatus = "failed"
	StatusInterrupted ReceiptStatus = "interrupted"
	StatusConflict    ReceiptStatus = "conflict"
)

// State returns the state of a command that a receipt with this status settles, and false for any other status.
func (s ReceiptStatus) State() (CommandState, bool) {
	switch s {
	case StatusAccepted:
		return Accepted, true
	case StatusDone:
		return Done, true
	case StatusRefused:
		return Refused, true
	case StatusFailed, StatusConflict:
		return Failed, true
	case StatusInterrupted:
		return Interrupted, true
	default:
		return "", false
	}
}

// Bounds of what travels, in bytes: docs/protocol.md, §2.
const (
	MaxToken    = 4 << 10  // access token, assertion, proof, order
	MaxBundle   = 64 << 10 // trust bundle
	MaxDocument = 32 << 10 // config, event, receipt, sealed command
	MaxArgs     = 8 << 10  // a command's args
)
