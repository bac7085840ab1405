package backup

import (
	"encoding/base64"
	"time"

	"github.com/watchword-iot/watchword/audit/ledger"
)

// Format is the version of the form of the archive that this package writes and reads. Archives of format 1, of builds before the
// first release, were not signed, and are refused.
const Format = 2

// Names of the members of an archive, which are paths below the folder that [Extract] writes to. Those below DataFolder are the
// restored data folder.
const (
	DataFolder     = "data"
	Database       = DataFolder + "/watchword.db"
	KEK            = DataFolder + "/keys/kek" // also where the server reads it from another place
	CA             = DataFolder + "/tls/ca.pem"
	OperatorKey    = DataFolder + "/operator.jwk"
	ACMEAccount    = DataFolder + "/acme/account.json"
	ACMECert       = DataFolder + "/acme/certificate.pem"
	Checkpoint     = DataFolder + "/log.checkpoint" // the newest of the database in the archive
	Config         = "config/watchword.toml"        // the configuration file as it was read
	Effective      = "config/effective.toml"        // the configuration in use: defaults, file and environment, with its secrets
	TLSCertificate = "config/tls_cert.pem"          // of server.tls_cert
	TLSKey         = "config/tls_key.pem"           // of server.tls_key

	formatMember   = "format.json"  // the first
	manifestMember = "manifest.jws" // the last: the manifest, signed with the log key
)

// member is what is allowed of a member.
type member struct {
	max      int64 // bytes; 0: as many as the archive has
	required bool
}

// maxSmall is the most bytes of each member but the database.
const maxSmall = 1 << 20

// members are the members that an archive may have. A name that is not among them is refused, so no name leads out of the folder.
var members = map[string]member{
	formatMember: {maxSmall, true}, manifestMember: {maxSmall, true},
	Database: {0, true}, KEK: {maxSmall, true}, Effective: {maxSmall, true},
	CA: {maxSmall, false}, OperatorKey: {maxSmall, false}, Checkpoint: {maxSmall, false}, Config: {maxSmall, false}, ACMEAccount: {maxSmall, false}, ACMECert: {maxSmall, false}, TLSCertificate: {maxSmall, false}, TLSKey: {maxSmall, false},
}

// IsMember reports whether an archive may have a file of that name.
func IsMember(name string) bool {
	_, is := members[name]
	return is
}

// Manifest says what is in a backup. It is the last member of the archive, signed with the active log key of the server.
type Manifest struct {
	Format  int       `json:"format"`
	Made    time.Time `json:"made"`    // UTC
	Version string    `json:"version"` // of the program that made it
	Schema  int64     `json:"schema"`  // number of the last migration of the database
	Issuer  string    `json:"issuer"`  // the first one of the default tenant: an address move does not change it
	Epoch   int64     `json:"epoch"`   // of commands
	Root    string    `json:"root"`    // pin of the active root key: the trust pin of enrollment links
	Log     Log       `json:"log"`
	// Trust is a trust bundle, signed by the root, that names the log key which signed the manifest.
	Trust string `json:"trust"`
	// Tables are the numbers of rows, by table.
	Tables  map[string]int64 `json:"tables"`
	Members []Member         `json:"members"`
	// Missing are members that the server has and that were not there, and LeftOut files of the data folder that are in no backup.
	Missing []string `json:"missing,omitempty"`
	LeftOut []string `json:"left_out,omitempty"`
}

// Log is the audit log of the database at the moment of the backup.
type Log struct {
	Origin string `json:"origin"` // name of the log
	Size   int64  `json:"size"`   // number of entries
	Hash   string `json:"root"`   // base64 of the root hash of the tree over them
}

// NewLog returns the log of an origin, with size entries and a root hash.
func NewLog(origin string, size int64, root ledger.Hash) Log {
	return Log{origin, size, base64.StdEncoding.EncodeToString(root[:])}
}

// Member is one file of the archive.
type Member struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
}
