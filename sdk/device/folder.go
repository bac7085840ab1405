package device

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
)

// What lies in a device's folder (0700). Everything is written so that a power
// cut leaves the old file or the new one.
const (
	signFile     = "sign.jwk"
	sealFile     = "seal.jwk"
	nextFile     = "keys.next" // while keys change: both new ones
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
	if err := durable.Folder(dir, false); err != nil {
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

// readKey returns the key in a file, which is for use; nil if there is none.
func readKey(path string, use jose.Use) (*jose.PrivateKey, error) {
	b, err := durable.ReadPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return jose.ParsePrivateJWK(b, use)
}

// ensureKey returns the key in a file, which it makes first if there is none.
func ensureKey(path, curve string, use jose.Use) (*jose.PrivateKey, error) {
	k, err := readKey(path, use)
	if k != nil || err != nil {
		return k, err
	}
	if k, err = jose.GenerateKey(curve); err != nil {
		return nil, err
	}
	return k, durable.WriteFile(path, append(k.JWK(), '\n'), 0o600)
}

func readIdentity(dir string) (*identity, error) {
	b, err := durable.ReadTrusted(filepath.Join(dir, identityFile), durable.MaxPrivate)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return nil, watchword.Because(err, watchword.Internal, "%s is damaged", filepath.Join(dir, identityFile))
	}
	return &id, nil
}

func writeIdentity(dir string, id *identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, identityFile), append(b, '\n'), 0o600)
}
