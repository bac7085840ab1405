package keyring

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Role says what one of the server's keys is for. No key has two.
type Role string

// The roles of DESIGN §7. Data is the AES key that seals the others and what
// lies at rest; it is itself wrapped by the key-encryption key.
const (
	Root    Role = "root"
	CA      Role = "ca"
	Issuer  Role = "issuer"
	Command Role = "command"
	Time    Role = "time"
	Log     Role = "log"
	Data    Role = "data"
)

// State says where a server key stands in its life.
type State string

// The states of a server key.
const (
	Next     State = "next"
	Active   State = "active"
	Retiring State = "retiring"
	Gone     State = "gone"
	Revoked  State = "revoked"
)

// Sealed is a server key as the store keeps it. Private is AES-256-GCM under
// the data key (for role data: under the key-encryption key), nonce first, with
// ID and role as additional data. Public is the canonical JWK, nil for data.
// Cert is the DER of the ca's own certificate, nil for the others.
type Sealed struct {
	ID      watchword.KeyID
	Role    Role
	State   State
	Public  []byte
	Private []byte
	Cert    []byte
	Created time.Time
}

// Founding is what a house decides once, at first start.
type Founding struct {
	Issuer string // the issuer identifier: public_url, no trailing slash
	Epoch  int64  // grows when the server comes back from a backup
	At     time.Time
}

// SignedBundle is a trust bundle as it was signed; Version only grows.
type SignedBundle struct {
	Version int64
	JWS     []byte
	Expires time.Time
}
