package keyring

import (
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Role is the purpose of a server key. No key has two.
type Role string

// The roles of the server's keys: docs/operations.md, The server's keys. Data is the AES key that encrypts the other keys
// and data in the store; it is itself encrypted with the key-encryption key.
const (
	Root    Role = "root"
	CA      Role = "ca"
	Issuer  Role = "issuer"
	Command Role = "command"
	Time    Role = "time"
	Log     Role = "log"
	Data    Role = "data"
)

// Roles lists the roles that sign, in the order in which they are displayed.
var Roles = []Role{Root, CA, Issuer, Command, Time, Log}

// State is the state of a server key.
type State string

// The states of a server key. Next is published and does not sign yet. Retiring no longer signs, and is valid as long as
// anything that it signed can be valid. Gone and revoked keys are invalid, and their private keys are erased.
const (
	Next     State = "next"
	Active   State = "active"
	Retiring State = "retiring"
	Gone     State = "gone"
	Revoked  State = "revoked"
)

// Valid reports whether a signature of the key may be valid, now or later.
func (s State) Valid() bool { return s == Next || s == Active || s == Retiring }

// SealedKey is a server key as it is stored. Private is AES-256-GCM under the data key (for role data: under the
// key-encryption key), with ID and role as additional data; it is empty for an offline root, and for keys that are not
// valid any more. Public is the canonical JWK, nil for data. Cert is the DER of the ca's own certificate, nil for the
// others.
type SealedKey struct {
	ID      watchword.KeyID
	Role    Role
	State   State
	Public  []byte
	Private []byte
	Cert    []byte
	Created time.Time
	Starts  time.Time // when it begins to sign, or began
	Ends    time.Time // when a retiring key becomes invalid; zero: never
	Origin  string    // of a log key: the origin of the log that it signs; empty means [watchword.LogOrigin], and for other roles
}

// OriginOf returns the origin of the log that a log key of instance f signs.
func (s SealedKey) OriginOf(f Instance) string {
	if s.Origin != "" {
		return s.Origin
	}
	return watchword.LogOrigin(f.Issuer)
}

// StateChange changes the state of one key. Starts and Ends are written unchanged. Private, if not nil, replaces the
// encrypted private key; for gone and revoked it is erased in any case.
type StateChange struct {
	Role         Role
	ID           watchword.KeyID
	From, To     State
	Starts, Ends time.Time
	Private      []byte
}

// KeyUpdate is one atomic change of the ring: new keys, state changes of others, signed bundles, and bundles signed in
// advance that are no longer valid.
type KeyUpdate struct {
	Add         []SealedKey
	Change      []StateChange
	Bundles     []SignedBundle
	DropBundles []token.BundleVersion
	Issuers     []token.IssuerPeriod // the issuer history after a move; nil: it stays
}

// Instance is what is fixed at the first start of a server, and at each restore.
type Instance struct {
	Issuer string // the issuer identifier: public_url, no trailing slash
	Epoch  int64  // grows when the server is restored from a backup
	// LogOrigin is the origin of the log since the last restore; empty before the first, for [watchword.LogOrigin].
	LogOrigin string
	At        time.Time // first start
	// RestoredAt is when the server was restored from a backup; zero: never. Assertions that were issued before it are refused.
	RestoredAt time.Time
	// SupersededBy is the epoch of a trust bundle of the own root that was shown to this server and is higher than Epoch: another
	// server was restored from a backup of this one. 0: none.
	SupersededBy int64
}

// Origin returns the origin of the log.
func (f Instance) Origin() string {
	if f.LogOrigin != "" {
		return f.LogOrigin
	}
	return watchword.LogOrigin(f.Issuer)
}

// The errors of a store that is not initialized, or is initialized already.
var (
	ErrNotInitialized = watchword.Refuse(watchword.NotFound, "the store is not initialized")
	ErrInitialized    = watchword.Refuse(watchword.Conflict, "the store is initialized already")
)

// SignedBundle is a signed trust bundle, published from Starts on, until the next one starts. Version only grows.
type SignedBundle struct {
	Version token.BundleVersion
	JWS     []byte // one compact JWS, or a JSON array of two
	Starts  time.Time
	Expires time.Time
}
