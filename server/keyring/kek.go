package keyring

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// KEK is the key-encryption key, which encrypts only the data key. It is read from a file now; a PKCS#11, TPM or Vault
// backend could implement the same methods.
type KEK interface {
	// ID identifies the key without disclosing it: 43 characters.
	ID() watchword.KeyID
	// Wrap encrypts a data key of 32 bytes.
	Wrap(key []byte) ([]byte, error)
	// Unwrap decrypts the output of Wrap. Code: key_damaged.
	Unwrap(wrapped []byte) ([]byte, error)
}

// fileKEK is a key of 32 bytes, read from a file of 43 characters of base64url.
type fileKEK struct{ key []byte }

// OpenKEK reads the key-encryption key at path, which only its owner may read. If make is set and the file does not exist,
// it first generates a key and writes it (0600, synced). Codes: key_exposed, file_untrusted; key_missing if the file does
// not exist, key_damaged if it contains no key.
func OpenKEK(path string, make bool) (KEK, error) {
	b, err := durable.ReadPrivate(path)
	if errors.Is(err, fs.ErrNotExist) && make {
		b = []byte(base64.RawURLEncoding.EncodeToString(randomKey()) + "\n")
		if err := durable.EnsureFolder(filepath.Dir(path), false); err != nil {
			return nil, err
		}
		err = durable.WriteFile(path, b, 0o600)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, watchword.Wrap(err, watchword.KeyMissing, "the key-encryption key %s does not exist: restore it from its backup; the sealed keys cannot be opened without it", path)
	}
	if err != nil {
		return nil, err
	}
	key, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != 32 {
		return nil, watchword.Refuse(watchword.KeyDamaged, "%s must contain a key-encryption key: 43 characters of base64url", path)
	}
	return fileKEK{key}, nil
}

func (k fileKEK) ID() watchword.KeyID {
	sum := sha256.Sum256(append([]byte("watchword key-encryption key id\x00"), k.key...))
	return watchword.KeyID(base64.RawURLEncoding.EncodeToString(sum[:]))
}

func (k fileKEK) Wrap(key []byte) ([]byte, error) { return sealBytes(k.key, "data", key) }

func (k fileKEK) Unwrap(wrapped []byte) ([]byte, error) { return openBytes(k.key, "data", wrapped) }

func randomKey() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never returns an error (crypto/rand)
	return b
}
