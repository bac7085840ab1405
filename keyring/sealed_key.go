package keyring

import (
	"time"

	"github.com/watchword-iot/watchword"
)

// Role says what one of the server's keys is for. No key has two.
type Role string

// The roles of the server's keys: docs/operations.md, The server's keys. Data is the AES key that seals the others and what
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

// Roles lists the roles that sign, in the order in which people read them.
var Roles = []Role{Root, CA, Issuer, Command, Time, Log}

// State is the state of a server key.
type State string

// The states of a server key. Next is published and does not sign yet. Retiring
// signs no more, and counts as long as anything that it signed can be valid.
// Gone and revoked keys count for nothing, and their private halves are erased.
const (
	Next     State = "next"
	Active   State = "active"
	Retiring State = "retiring"
	Gone     State = "gone"
	Revoked  State = "revoked"
)

// Valid reports whether what the key signed may still be valid, or will be.
func (s State) Valid() bool { return s == Next || s == Active || s == Retiring }

// SealedKey is a server key as the store keeps it. Private is AES-256-GCM under
// the data key (for role data: under the key-encryption key), with ID and role as
// additional data; it is empty for a root that lives offline, and for keys that
// are not valid any more. Public is the canonical JWK, nil for data. Cert is the DER of
// the ca's own certificate, nil for the others.
type SealedKey struct {
	ID      watchword.KeyID
	Role    Role
	State   State
	Public  []byte
	Private []byte
	Cert    []byte
	Created time.Time
	Starts  time.Time // when it signs, or began to
	Ends    time.Time // when it is gone, for a retiring key; zero: it stays
}

// StateChange is one key's step from one state to another. Starts and Ends are written
// as they stand here. Private, if not nil, replaces the sealed private key; for
// gone and revoked it is erased in any case.
type StateChange struct {
	Role         Role
	ID           watchword.KeyID
	From, To     State
	Starts, Ends time.Time
	Private      []byte
}

// KeyUpdate is what changes in the ring at once: new keys, steps of others, bundles
// that are signed, and bundles that were signed ahead and hold no more.
type KeyUpdate struct {
	Add         []SealedKey
	Change      []StateChange
	Bundles     []SignedBundle
	DropBundles []int64 // versions
}

// Instance is what a server decides once, at first start.
type Instance struct {
	Issuer string // the issuer identifier: public_url, no trailing slash
	Epoch  int64  // grows when the server comes back from a backup
	At     time.Time
}

// The refusals of a store that is not initialized, or is initialized already.
var (
	ErrNotInitialized = watchword.Refuse(watchword.NotFound, "the store is not initialized")
	ErrInitialized    = watchword.Refuse(watchword.Conflict, "the store is initialized already")
)

// SignedBundle is a trust bundle as it was signed: published from Starts on, until
// the next one starts. Version only grows.
type SignedBundle struct {
	Version int64
	JWS     []byte // one compact JWS, or a JSON array of two
	Starts  time.Time
	Expires time.Time
}
