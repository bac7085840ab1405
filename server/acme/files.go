package acme

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// Names of the files in the folder, all of mode 0600.
const (
	AccountFile     = "account.json"
	CertificateFile = "certificate.pem"
	AttemptsFile    = "attempts.json" // not worth a backup
)

// account is the account at an authority.
type account struct {
	Directory string    `json:"directory"`
	KID       string    `json:"kid,omitempty"`   // its URL; empty: not registered yet
	Terms     string    `json:"terms,omitempty"` // that were accepted when it was registered
	Agreed    time.Time `json:"agreed,omitzero"`
	Key       []byte    `json:"key"` // PKCS #8

	key *ecdsa.PrivateKey
}

// load reads the files. One that is damaged is left out with a line in the log, since everything in it can be had again.
func (m *Manager) load() error {
	if err := durable.EnsureFolder(m.o.Dir, true); err != nil {
		return err
	}
	for name, parse := range map[string]func([]byte) error{
		AccountFile: func(b []byte) error {
			var a account
			if err := json.Unmarshal(b, &a); err != nil {
				return err
			}
			key, err := x509.ParsePKCS8PrivateKey(a.Key)
			if err != nil {
				return err
			}
			own, ok := key.(*ecdsa.PrivateKey)
			if !ok {
				return errors.New("it has no key of an elliptic curve")
			}
			if a.key = own; a.Directory == m.c.Directory {
				m.account = a
			}
			return nil
		},
		CertificateFile: func(b []byte) (err error) {
			m.cert, err = parseCertificate(b, m.o.Roots)
			return err
		},
		AttemptsFile: func(b []byte) error {
			var a attempts
			if err := json.Unmarshal(b, &a); err != nil {
				return err
			}
			if a.of(m.c) {
				m.state = a
			}
			return nil
		},
	} {
		path := filepath.Join(m.o.Dir, name)
		b, err := durable.ReadPrivate(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case watchword.CodeOf(err) == watchword.TooLarge:
		case err != nil:
			return err
		default:
			err = parse(b)
		}
		if err != nil {
			m.o.Log.Warn("a file of the ACME client is not used, and is replaced", slog.String("file", path), slog.Any("err", err))
		}
	}
	return nil
}

// store writes a file. Where that fails, what is in memory is used until the server ends.
func (m *Manager) store(name string, v any) {
	b, ok := v.([]byte)
	var err error
	if !ok {
		b, err = json.MarshalIndent(v, "", "  ")
	}
	if err == nil && len(b) > durable.MaxPrivate {
		err = watchword.Refuse(watchword.TooLarge, "it has %d bytes", len(b))
	}
	if err == nil {
		err = durable.WriteFile(filepath.Join(m.o.Dir, name), b, 0o600)
	}
	if err != nil {
		m.o.Log.Error("a file of the ACME client was not written", slog.String("file", filepath.Join(m.o.Dir, name)), slog.Any("err", err))
	}
}

// use has handshakes get a certificate from now on, and stores it.
func (m *Manager) use(c *certificate) error {
	b, err := c.pem()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.cert = c
	m.mu.Unlock()
	m.store(CertificateFile, b)
	return nil
}
