package device

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// What lies in a device's folder (0700). Everything is written so that a power
// cut leaves the old file or the new one.
const (
	signFile     = "sign.jwk"
	sealFile     = "seal.jwk"
	newKeysFile  = "keys.next" // while keys change: both new ones
	identityFile = "device.json"
	trustFile    = "trust.jws"
	caFile       = "ca.pem"
	configFile   = "config.jws"
	journalFile  = "journal"
	clockFile    = "time" // the last signed time, in seconds
	lockFile     = "LOCK"
)

// identity is what enrollment gave.
type identity struct {
	ID            watchword.SubjectID `json:"id"`
	Labels        watchword.Labels    `json:"labels,omitempty"`
	Issuer        string              `json:"issuer"`
	TokenEndpoint string              `json:"token_endpoint"`
	HTTPS         string              `json:"https"`
	MQTTS         string              `json:"mqtts,omitempty"`
	CodeHash      string              `json:"code_hash"`
	Pin           string              `json:"pin"`
}

// openFolder makes and locks a device's folder. Nothing is made where others could write. Codes: folder_in_use, file_untrusted.
func openFolder(dir string) (*os.File, error) {
	if err := durable.EnsureFolder(dir, false); err != nil {
		return nil, err
	}
	// Beside those that are read through durable: what is only written, or believed by others.
	for _, name := range []string{lockFile, journalFile, caFile, configFile} {
		if err := durable.CheckFile(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return durable.Lock(filepath.Join(dir, lockFile))
}
