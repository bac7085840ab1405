package device

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// Files of a device's folder (0700). Every write is such that a power cut leaves either the old file or the new one.
const (
	signFile     = "sign.jwk"
	sealFile     = "seal.jwk"
	newKeysFile  = "keys.next" // during a key change: both new keys
	identityFile = "device.json"
	trustFile    = "trust.jws"
	caFile       = "ca.pem"
	configFile   = "config.jws"
	journalFile  = "journal"
	clockFile    = "time" // the last signed time, in seconds
	lockFile     = "LOCK"
)

// identity is the result of enrollment.
type identity struct {
	ID            watchword.SubjectID `json:"id"`
	Labels        watchword.Labels    `json:"labels,omitempty"`
	Issuer        string              `json:"issuer"`
	TokenEndpoint string              `json:"token_endpoint"`
	HTTPS         string              `json:"https"`
	MQTTS         string              `json:"mqtts,omitempty"`
	CodeHash      string              `json:"code_hash"`
	Pin           string              `json:"pin"`
	FirstIssuer   string              `json:"first_issuer,omitempty"` // names the log, if the address of the server moved
}

// openFolder creates and locks a device's folder. It creates nothing in a folder that other users can write to. Codes:
// folder_in_use, file_untrusted.
func openFolder(dir string) (*os.File, error) {
	if err := durable.EnsureFolder(dir, false); err != nil {
		return nil, err
	}
	// durable checks files when it reads them; these are only written, or are read by other programs.
	for _, name := range []string{lockFile, journalFile, caFile, configFile} {
		if err := durable.CheckFile(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return durable.Lock(filepath.Join(dir, lockFile))
}
